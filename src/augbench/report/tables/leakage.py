"""The report of the leakage guard: added images that are near-duplicates of real ones, effects, examples.

Input: each method's pairs and summary (:mod:`augbench.leakage.stage`), its runs' predictions, and the
images of some pairs. Output: a table (CSV in full precision, Markdown, plain text), and one picture per
method.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.parquet import REMAKE
from augbench.artifacts.pool import load_images, read_index
from augbench.config.study import Study
from augbench.data.sources import open_source
from augbench.data.splits import read_split
from augbench.errors import UserError, some
from augbench.files import atomic_path, read_json
from augbench.leakage.effects import accuracy_without
from augbench.leakage.inherited import START, count_inherited, read_inherited
from augbench.leakage.records import Summary, count_images, read_leaks
from augbench.report import render
from augbench.report.render import NONE, Layout, write_table

if TYPE_CHECKING:
    from augbench.runtime.job import Job

EXAMPLES = 12  # pairs in a picture
PAIRS_PER_ROW = 4


@dataclass(frozen=True)
class Row:
    """One method; accuracies are means over its runs, None without predictions or if no test image is left.

    ``checked``, ``train``, ``val`` and ``test`` count added images. ``test_images`` counts distinct test
    images that have a near-duplicate. ``without`` is the accuracy on the other ``test_left`` test images.
    ``baseline`` and ``baseline_without`` are the same accuracies for real training images alone.
    ``inherited`` counts added images that were made from an image that shows a validation or test image; None
    for rows that are not built on other rows' images.
    """

    method: str
    label: str
    checked: int
    train: int
    val: int
    test: int
    either_percent: float
    test_images: int
    test_left: int | None
    top1_percent: float | None
    without_percent: float | None
    baseline_percent: float | None
    baseline_without_percent: float | None
    inherited: int | None = None


def _accuracies(
    paths: Sequence[str | Path], leaks: pa.Table
) -> tuple[float | None, float | None, int | None]:
    """Mean accuracy over runs, in percent: on all test images, and on those without near-duplicates.

    The third value is the number of test images without near-duplicates.
    """
    everything, without, left = [], [], None
    for path in paths:
        predictions = pq.read_table(path)
        share, _ = accuracy_without(predictions, leaks.slice(0, 0))
        share_without, left = accuracy_without(predictions, leaks)
        everything.append(share)
        without.append(share_without)

    def mean(shares: list[float | None]) -> float | None:
        values = [share for share in shares if share is not None]
        return 100 * fmean(values) if values else None

    return mean(everything), mean(without), left


def build_rows(
    study: Study,
    leaks: Mapping[str, str | Path],
    repeats: Mapping[str, str | Path],
    summaries: Mapping[str, str | Path],
    predictions: Mapping[str, Sequence[str | Path]],
    inherited: Mapping[str, str | Path] | None = None,
    chosen: Mapping[str, str] | None = None,
) -> list[Row]:
    """Build the rows of all methods that add images, in the order of the config.

    Parameters
    ----------
    leaks, repeats, summaries : mapping of method to path
        As :func:`augbench.leakage.stage.guard` writes them: pairs with validation and test images, pairs
        with training images, and the summaries of the former.
    predictions : mapping of method to sequence of path
        ``predictions.parquet`` of every run, including those of the baseline.
    inherited : mapping of method to path, optional
        As :func:`augbench.leakage.inherited.write_inherited` writes them, of rows that are built on others.
    chosen : mapping of str to str, optional
        Row that was chosen, by the row that chooses: the pairs of the former are those of the latter.

    Raises
    ------
    UserError
        A file is damaged, or the pairs or the summary belong to another method.
    """
    baseline = next((name for name, method in study.real.items() if method.split == "train"), None)
    rows = []
    for name in study.methods:
        source = (chosen or {}).get(name, name)
        if source not in leaks:
            continue
        pairs, summary = read_leaks(leaks[source]), Summary(**read_json(summaries[source]))
        repeated = read_leaks(repeats[source])
        for path, table in ((leaks[source], pairs), (repeats[source], repeated)):
            if set(table.column("method").to_pylist()) - {source} or summary.method != source:
                raise UserError(str(path), f"pairs of another method than {source}", REMAKE)
        passed_on = read_inherited(inherited[source]) if inherited and source in inherited else None
        touched = pairs.select(REAL)
        if passed_on is not None:
            touched = pa.concat_tables([touched, passed_on.select(REAL)])
        full, without, left = _accuracies(predictions.get(name, ()), touched)
        baseline_full, baseline_without, _ = _accuracies(predictions.get(baseline or "", ()), touched)
        rows.append(
            Row(
                method=name,
                label=study.label(name),
                checked=summary.checked,
                train=count_images(repeated, "train"),
                val=summary.val,
                test=summary.test,
                either_percent=100 * summary.either / summary.checked if summary.checked else 0.0,
                test_images=summary.test_images,
                test_left=left,
                top1_percent=full,
                without_percent=without,
                baseline_percent=baseline_full,
                baseline_without_percent=baseline_without,
                inherited=None if passed_on is None else count_inherited(passed_on),
            )
        )
    return rows


REAL = ["split", "image_id"]  # columns that name the real image of a pair
HEADER = (
    "Images of",
    "Checked",
    "Near train",
    "Near val",
    "Near test",
    "Share",
    "Test images",
    "Top-1 (%)",
    "Without (%)",
    "Baseline (%)",
    "Baseline without (%)",
)
NUMERIC = (False, *[True] * 10)
INHERITED = (
    "Inherited: number of added images that started from an image that shows a validation or test image, or"
    " whose class learned from one, directly or through other rows. They need not look like the real image.",
    "Without and Baseline without leave out the real images of inherited near-duplicates, too.",
)
NOTES = (
    "Near val, Near test: number of added images that show a validation or test image, as a copy, a crop or"
    " a mirror image, at any size or quality. Share: share of the added images that are near either split."
    " Test images: number of distinct test images with such a near-duplicate.",
    "Near train: number of added images that show a training image. They bring little that is new; they are"
    " counted, and never dropped.",
    "Top-1: accuracy on all test images, mean over runs. Without: accuracy on the test images without"
    " near-duplicates in this row's pool. Baseline: accuracy of training on real images alone, on the same"
    " test images, because the remaining test images may be easier or harder.",
    "Real images are not compared with each other: near-duplicates between a data set's own splits remain.",
)


def _limits_note(summaries: Mapping[str, str | Path]) -> tuple[str, ...]:
    """The note on the limits of the guard; empty without methods."""
    limits = {tuple(sorted(Summary(**read_json(path)).limits.items())) for path in summaries.values()}
    return tuple(
        f"A pair is checked if its CLIP cosine is at least {values['clip_threshold']:g}"
        f" ({values['neighbours']:g} nearest images per split). It counts if its hashes differ in at most"
        f" {values['hash_threshold']:g} of 256 bits and its fine detail correlates by at least"
        f" {values['correlation']:g}."
        for values in map(dict, sorted(limits))
    )


def _inherited_notes(rows: Sequence[Row], inherited: Mapping[str, str | Path]) -> Iterator[str]:
    """Yield what is inherited, and for each row that inherits anything, examples and the file with all."""
    if inherited:
        yield from INHERITED
    for row in rows:
        if row.inherited:
            pairs = read_inherited(inherited[row.method]).to_pylist()
            named = [
                f"image {pair['index']} of {pair['class_id']}"
                f" ({'started' if pair['edge'] == START else 'learned'} from {pair['split']} image"
                f" {pair['image_id']})"
                for pair in pairs
            ]
            yield f"{row.label}: inherited by {some(named, 3)}; all are in {inherited[row.method]}."


def _cells(row: Row, with_inherited: bool) -> tuple[str, ...]:
    def percent(value: float | None) -> str:
        return NONE if value is None else f"{value:.1f}"

    share = f"{row.either_percent:.2g}%"
    counts = (f"{row.checked}", f"{row.train}", f"{row.val}", f"{row.test}", share, f"{row.test_images}")
    own = (row.top1_percent, row.without_percent)
    baseline = (row.baseline_percent, row.baseline_without_percent)
    passed_on = [NONE if row.inherited is None else f"{row.inherited}"] if with_inherited else []
    return (row.label, *counts, *map(percent, (*own, *baseline)), *passed_on)


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows of ``leakage.csv``."""
    return render.read_csv(path, Row)


