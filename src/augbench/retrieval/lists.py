"""Lists of images: those that may be downloaded (safe list), and those that must not be used (takedown).

A list is a text file with one entry a line, a Parquet file, or a folder of such files, in any sub-folders.
Entries are web addresses or hashes; a Parquet file with neither gives ids. Re-LAION-5B has two thousand
million rows, so lists are read piece by piece and only entries that were asked for stay in memory.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from augbench.artifacts.store import Store
from augbench.config.corpus import Corpus, EmbeddingCorpus, IndexCorpus, ServerCorpus
from augbench.config.stages import Retrieval
from augbench.config.study import Study
from augbench.errors import UserError
from augbench.files import sha256_file
from augbench.retrieval.embedding_files import SPELLINGS, visible
from augbench.retrieval.neighbours import Neighbour

TAKEN_DOWN = "taken down"
UNLISTED = "not on the safe list"
ROWS_AT_A_TIME = 1 << 18
TABLES = {".csv", ".tsv", ".json", ".jsonl", ".gz", ".zip", ".tar"}  # not one entry a line
# LAION's columns beside its tag NSFW: in the metadata of LAION-5B and LAION-400M and in ClickHouse's subset
_LAION_COLUMNS = {"LICENSE", "similarity", "original_width", "WIDTH", "SAMPLE_ID", "md5", "punsafe"}


def entries(path: str | Path, key: str) -> Iterator[pa.Array]:
    """Yield the entries of a list in pieces, as arrays of strings.

    Parameters
    ----------
    key : str
        Config key that names the list.

    Raises
    ------
    UserError
        The list is missing, damaged, or has no column of addresses, hashes or ids.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(key, f"{str(path)!r}, no such file", "allowed: a text or Parquet file, or a folder")
    for file in _files(path):
        if (suffix := file.suffix.lower()) in TABLES:
            allowed = "allowed: a text file with one entry a line, Parquet, or a folder of them"
            raise UserError(key, f"{str(file)!r}, a table", allowed)
        try:
            if suffix == ".parquet":
                with pq.ParquetFile(file) as table:
                    names = _columns(table.schema_arrow.names, file, key)
                    for batch in table.iter_batches(ROWS_AT_A_TIME, columns=names):
                        yield from (column.cast(pa.string()) for column in batch.columns)
            elif file.is_file():
                with file.open(encoding="utf-8-sig") as lines:
                    while piece := list(islice(lines, ROWS_AT_A_TIME)):
                        yield pa.array([text for line in piece if (text := line.strip())], pa.string())
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(key, f"{file} is not readable ({reason})", "allowed: text, Parquet") from None


def _files(folder: Path) -> list[Path]:
    """A list's file, or all in a folder and below it but hidden ones and descriptions (README.md, *.json)."""
    if not folder.is_dir():
        return [folder]
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix not in (".md", ".json"))
    return sorted(
        path for path in files if not any(part[0] == "." for part in path.relative_to(folder).parts)
    )


def _columns(names: Sequence[str], file: Path, key: str) -> list[str]:
    """Return the columns of addresses and hashes, or else, for a safe list, that of ids.

    Ids count only where there is nothing else: those of ClickHouse's subset are numbers of rows, which in
    Re-LAION belong to other images. For this reason nothing is taken down by its id.
    """
    kinds = [SPELLINGS["url"] + SPELLINGS["hash"]]
    if key == "retrieval.safe_list":
        kinds.append(SPELLINGS["id"])
    for spellings in kinds:
        if found := [name for name in spellings if name in names]:
            return found
    allowed = ", ".join(sum(kinds, ()))
    raise UserError(key, f"{file} has columns {', '.join(names)}", f"one of these is needed: {allowed}")


def _names(url: str | None, digest: str | None) -> set[str]:
    """What a list may call an image. A hash may be written in small or capital letters."""
    spelt = (digest, digest.lower(), digest.upper()) if digest else ()
    return {name for name in (url, *spelt) if name}


