"""Class table: one row per class in label order, with all texts that prompts and reports need.

Input: a shipped table, a user's YAML or TSV, or folder names. Output: :class:`ClassInfo` rows and
``classes.parquet``.
"""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from augbench.errors import UserError
from augbench.files import RESOURCES

CLASS_ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._+-]*"
SHIPPED_TABLES = {
    path.stem: path for path in sorted((RESOURCES / "classes").iterdir()) if path.suffix in (".yaml", ".tsv")
}
COLUMNS = ("class_id", "lemmas", "hypernyms", "definition")


@dataclass(frozen=True)
class ClassInfo:
    """One class.

    Attributes
    ----------
    class_id : str
        Unique and safe in a path: an ImageNet wnid, a folder name, a slug.
    lemmas : tuple of str
        Names of the class, the best known first (for ImageNet the synset's lemmas; paper, section 3.1).
    hypernyms : tuple of str
        More general terms; only the prompts of Sariyildiz et al. need them.
    definition : str
        One phrase; only the same prompts need it.
    """

    class_id: str
    lemmas: tuple[str, ...]
    hypernyms: tuple[str, ...] = ()
    definition: str = ""

    @property
    def name(self) -> str:
        """The paper's n: all lemmas joined by ", " (paper, section 3.1)."""
        return ", ".join(self.lemmas)


def _texts(where: str, value: Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) and item.strip() for item in items):
        raise UserError(where, repr(value), "allowed: a text or a list of non-empty texts")
    return tuple(item.strip() for item in items)


def class_from_mapping(row: Any, where: str) -> ClassInfo:
    """Check one row of a class table and return its class; ``where`` names the row in errors."""
    if not isinstance(row, dict) or "class_id" not in row:
        raise UserError(where, repr(row), f"allowed: a mapping with class_id and any of {sorted(COLUMNS)}")
    if unknown := set(row).difference(COLUMNS):
        raise UserError(where, f"unknown keys {sorted(unknown)}", f"allowed: {sorted(COLUMNS)}")
    class_id = str(row["class_id"])
    if not re.fullmatch(CLASS_ID_PATTERN, class_id):
        raise UserError(f"{where}.class_id", repr(class_id), f"allowed: text that matches {CLASS_ID_PATTERN}")
    return ClassInfo(
        class_id=class_id,
        lemmas=_texts(f"{where}.lemmas", row.get("lemmas", readable_name(class_id))),
        hypernyms=_texts(f"{where}.hypernyms", row.get("hypernyms", [])),
        definition=str(row.get("definition") or "").strip(),
    )


def readable_name(folder: str) -> str:
    """Class name from a folder name, with spaces for underscores and hyphens."""
    return re.sub(r"[\s_-]+", " ", folder).strip()


def check_unique(classes: Sequence[ClassInfo], where: str) -> None:
    """Raise :class:`UserError` if two classes share an id or there are fewer than two classes."""
    ids = [info.class_id for info in classes]
    if len(ids) < 2:
        raise UserError(where, f"{len(ids)} class(es)", "at least 2 classes are needed")
    if twice := sorted(class_id for class_id, count in Counter(ids).items() if count > 1):
        raise UserError(where, f"class_id given twice: {twice}", "each class_id may appear once")


def load_class_table(table: str | Path) -> list[ClassInfo]:
    """Read a class table, given as the name of a shipped one or the path of a YAML or TSV file.

    Shipped tables are ``fashion_mnist`` and ``imagenet``. A YAML file is a list of classes. A TSV file
    has a header with some of :data:`COLUMNS`, one class per line, and ``|`` between the entries of lemmas
    and hypernyms; lines before the header that begin with ``#`` are comments. Every start of Snakemake
    reads the table: 1000 classes take 20 ms as TSV and a second as YAML.

    Raises
    ------
    UserError
        The table is unknown, the file is unreadable, or rows are bad or repeated.
    """
    path = SHIPPED_TABLES.get(str(table), Path(table))
    if not path.is_file():
        raise UserError(
            "dataset.classes",
            repr(str(table)),
            f"allowed: {sorted(SHIPPED_TABLES)} or a YAML file, or a TSV file (.tsv)",
        )
    rows = _tsv_rows(path) if path.suffix == ".tsv" else _yaml_rows(path)
    classes = [class_from_mapping(row, where) for where, row in rows]
    check_unique(classes, str(path))
    return classes


def _yaml_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        rows = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(
            str(path), f"not readable as YAML ({str(error).splitlines()[0]})", "a list of classes"
        ) from None
    if not isinstance(rows, list):
        raise UserError(str(path), type(rows).__name__, "a list of classes is needed")
    for index, row in enumerate(rows):
        yield f"{path.name}[{index}]", row


def _tsv_rows(path: Path) -> Iterator[tuple[str, dict[str, str | list[str]]]]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"not readable as text ({error})", "save it as UTF-8") from None
    comments = next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
    reader = csv.reader(lines[comments:], delimiter="\t")
    header = next(reader, [])
    if "class_id" not in header or not set(header) <= set(COLUMNS) or len(set(header)) < len(header):
        raise UserError(
            str(path), f"columns {header}", f"allowed: class_id and any of {list(COLUMNS)}, separated by tabs"
        )
    for cells in reader:
        where = f"{path.name}, line {comments + reader.line_num}"
        if not any(cells):
            continue
        if len(cells) != len(header):
            raise UserError(where, f"{len(cells)} columns", f"the header has {len(header)}")
        row = {
            name: cell.split("|") if name in ("lemmas", "hypernyms") else cell
            for name, cell in zip(header, cells, strict=True)
            if cell
        }
        yield where, row


def write_class_table(classes: Sequence[ClassInfo], path: str | Path) -> None:
    """Write ``classes.parquet``: label, class_id, name, lemmas, hypernyms, definition, in label order."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from augbench.files import atomic_path

    rows = [{"label": label, **asdict(info), "name": info.name} for label, info in enumerate(classes)]
    schema = pa.schema(
        [
            ("label", pa.int32()),
            ("class_id", pa.string()),
            ("name", pa.string()),
            ("lemmas", pa.list_(pa.string())),
            ("hypernyms", pa.list_(pa.string())),
            ("definition", pa.string()),
        ]
    )
    with atomic_path(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)


def read_class_table(path: str | Path) -> list[ClassInfo]:
    """Read ``classes.parquet``; the classes are in label order."""
    import pyarrow.parquet as pq

    rows = sorted(pq.read_table(path).to_pylist(), key=lambda row: row["label"])
    return [
        ClassInfo(row["class_id"], tuple(row["lemmas"]), tuple(row["hypernyms"]), row["definition"])
        for row in rows
    ]