def write_leakage_table(
    study: Study,
    leaks: Mapping[str, str | Path],
    repeats: Mapping[str, str | Path],
    summaries: Mapping[str, str | Path],
    predictions: Mapping[str, Sequence[str | Path]],
    outs: Mapping[str, str | Path],
    inherited: Mapping[str, str | Path] | None = None,
    chosen: Mapping[str, str] | None = None,
) -> list[Row]:
    """Write the table to ``outs``, which maps formats (any of ``csv``, ``md``, ``txt``) to paths.

    The other parameters are those of :func:`build_rows`.
    """
    inherited = inherited or {}
    rows = build_rows(study, leaks, repeats, summaries, predictions, inherited, chosen)
    notes = (*NOTES, *_limits_note(summaries), *_inherited_notes(rows, inherited))
    layout = Layout(
        f"Near-duplicates of real images, study {study.study}",
        (*HEADER, "Inherited") if inherited else HEADER,
        (*NUMERIC, True) if inherited else NUMERIC,
        tuple(_cells(row, bool(inherited)) for row in rows),
        notes,
    )
    write_table(outs, layout, rows, width=110)
    return rows


# --- examples -----------------------------------------------------------------------------------------------


def draw_pairs(
    job: Job,
    leaks_path: str | Path,
    index_path: str | Path,
    splits: Mapping[str, str | Path],
    out: str | Path,
) -> None:
    """Draw up to :data:`EXAMPLES` pairs of a method as PNG, each added image beside its real image.

    Pairs with test images come first, then the nearest pairs.

    Parameters
    ----------
    splits : mapping of str to path
        Manifests of ``val`` and ``test``.

    Raises
    ------
    UserError
        A shard or an image of the data set is missing or damaged.
    """
    from matplotlib.figure import Figure

    leaks, index = read_leaks(leaks_path), read_index(index_path)
    pairs = sorted(
        leaks.to_pylist(),
        key=lambda pair: (pair["split"] != "test", pair["hash_distance"], -pair["correlation"]),
    )[:EXAMPLES]
    names = ("class_id", "index", "sha256")  # a mixture has several images of one index
    keys = zip(*(index.column(name).to_pylist() for name in names), strict=True)
    place = {key: row for row, key in enumerate(keys)}
    places = pa.array([place[*(pair[name] for name in names)] for pair in pairs], pa.int64())
    added = load_images(index.take(places), job.folder)
    manifests = {name: read_split(path) for name, path in splits.items()}
    origins = {
        name: dict(zip(split.image_ids, split.sources, strict=True)) for name, split in manifests.items()
    }
    real = open_source(job.study.dataset, job.study.seed, job.study.corpus).load(
        [origins[pair["split"]][pair["image_id"]] for pair in pairs]
    )
    rows = max(1, -(-len(pairs) // PAIRS_PER_ROW))
    figure = Figure(figsize=(2.4 * PAIRS_PER_ROW, 1.7 * rows), layout="constrained")
    axes = figure.subplots(rows, 2 * PAIRS_PER_ROW, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    if not pairs:
        figure.suptitle("no near-duplicates", fontsize=9)
    for position, (pair, one, other) in enumerate(zip(pairs, added, real, strict=True)):
        left, right = axes[2 * position : 2 * position + 2]
        left.imshow(one)
        left.set_title(f"added, {pair['class_id']}", fontsize=6)
        right.imshow(other)
        right.set_title(
            f"{pair['split']}, {pair['kind']}\n{pair['hash_distance']} bits, r = {pair['correlation']:.2f}",
            fontsize=6,
        )
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
