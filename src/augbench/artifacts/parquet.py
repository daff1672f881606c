"""Reading Parquet files that a rule made: damage becomes one line that names the file and what to do about it."""

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
    """Around the reading of ``path``; ``what`` says what it holds (" of pictures").

    Raises
    ------
    UserError
        Missing, cut short, damaged, or another file.
    """
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            str(path), f"not a whole Parquet file{what} ({str(error).splitlines()[0]})", REMAKE
        ) from None


def read_table(path: str | Path, schema: pa.Schema) -> pa.Table:
    """A table of exactly these columns and types.

    Raises
    ------
    UserError
        Missing, not a whole Parquet file, or other columns.
    """
    if not Path(path).exists():
        raise UserError(str(path), "missing", "run the rule that makes it first")
    with whole(path):
        table = pq.read_table(path)
    if table.schema.names != schema.names or table.schema.types != schema.types:
        raise UserError(str(path), f"columns {table.schema.names}", f"expected {schema.names}; {REMAKE}")
    return table
