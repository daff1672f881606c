"""Class table: one row per class in label order, with all texts that prompts and reports need.

Input: a shipped table, a user's YAML or TSV, or folder names. Output: :class:`ClassInfo` rows and
``classes.parquet``.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from augbench.errors import UserError
from augbench.files import RESOURCES, read_text
from augbench.texts import has_control_characters, one_line
from augbench.yaml_files import TextLoader, load_yaml

CLASS_ID_PATTERN = r"[A-Za-z0-9~][A-Za-z0-9._+~-]*"
LONGEST_ID = 240  # characters; the longest file name of a class is its id and .sqlite-journal
SHIPPED_TABLES = {
    path.stem: path for path in sorted((RESOURCES / "classes").iterdir()) if path.suffix in (".yaml", ".tsv")
}
COLUMNS = ("class_id", "lemmas", "hypernyms", "definition")
_COMMENTS = re.compile(r"(?:#.*\n)*")
_CELL = re.compile(r'"(?P<quoted>[^"]*(?:""[^"]*)*)"(?=[\t\n]|\Z)|(?P<plain>[^\t\n]*)')


@dataclass(frozen=True)
class ClassInfo:
    """One class.

    Attributes
    ----------
    class_id : str
        Unique and safe in a path: an ImageNet wnid, or a folder's name as :func:`class_id_of` writes it.
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


def _shown(value: object) -> str:
    """Show a value of a table on one short line."""
    text = "null" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _text(where: str, value: object, empty: bool = False) -> str:
    """Check a text of a table, and return it on one line without white space around it."""
    text = one_line(value).strip() if isinstance(value, str) else None
    if text is None or has_control_characters(text) or not (text or empty):
        raise UserError(where, _shown(value), "allowed: a text that is not empty, without control characters")
    return text


def _texts(where: str, value: object, least: int) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or len(items) < least:
        allowed = f"allowed: a text or a list of texts{', at least one' if least else ''}"
        raise UserError(where, _shown(value), allowed)
    return tuple(_text(where, item) for item in items)


def class_from_mapping(row: Any, where: str) -> ClassInfo:
    """Check one row of a class table and return its class; ``where`` names the row in errors."""
    if not isinstance(row, dict) or "class_id" not in row:
        raise UserError(where, _shown(row), f"allowed: a mapping with class_id and any of {sorted(COLUMNS)}")
    if unknown := set(row).difference(COLUMNS):
        raise UserError(where, f"unknown keys {sorted(map(str, unknown))}", f"allowed: {sorted(COLUMNS)}")
    folder = _text(f"{where}.class_id", row["class_id"])
    try:
        class_id = class_id_of(folder)
    except ValueError as error:
        raise UserError(f"{where}.class_id", _shown(folder), str(error)) from None
    definition = row.get("definition")
    return ClassInfo(
        class_id=class_id,
        lemmas=_texts(f"{where}.lemmas", row.get("lemmas", readable_name(folder)), 1),
        hypernyms=_texts(f"{where}.hypernyms", row.get("hypernyms", []), 0),
        definition="" if definition is None else _text(f"{where}.definition", definition, empty=True),
    )


def readable_name(folder: str) -> str:
    """Class name from a folder name, with spaces for underscores and hyphens, if there is anything else."""
    return re.sub(r"[\s_-]+", " ", folder).strip() or folder


def class_id_of(folder: str) -> str:
    """Class id of a class folder: its name, with ``~`` and two hexadecimal digits for bytes unsafe in paths.

    The folder ``hot dog`` gives ``hot~20dog``, as percent-encoding does with another sign. Names of letters,
    digits and ``._+-`` are ids as they are, unless one of ``._+-`` is first. Different names give different
    ids, and :func:`folder_of` is the inverse. Composed and decomposed accents are one name (Unicode's NFC),
    because file systems differ in them.

    Raises
    ------
    ValueError
        No folder of a class can have this name, or the id is too long for file names; says what is allowed.
    """
    if not folder or folder.startswith(".") or "/" in folder or has_control_characters(folder):
        raise ValueError("allowed: a folder's name in UTF-8, not hidden, without / and control characters")
    escaped = quote(unicodedata.normalize("NFC", folder), safe="+").replace("~", "%7E")
    if escaped[0] in "_+-":
        escaped = f"%{ord(escaped[0]):02X}{escaped[1:]}"
    if len(escaped) > LONGEST_ID:
        raise ValueError(f"allowed: at most {LONGEST_ID} characters, of which this name takes {len(escaped)}")
    return escaped.replace("%", "~")


