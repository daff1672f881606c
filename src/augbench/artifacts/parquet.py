"""Read Parquet files that a rule made; a damaged file raises an error that names it and says what to do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from augbench.errors import UserError

REMAKE = "delete it and run again: it is remade"


@contextmanager
def whole(path: str | Path, what: str = "") -> Iterator[None]:
    """Turn errors of the block, which reads ``path``, into a :class:`UserError`.

    Parameters
    ----------
    what : str
        Content of the file, for the message (" of pictures").

    Raises
    ------
    UserError
        The file is missing, truncated, damaged, or not Parquet.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            str(path), f"not a whole Parquet file{what} ({str(error).splitlines()[0]})", REMAKE
        ) from None


def read_table(path: str | Path, schema: pa.Schema, *others: pa.Schema) -> pa.Table:
    """Read a table that has exactly the columns and types of ``schema``, or of one of ``others``.

    Raises
    ------
    UserError
        The file is missing, not a whole Parquet file, or has other columns.
    """
    if not Path(path).exists():
        raise UserError(str(path), "missing", "run the rule that makes it first")
    with whole(path):
        table = pq.read_table(path)
    found = table.schema.names, table.schema.types
    if all(found != (allowed.names, allowed.types) for allowed in (schema, *others)):
        raise UserError(str(path), f"columns {table.schema.names}", f"expected {schema.names}; {REMAKE}")
    return table
