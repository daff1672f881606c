"""The report of the leakage guard: added images that are near-duplicates of real ones, effects, examples.

Input: each method's pairs and summary (:mod:`augbench.leakage.stage`), its runs' predictions, and the
images of some pairs. Output: a table (CSV in full precision, Markdown, plain text), and one picture per
method.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from augbench.artifacts.parquet import REMAKE
from augbench.artifacts.pool import load_images, read_index
from augbench.config.draws import drawn_name
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

    ``checked``, ``train``, ``val`` and ``test`` count added images, of all draws of the training images in
    which the method has images of its own. ``test_images`` counts distinct test images that have a
    near-duplicate. ``without`` is the accuracy of each draw's classifiers on the test images without a
    near-duplicate in that draw's images, ``test_left`` the number of these, in the draw with the fewest.
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
    runs: Iterable[tuple[str | Path, pa.Table]],
) -> tuple[float | None, float | None, int | None]:
    """Mean accuracy over runs, in percent: on all test images, and on those without near-duplicates.

    A run is its predictions and the pairs of its draw. The third value is the smallest number of test images
    without near-duplicates.
    """
    everything, without, left = [], [], []
    for path, leaks in runs:
        predictions = pq.read_table(path)
        share, _ = accuracy_without(predictions, leaks.slice(0, 0))
        share_without, remaining = accuracy_without(predictions, leaks)
        everything.append(share)
        without.append(share_without)
        left.append(remaining)

    def mean(shares: list[float | None]) -> float | None:
        values = [share for share in shares if share is not None]
        return 100 * fmean(values) if values else None

    return mean(everything), mean(without), min(left, default=None)


def searched_rows(
    study: Study, name: str, searched: Collection[str], chosen: Mapping[str, str] | None = None
) -> list[str]:
    """Row whose pairs are those of row ``name``, for each draw of the training images; empty if none is.

    It is the row of that draw, or the row that was chosen there. Images that are common to all draws are
    searched once, under the name of the first draw's row.

    Parameters
    ----------
    searched : collection of str
        Rows whose pairs the guard has, with the names of their draws.
    chosen : mapping of str to str, optional
        As in :func:`build_rows`.
    """
    found: list[str] = []
    for draw in range(study.dataset.draws):
        drawn = drawn_name(name, draw)
        source = (chosen or {}).get(drawn, drawn)
        found += [row for row in (source, study.row_and_draw(source)[0]) if row in searched][:1]
    return found


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
        with training images, and the summaries of the former. Here and below, a method of a further draw of
        the training images has its unfolded name (:mod:`augbench.config.draws`).
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
    baseline = next((name for name, method in study.real.items() if method.split == "train"), "")
    rows = []
    for name in study.methods:
        sources = searched_rows(study, name, leaks, chosen)
        found = {
            row: _Searched.read(row, leaks[row], repeats[row], summaries[row], (inherited or {}).get(row))
            for row in dict.fromkeys(sources)
        }
        if not found:
            continue
        touched = [found[row].touched for row in sources]
        full, without, left = _accuracies(_by_draw(name, predictions, touched))
        baseline_full, baseline_without, _ = _accuracies(_by_draw(baseline, predictions, touched))
        pools = [*found.values()]
        summed = [pool.summary for pool in pools]
        checked = sum(summary.checked for summary in summed)
        rows.append(
            Row(
                method=name,
                label=study.label(name),
                checked=checked,
                train=sum(count_images(pool.repeated, "train") for pool in pools),
                val=sum(summary.val for summary in summed),
                test=sum(summary.test for summary in summed),
                either_percent=100 * sum(summary.either for summary in summed) / checked if checked else 0.0,
                test_images=len({image for pool in pools for image in pool.test_images}),
                test_left=left,
                top1_percent=full,
                without_percent=without,
                baseline_percent=baseline_full,
                baseline_without_percent=baseline_without,
                inherited=_sum(pool.inherited for pool in pools),
            )
        )
    return rows


def _by_draw(
    name: str, predictions: Mapping[str, Sequence[str | Path]], touched: Sequence[pa.Table]
) -> Iterator[tuple[str | Path, pa.Table]]:
    """Yield the predictions of a row's classifiers, each with the pairs of its draw."""
    for draw, pairs in enumerate(touched):
        for path in predictions.get(drawn_name(name, draw), ()):
            yield path, pairs


