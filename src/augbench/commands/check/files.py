"""Checks of the files of data set and corpus: what is left out, damaged, or in both."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from augbench.commands.check.images import Checked, ImageFiles, Images, ParquetRows, decode_all
from augbench.commands.check.methods import CorpusSize
from augbench.commands.check.models import projection_width
from augbench.commands.check.overlap import Place, overlap, places_of
from augbench.config.corpus import EmbeddingCorpus, ImageCorpus, ParquetCorpus
from augbench.config.data import FolderTest
from augbench.config.problems import ConfigError
from augbench.config.study import Study
from augbench.data.classes import ClassInfo
from augbench.data.image_folder import FolderSource
from augbench.data.parquet_images import list_corpus_rows
from augbench.data.parquet_source import ParquetSource
from augbench.data.source import ClassImages
from augbench.data.walk import LeftOut, list_corpus, reasons
from augbench.errors import NAMED, UserError, some
from augbench.further.folders import scan_folder
from augbench.retrieval.embedding_files import SPELLINGS, EmbeddingFile, open_embeddings
from augbench.retrieval.web.fates import UNDECODABLE

FilesSource = FolderSource | ParquetSource  # data sets of the user's own files


@dataclass
class FileReport:
    """What a check of files has found; ``corpus`` is None if its images can't be counted."""

    problems: list[UserError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    corpus: CorpusSize | None = None


def check_files(
    study: Study,
    source: FilesSource | None,
    images: list[ClassImages],
    decode: bool,
    classes: Sequence[ClassInfo] = (),
) -> FileReport:
    """Check the files of the data set, of further test sets, and of a corpus that retrieval searches.

    Parameters
    ----------
    source : FolderSource or ParquetSource, optional
        The data set, if it consists of files.
    images : list of ClassImages
        Its images; none if it could not be listed.
    decode : bool
        Decode all images.
    classes : sequence of ClassInfo
        The study's classes, in label order; none if they are not known.
    """
    report, places = FileReport(), []
    if source is not None:
        places = _data_set(source, images, decode, report)
    further = list(_further_tests(study, classes, decode, report)) if classes else []
    for place in further:
        for trained in (one for one in places if one.key.startswith("dataset.train_")):
            _add(report, overlap(place, trained, "a test image may not be trained on", copies_fail=True))
    places += further
    if study.retrieved:
        try:
            corpus = _corpus(study, decode, report)
        except UserError as error:
            report.problems.append(error)
            corpus = None
        if corpus is not None:
            for place in places:
                _add(report, overlap(corpus, place, "retrieval would find them", copies_fail=False))
    return report


def _add(report: FileReport, found: tuple[list[UserError], list[str]]) -> None:
    report.problems += found[0]
    report.notes += found[1]


def _data_set(
    source: FilesSource, images: list[ClassImages], decode: bool, report: FileReport
) -> list[Place]:
    report.notes += [f"dataset: {line}" for line in reasons(source.left_out)]
    images_in: Images
    if isinstance(source, ParquetSource):
        images_in, links, unit = ParquetRows(source.rows), set[str](), "split"
    else:
        images_in, links, unit = ImageFiles(source.root), source.links, "folder"
    places = places_of(images, source.root, links, {}, unit)
    if decode:
        names = [name for place in places for name in place.names]
        checked = decode_all(images_in, names, "data set: images checked")
        report.notes += [f"warning: dataset: {line}" for line in checked.guesses()]
        report.problems += _damaged(checked, "dataset", len(names))
        places = places_of(images, source.root, links, checked.digests, unit)
    for number, place in enumerate(places):
        for earlier in places[:number]:
            _add(report, overlap(place, earlier, "each split needs its own", copies_fail=True))
    return places


def _further_tests(
    study: Study, classes: Sequence[ClassInfo], decode: bool, report: FileReport
) -> Iterator[Place]:
    """Yield the images of the further test sets that are in folders; report what is wrong with them."""
    for name, test in study.dataset.further_tests.items():
        key = f"dataset.further_tests.{name}"
        if not isinstance(test, FolderTest):
            continue
        try:
            found = scan_folder(test, key, classes)
        except UserError as error:
            report.problems += error.problems if isinstance(error, ConfigError) else [error]
            continue
        names, root = found.split.image_ids, Path(test.root)
        there = len(set(found.split.class_ids))
        report.notes.append(f"{key}: {len(names):,} images of {there:,} of {len(classes):,} classes")
        report.notes += [f"{key}: {line}" for line in reasons(found.left_out)]
        checked = decode_all(ImageFiles(root), names, f"{name}: images checked") if decode else Checked()
        report.notes += [f"warning: {key}: {line}" for line in checked.guesses()]
        report.problems += _damaged(checked, key, len(names))
        yield Place(f"{key}.root", f"images of {name}", root, names, found.links, checked.digests)


def _damaged(checked: Checked, where: str, images: int) -> list[UserError]:
    """The first images that can't be decoded, and the number of all."""
    damaged = list(checked.damaged.values())
    if len(damaged) <= NAMED:
        return damaged
    counted = f"{len(damaged)} corrupt images of {images}"
    return [*damaged[:NAMED], UserError(where, counted, f"the first {NAMED} are named above")]


def _unusable_embeddings(files: Sequence[EmbeddingFile], width: int | None) -> Iterator[UserError]:
    """Yield a problem if vectors are not of the CLIP model's width, or no column has addresses."""
    if width is not None and files[0].dimension != width:
        found = f"{files[0].name} has {files[0].dimension} numbers per vector"
        yield UserError("corpus.folder", found, f"allowed: {width}, as many as clip.model gives")
    if without := [file.metadata_path.name for file in files if "url" not in file.columns]:
        found = f"no column of web addresses in {some(without, 3)}"
        allowed = f"allowed: {', '.join(SPELLINGS['url'])}, or the column that corpus.columns names for url"
        yield UserError("corpus.folder", found, allowed)


def _corpus(study: Study, decode: bool, report: FileReport) -> Place | None:
    """Check the corpus; return its images, if it consists of image files."""
    corpus = study.corpus
    if (
        isinstance(corpus, EmbeddingCorpus)
        and os.path.isdir(corpus.folder)
        and all(map(os.path.isfile, corpus.fetched))  # else they are fetched first
    ):
        columns = {str(name): column for name, column in corpus.columns.items()}
        files = open_embeddings(corpus.folder, corpus.vector_column, corpus.npz_key, columns)
        report.problems += _unusable_embeddings(files, projection_width(study.clip))
        report.corpus = CorpusSize(sum(file.rows for file in files), [])
    images: Images
    if isinstance(corpus, ParquetCorpus):
        rows, listed = list_corpus_rows(corpus)
        images = ParquetRows(rows)
        names, links, lost = listed.names(), set[str](), listed.left_out
    elif isinstance(corpus, ImageCorpus):
        listing = list_corpus(corpus.root)
        images = ImageFiles(Path(corpus.root))
        names, links, lost = listing.images, listing.links, listing.left_out
    else:
        return None
    checked = decode_all(images, names, "corpus: images checked") if decode else Checked()
    broken = [LeftOut(name, UNDECODABLE) for name in checked.damaged]
    left_out = reasons([*lost, *broken])
    if len(broken) < len(names):
        report.notes.append(f"corpus: {len(names) - len(broken):,} images in {corpus.root}")
    report.notes += [f"corpus: {line}" for line in left_out]
    report.notes += [f"warning: corpus: {line}" for line in checked.guesses()]
    if len(broken) == len(names):
        first = next(iter(checked.damaged.values()))
        found = f"none of the {len(broken)} images in {corpus.root!r} can be decoded ({first.found})"
        raise UserError("corpus.root", found, "allowed: a folder of images")
    report.corpus = CorpusSize(len(names) - len(broken), left_out)
    return Place("corpus.root", "images", Path(corpus.root), names, links, checked.digests)