@dataclass(frozen=True)
class Lists:
    """What a study's lists say about its candidates.

    Attributes
    ----------
    taken_down : frozenset
        Addresses and hashes that must not be used.
    safe : frozenset, optional
        Addresses, hashes and ids of candidates that are on the safe list; None without one.
    """

    taken_down: frozenset[str] = field(default=frozenset(), repr=False)
    safe: frozenset[str] | None = field(default=None, repr=False)

    def fate(self, neighbour: Neighbour) -> str | None:
        """Return why an image must not be downloaded, or None if it may be."""
        names = _names(neighbour.url, neighbour.hash)
        if names & self.taken_down:
            return TAKEN_DOWN
        if self.safe is not None and not self.safe & {*names, neighbour.id}:
            return UNLISTED
        return None


def read_lists(retrieval: Retrieval, neighbours_path: str | Path, store: Store) -> Lists:
    """Read what the study's lists say about a search's candidates.

    A safe list may be larger than all else, so it is read once for all classes and jobs of a search: the
    store keeps the names that it shares with the candidates.
    """
    safe = None
    if retrieval.safe_list is not None:
        path = Path(retrieval.safe_list)
        stats = [(str(file), file.stat()) for file in _files(path)]
        recipe = {
            "version": 1,
            "neighbours": sha256_file(neighbours_path),
            "list": [[name, stat.st_size, stat.st_mtime_ns] for name, stat in stats],
        }

        def write(target: Path) -> None:
            columns = [
                name for name in ("id", "url", "hash") if name in pq.read_schema(neighbours_path).names
            ]
            wanted: set[str] = set()
            for row in pq.read_table(neighbours_path, columns=columns).to_pylist():
                wanted |= {row["id"], *_names(row["url"], row.get("hash"))}
            found = {
                name
                for piece in entries(path, "retrieval.safe_list")
                for name in wanted.intersection(piece.to_pylist())
            }
            pq.write_table(pa.table({"name": pa.array(sorted(found), pa.string())}), target)

        listed = store.keep("listed", recipe, ".parquet", write)
        safe = frozenset(pq.read_table(listed)["name"].to_pylist())
    return Lists(read_takedown(retrieval), safe)


def read_takedown(retrieval: Retrieval) -> frozenset[str]:
    """Read the addresses and hashes that must not be used."""
    if retrieval.takedown is None:
        return frozenset()
    pieces = entries(retrieval.takedown, "retrieval.takedown")
    names = {name for piece in pieces for name in piece.to_pylist() if name}
    return frozenset(names | {name.lower() for name in names if re.fullmatch("[0-9A-Fa-f]{32,}", name)})


def list_problems(study: Study) -> Iterator[UserError]:
    """Yield unreadable lists, and a corpus older than Re-LAION-5B that comes without a safe list."""
    retrieval = study.retrieval
    for key, path in (("safe_list", retrieval.safe_list), ("takedown", retrieval.takedown)):
        try:
            if path is not None and not any(len(piece) for piece in entries(path, f"retrieval.{key}")):
                yield UserError(f"retrieval.{key}", f"{path!r} has no entry", "allowed: a list of images")
        except UserError as error:
            yield error
    needs_list = retrieval.safe_list is None and not retrieval.download_without_safe_list
    if needs_list and (sign := sign_of_old_laion(study.corpus)) is not None:
        yield UserError(
            "retrieval.safe_list",
            f"null, but the corpus is a LAION list from before Re-LAION-5B ({sign})",
            "no image of it is downloaded without a list of safe images, unless "
            "retrieval.download_without_safe_list is true (docs/retrieval.md)",
        )