def folder_of(class_id: str) -> str:
    """Name of the class folder with this id: the inverse of :func:`class_id_of`."""
    return unquote(class_id.replace("~", "%"))


def id_meant(name: str) -> str:
    """Class id that a user means, who may give an id or a folder's name; raises as :func:`class_id_of`."""
    folder = folder_of(name) or name
    return name if class_id_of(folder) == name else class_id_of(name)


def check_unique(classes: Sequence[ClassInfo], where: str) -> None:
    """Raise :class:`UserError` if two classes share an id or there are fewer than two classes."""
    ids = [info.class_id for info in classes]
    if len(ids) < 2:
        raise UserError(where, f"{len(ids)} class(es)", "at least 2 classes are needed")
    if twice := sorted(folder_of(class_id) for class_id, count in Counter(ids).items() if count > 1):
        raise UserError(where, f"class_id given twice: {_shown(twice)}", "each class_id may appear once")


def load_class_table(table: str | Path) -> list[ClassInfo]:
    """Read a class table, given as the name of a shipped one or the path of a YAML or TSV file.

    Shipped tables are ``fashion_mnist``, ``imagenet`` and ``imagenet100``. A YAML file is a list of classes.
    A TSV file has a header with some of :data:`COLUMNS`, one class per line, and ``|`` between the entries of
    lemmas and hypernyms; lines before the header that begin with ``#`` are comments. Every start of Snakemake
    reads the table: 1000 classes take 20 ms as TSV and a second as YAML.

    Raises
    ------
    UserError
        The table is unknown, the file is unreadable, or rows are bad or repeated.
    """
    path = SHIPPED_TABLES.get(str(table), Path(table))
    if not os.path.isfile(path):
        raise UserError(
            "dataset.classes",
            repr(str(table)),
            f"allowed: {sorted(SHIPPED_TABLES)} or a YAML file, or a TSV file (.tsv)",
        )
    rows = _tsv_rows(path) if path.suffix.lower() == ".tsv" else _yaml_rows(path)
    classes = [class_from_mapping(row, where) for where, row in rows]
    check_unique(classes, str(path))
    return classes


def _yaml_rows(path: Path) -> Iterator[tuple[str, Any]]:
    for index, row in enumerate(
        load_yaml(path, TextLoader, list, "a list of classes, or a TSV file (.tsv),")
    ):
        yield f"{path.name}[{index}]", row


def _tsv_rows(path: Path) -> Iterator[tuple[str, dict[str, str | list[str]]]]:
    lines = ((line, cells) for line, cells in _tsv_lines(read_text(path), path.name) if any(cells))
    _, header = next(lines, (0, []))
    if "class_id" not in header or not set(header) <= set(COLUMNS) or len(set(header)) < len(header):
        raise UserError(
            str(path), f"columns {header}", f"allowed: class_id and any of {list(COLUMNS)}, separated by tabs"
        )
    for line, cells in lines:
        where = f"{path.name}, line {line}"
        if len(cells) != len(header):
            raise UserError(where, f"{len(cells)} columns", f"the header has {len(header)}")
        row = {
            name: cell.split("|") if name in ("lemmas", "hypernyms") else cell
            for name, cell in zip(header, cells, strict=True)
            if cell
        }
        yield where, row


def _tsv_lines(text: str, name: str) -> Iterator[tuple[int, list[str]]]:
    """Yield number and cells of each line after the comments; a cell in quotes may have several lines.

    A cell is in quotes if it ends with one, too, and quotes inside are doubled, as spreadsheets write them.
    Other cells are taken as they are, so that ``"big" cat`` keeps its quotes and ``24" screen`` its line.
    """
    cells: list[str] = []
    place = _COMMENTS.match(text).end()  # type: ignore[union-attr]
    line = 1 + text.count("\n", 0, place)
    begin = place
    while place <= len(text):
        found = _CELL.match(text, place)
        assert found is not None
        place, quoted = found.end() + 1, found["quoted"]
        if quoted is not None and "\t" in quoted and "\n" in quoted:
            raise UserError(
                f"{name}, line {line}",
                f"a cell in quotes with tabs and several lines: {_shown(quoted)}",
                "allowed: quotes around a cell of one line; double a quote that belongs to the text",
            )
        cells.append(found["plain"] if quoted is None else quoted.replace('""', '"'))
        if text[place - 1 : place] != "\t":
            yield line, cells
            line, begin, cells = line + text.count("\n", begin, place), place, []


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