def _sum(counts: Iterable[int | None]) -> int | None:
    """Sum of the counts that there are; None if there is none."""
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


@dataclass(frozen=True)
class _Searched:
    """What the guard found in one pool.

    ``pairs`` are with validation and test images, ``repeated`` with training images. ``passed_on`` are
    inherited near-duplicates, None for rows that are not built on other rows' images.
    """

    summary: Summary
    pairs: pa.Table
    repeated: pa.Table
    passed_on: pa.Table | None

    @classmethod
    def read(
        cls,
        row: str,
        leaks: str | Path,
        repeats: str | Path,
        summary: str | Path,
        inherited: str | Path | None,
    ) -> _Searched:
        """Read the files of one row; a UserError if they belong to another row."""
        found = cls(
            Summary(**read_json(summary)),
            read_leaks(leaks),
            read_leaks(repeats),
            None if inherited is None else read_inherited(inherited),
        )
        for path, table in ((leaks, found.pairs), (repeats, found.repeated)):
            if set(table.column("method").to_pylist()) - {row} or found.summary.method != row:
                raise UserError(str(path), f"pairs of another method than {row}", REMAKE)
        return found

    @property
    def touched(self) -> pa.Table:
        """Real images that the pool's images show, or were made from: columns split and image_id."""
        tables = [self.pairs, *([] if self.passed_on is None else [self.passed_on])]
        return pa.concat_tables([table.select(REAL) for table in tables])

    @property
    def test_images(self) -> set[str]:
        """Test images that have a near-duplicate in the pool."""
        return {pair["image_id"] for pair in self.pairs.select(REAL).to_pylist() if pair["split"] == "test"}

    @property
    def inherited(self) -> int | None:
        """Number of images with an inherited near-duplicate."""
        return None if self.passed_on is None else count_inherited(self.passed_on)


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

DRAWS = (
    "A row whose images depend on the training images has images of its own in each draw of these. "
    "Checked, Near train, Near val, Near test and Inherited are sums over the draws, Test images are "
    "distinct ones of all draws, and Without leaves out, for each classifier, the test images with a "
    "near-duplicate in its own draw's images. Images that all draws share count once, and Near train "
    "compares them with the first draw's training images.",
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


def _inherited_notes(
    rows: Mapping[str, Sequence[str]], study: Study, inherited: Mapping[str, str | Path]
) -> Iterator[str]:
    """Yield what is inherited, and for each pool that inherits anything, examples and the file with all.

    ``rows`` are the rows whose pairs the table's rows have (:func:`searched_rows`).
    """
    if inherited:
        yield from INHERITED
    for method, sources in rows.items():
        for name in dict.fromkeys(source for source in sources if source in inherited):
            if not (pairs := read_inherited(inherited[name]).to_pylist()):
                continue
            named = [
                f"image {pair['index']} of {pair['class_id']}"
                f" ({'started' if pair['edge'] == START else 'learned'} from {pair['split']} image"
                f" {pair['image_id']})"
                for pair in pairs
            ]
            yield f"{study.label(method)}: inherited by {some(named, 3)}; all are in {inherited[name]}."


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
    sources = {row.method: searched_rows(study, row.method, leaks, chosen) for row in rows}
    notes = (
        *NOTES,
        *(DRAWS if study.dataset.draws > 1 else ()),
        *_limits_note(summaries),
        *_inherited_notes(sources, study, inherited),
    )
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
    leaks: Sequence[str | Path],
    indexes: Sequence[str | Path],
    splits: Mapping[str, str | Path],
    out: str | Path,
) -> None:
    """Draw up to :data:`EXAMPLES` pairs of a method as PNG, each added image beside its real image.

    Pairs with test images come first, then the nearest pairs.

    Parameters
    ----------
    leaks, indexes : sequence of path
        Pairs of the method, and the index of its pool; of every draw in which it has images of its own.
    splits : mapping of str to path
        Manifests of ``val`` and ``test``.

    Raises
    ------
    UserError
        A shard or an image of the data set is missing or damaged.
    """
    from matplotlib.figure import Figure

    index = pa.concat_tables([read_index(path).replace_schema_metadata() for path in indexes])
    pairs = sorted(
        (pair for path in leaks for pair in read_leaks(path).to_pylist()),
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