def sign_of_old_laion(corpus: Corpus | None) -> str | None:
    """Return what shows that a corpus lists links of LAION from before Re-LAION-5B, or None.

    The sign is a name (``laion5b_100m_part_1_of_10.parquet``), or LAION's tag ``NSFW`` beside others of its
    columns. Damaged files are left to the search.
    """
    if isinstance(corpus, ServerCorpus):
        return _old_name([corpus.index])
    if not isinstance(corpus, EmbeddingCorpus | IndexCorpus):
        return None
    folder = Path(corpus.folder)
    tables = [*visible(folder, "*metadata/*.parquet"), *visible(folder, "*.parquet")]
    fetched = corpus.fetched if isinstance(corpus, EmbeddingCorpus) else {}
    if named := _old_name([os.path.relpath(path, corpus.folder) for path in [*map(str, tables), *fetched]]):
        return named
    for table in tables[:1]:
        with suppress(pa.ArrowException, OSError):
            columns = set(pq.read_schema(table).names)
            if "NSFW" in columns and (others := sorted(columns & _LAION_COLUMNS)):
                return f"columns NSFW, {', '.join(others)} in {table.name}"
    return None


def _old_name(names: Sequence[str]) -> str | None:
    """Return the first name with ``laion`` that is not part of ``relaion`` or ``re-laion``."""
    return next((name for name in names if re.search("(?<!re)(?<!re-)laion", name.lower())), None)


def addresses(neighbours: Iterable[str | Path], taken_down: frozenset[str]) -> frozenset[str]:
    """Addresses of searches' candidates that a list names by the corpus's hash, which no ledger has."""
    found: set[str] = set()
    for path in neighbours if taken_down else ():
        if "hash" in pq.read_schema(path).names:
            rows = pq.read_table(path, columns=["url", "hash"]).to_pylist()
            found |= {row["url"] for row in rows if row["url"] and _names(None, row["hash"]) & taken_down}
    return frozenset(found)


def purge(store: Store, taken_down: frozenset[str]) -> int:
    """Delete what the store holds of the images of the list, or made from them; return the number of files.

    These are ledgers and shards with such an image, shards with images that started from one, directly or
    through images that did, and what was learned from any of them. Studies that used them make them again
    without these images when they run with the list.
    """
    from augbench.personalise.stage import purge_learned
    from augbench.retrieval.filters import KEPT

    if not taken_down:
        return 0
    named = pa.array(sorted(taken_down), pa.string())
    doomed = []
    for path in sorted((store.root / "ledgers").glob("[!.]*.parquet")):
        table = pq.read_table(path, columns=["url", "sha256", "fate"])
        listed = pc.or_kleene(pc.is_in(table["url"], named), pc.is_in(table["sha256"], named))
        if len(urls := table.filter(pc.and_(listed, pc.equal(table["fate"], KEPT))).column("url")):
            named = pc.unique(pa.concat_arrays([named, urls.combine_chunks()]))
            doomed.append(path)
    shards, hashes = _made_from(
        sorted((store.root / "shards").glob("[!.]*.parquet")), {*named.drop_null().to_pylist()}
    )
    for path in (*doomed, *shards):
        path.unlink(missing_ok=True)
    return len(doomed) + len(shards) + purge_learned(store, hashes)


def _made_from(paths: Sequence[Path], named: set[str]) -> tuple[list[Path], set[str]]:
    """Shards with images from named addresses, or that started from such images, through any number of steps.

    Returns the shards, and the hashes of all these images.
    """
    tables: dict[Path, pa.Table] = {}
    for path in paths:
        there = set(pq.read_schema(path).names)
        rows = pq.read_table(path, columns=[name for name in ("source", "sha256", "origin") if name in there])
        if rows["source"].null_count < rows.num_rows:
            tables[path] = rows
    hashes: set[str] = set()
    while True:
        known = pa.array(sorted(named | hashes), pa.string())
        found = {path: hit for path, rows in tables.items() if (hit := _hits(rows, known)).num_rows}
        images = {
            sha256
            for rows in found.values()
            if "sha256" in rows.schema.names
            for sha256 in rows["sha256"].to_pylist()
        }
        if images <= hashes:
            return [*found], hashes
        hashes |= images


def _hits(rows: pa.Table, known: pa.Array) -> pa.Table:
    """Images whose address, or the hash of the image that they started from, is known."""
    columns = [rows[name] for name in ("source", "origin") if name in rows.schema.names]
    found = [pc.is_in(column, known) for column in columns]
    return rows.filter(reduce(pc.or_, found))
