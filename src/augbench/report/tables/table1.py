"""Table 1: every method's accuracy and standard error, and differences from the paper's protocol or defaults.

A study that ``report.paper_study`` sets beside the paper has the paper's numbers, too.

Input: the runs' ``result.json``, the manifests of added images, the config. Output: ``table1.csv`` (full
precision; figures are drawn from it) with a footer, and ``table1_runs.csv`` (one row per run).
:mod:`augbench.report.tables.table1_text` shows the same rows as text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow as pa

from augbench.artifacts.pool import Lack, lacks_of, read_index
from augbench.classifier.history import ALPHA, history_of, read_result
from augbench.config.study import Study
from augbench.data.splits import read_split
from augbench.errors import UserError, some
from augbench.files import read_json, write_text
from augbench.personalise.tasks import end_of_grid
from augbench.report import render
from augbench.report.inference.order import follow
from augbench.report.protocol import Facts, differences, differs, half_precision, paper_results
from augbench.report.render import NONE, Layout, render_csv, spread
from augbench.resample import mean_overlap, overlap

OTHER_QUESTION = (
    "The table says what added images do for a network that has learned from other images, not for one that"
    " begins at random."
)
SEEN = (
    f"{OTHER_QUESTION} Where the study's classes are among these labels, the network has learned them from"
    " far more images than the study's, and accuracies do not compare with those of a network without them."
)


@dataclass(frozen=True)
class RunRow:
    """One classifier: accuracies in percent, epochs (``best_epoch`` counts from 1), numbers of images.

    ``best_epoch`` is the epoch of the kept weights. ``steps``, ``stopped`` and ``rising`` are those of
    :class:`augbench.classifier.history.History`.
    """

    method: str
    run: int
    test_top1_percent: float
    val_top1_percent: float
    best_epoch: int
    epochs: int
    n_real: int
    n_added: int
    n_val: int
    n_test: int
    steps: int | None = None
    stopped: str | None = None
    rising: bool | None = None


@dataclass(frozen=True)
class Row:
    """One method; None for missing values.

    Missing may be: the error of a single run, the overlap if no images are added, the paper's numbers.
    ``split`` names the real images that the classifiers saw. ``overlap`` is the mean share of images that
    two added sets have in common. ``steps`` is the mean number of optimiser steps, ``cut`` the number of runs
    that were cut while their validation accuracy was still rising.
    """

    method: str
    label: str
    family: str
    split: str
    top1_percent: float
    stderr_percent: float | None
    n: int
    real_per_class: float
    added_per_class: float
    overlap: float | None
    paper_top1_percent: float | None = None
    paper_stderr_percent: float | None = None
    steps: float | None = None
    cut: int = 0

    @property
    def is_cut(self) -> bool:
        """Whether most of its runs were cut while rising."""
        return 2 * self.cut > self.n


@dataclass(frozen=True)
class Table1:
    """Table 1: its rows in the order of the config's methods, the runs behind them, and the footer."""

    study: str
    rows: tuple[Row, ...]
    runs: tuple[RunRow, ...]
    notes: tuple[str, ...]


def average_draws(runs: Sequence[RunRow], per_draw: int) -> list[RunRow]:
    """Average the runs of each draw of the training images; the number of the draw becomes the run's.

    Runs of one draw share their training images, so the draws are what differences are tested over. With one
    run per draw, these are the runs.
    """
    grouped: dict[tuple[str, int], list[RunRow]] = {}
    for run in runs:
        grouped.setdefault((run.method, run.run // per_draw), []).append(run)
    return [
        replace(
            same[0],
            run=draw,
            test_top1_percent=fmean(run.test_top1_percent for run in same),
            val_top1_percent=fmean(run.val_top1_percent for run in same),
        )
        for (_, draw), same in grouped.items()
    ]


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean: sample standard deviation (ddof = 1) / sqrt(n); None for a single value."""
    return stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def build_table(
    study: Study,
    results: Iterable[str | Path],
    manifests: Iterable[str | Path] = (),
    excluded: Collection[str] = (),
    draws: Sequence[str | Path] = (),
    lrs: Sequence[str | Path] = (),
    choices: Sequence[str | Path] = (),
) -> Table1:
    """Build Table 1 of a study.

    Parameters
    ----------
    results : iterable of path
        ``result.json`` of every run of every method.
    manifests : iterable of path
        ``resamples/{method}/selected/{r}.parquet`` of every set, for the overlap.
    excluded : collection of str
        Classes that the study leaves out.
    draws : sequence of path
        Training splits of all draws, for their overlap.
    lrs : sequence of path
        ``finetune/{method}/lr.json`` of the rows that search their learning rate.
    choices : sequence of path
        ``selected/{method}.json`` of the rows that choose among others.

    Raises
    ------
    UserError
        A method of the config has no results, or a run appears twice or was not scored on the test split.
    """
    results = list(results)
    runs, classes, dtypes = _read_runs(study, results)
    sets = _read_sets(study, manifests)
    paper = paper_results(study.report.paper_study)
    cut = cut_counts(runs)
    units = average_draws(runs, study.augmentation.resamples) if study.dataset.draws > 1 else runs
    rows = []
    for name, method in study.methods.items():
        own = [run for run in runs if run.method == name]
        values = [unit.test_top1_percent for unit in units if unit.method == name]
        theirs = paper.get(name)
        rows.append(
            Row(
                method=name,
                label=study.label(name),
                family=method.group,
                split=method.real_split,
                top1_percent=fmean(values),
                stderr_percent=standard_error(values),
                n=len(values),
                real_per_class=fmean(run.n_real for run in own) / classes,
                added_per_class=fmean(run.n_added for run in own) / classes,
                overlap=overlap(sets.get(name, ())),
                paper_top1_percent=theirs.top1 if theirs else None,
                paper_stderr_percent=theirs.stderr if theirs else None,
                steps=fmean(run.steps or 0 for run in own),
                cut=cut[name],
            )
        )
    # use.replace leaves some out
    real = max((row.real_per_class for row in rows if row.split == "train"), default=None)
    facts = Facts(classes, real, max(run.n_val for run in runs), max(run.n_test for run in runs), dtypes)
    lacks = {name: _lacks(own) for name, own in sets.items()}
    first = [*first_weights_notes(study, results), *early_weights_notes(study, results)]
    order = _order_of_the_paper(rows, units)
    notes = _notes(study, rows, facts, excluded, draws, lacks, lrs, choices, first, order)
    return Table1(study.study, tuple(rows), tuple(runs), notes)


def _read_runs(study: Study, results: Iterable[str | Path]) -> tuple[list[RunRow], int, list[str]]:
    """Read the runs, sorted by method (as in the config) and number.

    Also returned are the number of classes, and the floating-point types that are known.
    """
    order = {name: position for position, name in enumerate(study.methods)}
    runs, classes, dtypes = [], set(), set()
    for path in results:
        value = read_result(study, path)
        if value["method"] not in order or value["test_top1"] is None:
            problem = (
                "not scored on the test split" if value["method"] in order else f"method {value['method']!r}"
            )
            raise UserError(
                str(path), problem, f"results of the config's methods are expected: {', '.join(order)}"
            )
        classes.add(value["classes"])
        dtypes.add(value.get("dtype"))
        runs.append(
            RunRow(
                **_ending(path, value, study),
                test_top1_percent=100 * value["test_top1"],
                val_top1_percent=100 * value["val_top1"],
                best_epoch=value["best_epoch"] + 1,
                **{
                    name: value[name]
                    for name in ("method", "run", "epochs", "n_real", "n_added", "n_val", "n_test")
                },
            )
        )
    keys = [(run.method, run.run) for run in runs]
    if len(set(keys)) < len(keys) or len(classes) > 1:
        raise UserError(
            "results",
            "a run appears twice, or runs differ in their number of classes",
            "delete the classifiers' folder and run again",
        )
    if missing := [name for name in order if name not in {run.method for run in runs}]:
        raise UserError(
            "results", f"none of {', '.join(missing)}", "train the classifiers of every method first"
        )
    known = sorted(dtype for dtype in dtypes if dtype is not None)
    return sorted(runs, key=lambda run: (order[run.method], run.run)), classes.pop(), known


def _ending(path: str | Path, value: Mapping[str, Any], study: Study) -> dict[str, Any]:
    """Steps, reason and rise of a run; of runs of earlier versions, derived from the history beside it."""
    names = ("steps", "stopped", "rising")
    if all(name in value for name in names):
        return {name: value[name] for name in names}
    history = history_of(study, path, value)
    return {name: getattr(history, name) for name in names}


def cut_counts(runs: Iterable[RunRow]) -> Counter[str]:
    """Number of runs by method that were cut while their validation accuracy was still rising."""
    return Counter(run.method for run in runs if run.rising)


def _read_sets(study: Study, manifests: Iterable[str | Path]) -> dict[str, list[pa.Table]]:
    """Manifests of the sets of each method, by method (the name of its folder)."""
    sets: dict[str, list[pa.Table]] = {}
    for path in map(Path, manifests):
        sets.setdefault(study.row_and_draw(path.parents[1].name)[0], []).append(read_index(path))
    return sets


def _lacks(sets: Iterable[pa.Table]) -> dict[str, Lack]:
    """Images that classes lack in a method's sets, in the set that lacks most of them."""
    worst: dict[str, Lack] = {}
    for class_id, lack in (item for rows in sets for item in lacks_of(rows).items()):
        worst[class_id] = max(lack, worst.get(class_id, lack), key=lambda one: one.images)
    return worst


def _lack_notes(study: Study, lacks: Mapping[str, Mapping[str, Lack]]) -> Iterator[str]:
    """Yield a note per method whose sets have fewer images of some classes than wanted, and why."""
    for method, own in lacks.items():
        for refused in (True, False):
            short = {name: lack for name, lack in own.items() if bool(lack.flagged) is refused}
            if not short:
                continue
            because = (
                f"the safety checker flagged {sum(lack.flagged for lack in short.values())} samples of the"
                " missing images, after which they were given up (augmentation.attempts_per_image)"
                if refused
                else "retrieval found too few"
            )
            counts = some(
                [f"{name} {lack.wanted - lack.images} of {lack.wanted}" for name, lack in short.items()]
            )
            yield (
                f"{study.label(method)}: training sets have fewer images than wanted of {len(short)} classes,"
                f" because {because}. These classes stay in the study. Fewest images of a set: {counts}."
            )


def _notes(
    study: Study,
    rows: Sequence[Row],
    facts: Facts,
    excluded: Collection[str],
    draws: Sequence[str | Path],
    lacks: Mapping[str, Mapping[str, Lack]],
    lrs: Sequence[str | Path],
    choices: Sequence[str | Path],
    first_weights: Sequence[str],
    order_of_the_paper: str,
) -> tuple[str, ...]:
    """The footer: notes on columns, classes left out, differences from the protocol, the config's notes."""
    notes = [
        _draws_note(study, draws)
        if draws
        else "±: standard error of the mean over n classifiers (sample standard deviation, ddof = 1, divided"
        " by sqrt(n)). Each classifier has its own seed. Where images are added, it also has its own set"
        " drawn from the method's pool. Rows without added images vary in the seed only."
    ]
    notes += first_weights
    notes += _training_notes(study, rows)
    notes += composition_notes(study)
    notes += choice_notes(study, choices)
    if study.dataset.imbalance is not None:
        lost = " and the ratio without the classes that are left out" if excluded else ""
        notes.append(
            "The classes form a long tail: images per class are means over classes. class_sizes.md has every"
            f" class{lost}, class_groups.md macro accuracy and that of frequent and rare classes."
        )
    if any(row.overlap is not None for row in rows):
        notes.append(
            "Overlap: mean share of images that two sets of a method have in common. At 100% the sets are"
            " identical, and the standard error measures the seed only."
        )
    if study.report.paper_study is not None:
        notes.append(
            f"Paper: Burg et al., TMLR 2023 (arXiv 2304.10253), {study.report.paper_study}. Where data or"
            f" models differ, compare the order of the rows, not the numbers.{order_of_the_paper}"
        )
    elif halves := half_precision(facts):
        notes.append(
            f"Matrix products in training and scoring are computed in {', '.join(halves)}; weights are "
            "float32."
        )
    notes += _excluded_notes(study, excluded)
    notes += _lack_notes(study, lacks)
    notes += _ends_of_grids(study, lrs)
    notes += precision_notes(study, lrs)
    notes += [f"{differs(study)}{difference}." for difference in differences(study, facts)]
    return (*notes, *(" ".join(note.split()) for note in study.report.notes))


def _order_of_the_paper(rows: Iterable[Row], units: Iterable[RunRow]) -> str:
    """Sentence on whether rows with added images are in the paper's order; empty without one to compare."""
    theirs = {
        row.method: row.paper_top1_percent
        for row in rows
        if row.added_per_class and row.paper_top1_percent is not None
    }
    ours: dict[str, dict[int, float]] = {}
    for unit in units:
        if unit.method in theirs:
            ours.setdefault(unit.method, {})[unit.run] = unit.test_top1_percent
    found = follow(ours, theirs)
    if found is None:
        return ""
    reach = "" if found.low is None else f" [{found.low:+.2f} to {found.high:+.2f}]"
    return (
        f" Over the {found.rows} rows with added images, a difference of one point in the paper comes with"
        f" {found.slope:+.2f}{reach} points here: {found.verdict} (least squares over rows in each run, mean"
        f" and 95% t interval over {found.n} runs). Kendall's rank correlation of the means:"
        f" {found.tau:+.2f}."
    )


def _excluded_notes(study: Study, excluded: Collection[str]) -> Iterator[str]:
    """Yield notes on the classes that are left out, and on what was still made of them."""
    if not excluded:
        return
    because = (
        "by the config (retrieval.exclude)"
        if study.retrieval.listed
        else "because retrieval found too few images"
    )
    yield f"Left out of the whole study {because}: {len(excluded)} classes ({', '.join(sorted(excluded))})."
    shared = {name: row for name, row in study.personalised.items() if row.shares_weights}
    sharing = [study.label(name) for name in shared]
    what = "U-Net" if all(row.train_unet for row in shared.values()) else "U-Net or adapter"
    if sharing and not study.retrieval.listed and study.finetune.excluded_classes == "learn":
        yield (
            f"The {what} that all classes share ({', '.join(sharing)}) was trained on these classes, too"
            " (finetune.excluded_classes)."
        )


def _ends_of_grids(study: Study, lrs: Sequence[str | Path]) -> Iterator[str]:
    """Yield a note on the rows whose learning rate was chosen at an end of its grid, if there are any."""
    found = []
    for path in map(Path, lrs):
        record, (name, draw) = read_json(path), study.row_and_draw(path.parent.name)
        if (end := end_of_grid(record)) is not None:
            which = f", draw {draw}" if study.dataset.draws > 1 else ""
            of = f"{end} of {len(record['factors'])} factors"
            found.append(f"{study.label(name)}{which} (x {record['factor']:g}, the {of})")
    if found:
        yield (
            f"Learning rates at an end of their grid: {', '.join(found)}. A better one may lie beyond;"
            " widen lr_grid."
        )


def precision_notes(study: Study, lrs: Sequence[str | Path]) -> Iterator[str]:
    """Yield a note on the floating-point types that fine-tuning computed in, except float32."""
    computed: dict[str, set[str]] = {}
    for path in map(Path, lrs):
        row = study.row_and_draw(path.parent.name)[0]
        computed.setdefault(row, set()).update(read_json(path).get("dtypes", ()))
    rows: dict[str, list[str]] = {}
    for name in study.personalised:
        for dtype in sorted(computed.get(name) or {study.finetune.dtype}):
            rows.setdefault(dtype, []).append(study.label(name))
    rows.pop("float32", None)
    for dtype, labels in rows.items():
        fast = "the GPU's fast type (auto)" if dtype == "auto" else dtype
        yield f"Fine-tuning computed in {fast}, what trains is kept in float32: {', '.join(labels)}."


def _draws_note(study: Study, draws: Sequence[str | Path]) -> str:
    """What the standard error measures in a study with several draws of the training images."""
    common = mean_overlap([set(read_split(path).image_ids) for path in draws])
    runs = study.augmentation.resamples
    each = "a classifier" if runs == 1 else f"{runs} classifiers"
    return (
        "±: standard error of the mean over n draws of the training images (sample standard deviation, ddof"
        f" = 1, divided by sqrt(n)), each with {each} of its own seed. Two draws share {common:.0%} of their"
        " training images on average. Rows whose images depend on the training images make them in each draw;"
        " the others draw from one pool. In the other tables a run is one draw."
    )


def first_weights_notes(study: Study, results: Iterable[str | Path]) -> Iterator[str]:
    """Yield notes on classifiers that do not begin with random weights: labels seen, zero-shot accuracy."""
    classifier = study.classifier
    if classifier.begins_trained:
        yield (
            "Classifiers begin with weights trained before. Labels that these have seen:"
            f" {classifier.labels_seen}. {SEEN if classifier.has_seen_imagenet else OTHER_QUESTION}"
        )
    found = [read_json(path).get("zero_shot_top1") for path in results]
    scored = sorted({100 * value for value in found if value is not None})
    if scored:
        values = f"{scored[0]:.2f}%" if len(scored) == 1 else f"{scored[0]:.2f} to {scored[-1]:.2f}%"
        yield (
            "Zero-shot: before any training, CLIP with the class names as its last layer has a top-1"
            f" accuracy of {values} on the test split, the same in every row and run."
        )


def early_weights_notes(study: Study, results: Iterable[str | Path]) -> Iterator[str]:
    """Yield a note per row with scored weights from before the steps of ``use.real_at_end`` in some runs."""
    config = study.classifier
    if config.keep != "best":
        return
    switches = {
        name: config.total_steps - row.use.end_steps(config.total_steps)
        for name, row in study.methods.items()
        if row.use.real_at_end
    }
    early: dict[str, list[bool]] = {}
    for path in results if switches else ():
        value = read_result(study, path)
        if (name := value["method"]) in switches:
            kept = history_of(study, path, value).kept_step
            early.setdefault(name, []).append(kept <= switches[name])
    for name, runs in early.items():
        if any(runs):
            yield (
                f"{study.label(name)}: in {sum(runs)} of {len(runs)} runs, the best validation accuracy, whose"
                " weights are scored (classifier.keep: best), is from before the steps on real images only."
            )


def _training_notes(study: Study, rows: Sequence[Row]) -> Iterator[str]:
    """Yield notes on the steps of the rows, on rows cut while rising, and on controls."""
    steps = "Steps: optimiser steps per classifier, mean over runs."
    if len({row.steps for row in rows}) > 1:
        steps += (
            " Rows differ in their steps, so a difference between them is not due to the images alone;"
            " compare with a control (real, repeat: 2) or use classifier.schedule: steps."
        )
    yield steps
    if any(row.is_cut for row in rows):
        yield (
            f"{CUT}: most of the row's runs were cut while their validation accuracy was still rising: before"
            " the learning rate was ever lowered, or with a rise over the last half of the validations"
            f" (Kendall's rank correlation, one-sided, p < {ALPHA:g} per run). These classifiers had not"
            " finished learning. More steps would change their accuracy, and perhaps the order of the rows."
        )
    for name, method in study.methods.items():
        if method.real_repeats > 1:
            shows = (
                "With as many steps as every row, it should equal the row without repetition: the difference"
                " shows what chance alone does."
                if study.classifier.schedule == "steps"
                else "It shows what more steps per epoch are worth, and nothing about new images."
            )
            yield (
                f"{study.label(name)}: a control with no added image. Its classifiers see the same real"
                f" images {method.real_repeats} times per pass. {shows}"
            )
        if words := method.use.words:
            yield (
                f"{study.label(name)}: its classifiers use its images otherwise than by default, which is to"
                f" train on all of them alike: {words}."
            )
        if method.shuffles_labels:
            yield (
                f"{study.label(name)}: a placebo. It adds images of {_pools(study, name)} with"
                " labels permuted at random over all images of a set. It shows what added images do that say"
                " nothing about their class; it does not show what wrong labels of one class do."
            )


def _pools(study: Study, name: str) -> str:
    """Rows whose images a row adds, with their shares in a mixture."""
    shares = study.methods[name].shares
    return ", ".join(
        f"{study.label(pool)} ({100 * shares[pool]:.4g}%)" if shares else study.label(pool)
        for pool in study.pools_of(name)
    )


def composition_notes(study: Study) -> Iterator[str]:
    """Yield a note per row that mixes pools or filters them."""
    for name, row in study.drawn.items():
        if row.shares:
            yield (
                f"{study.label(name)}: a mixture. Of each class's added images, the share in brackets comes"
                f" from {_pools(study, name)}."
            )
        if row.keep is not None:
            scorer = study.filtering_row(name)
            by = "CLIP (zero-shot)" if scorer is None else f"the classifier of {study.label(scorer)}, run 0"
            yield (
                f"{study.label(name)}: filtered. Of {_pools(study, name)}, those {100 * row.keep.share:.4g}%"
                f" of each class's images are kept that {by} gives the highest probability of their class,"
                " before sets are drawn."
            )


def choice_notes(study: Study, choices: Sequence[str | Path]) -> Iterator[str]:
    """Yield a note per row that chooses among others: which one, and the validation accuracies."""
    for name, row in study.choosing.items():
        found = []
        for record in map(read_json, choices):
            if study.row_and_draw(record["method"])[0] != name:
                continue
            draw = study.row_and_draw(record["method"])[1]
            accuracies = ", ".join(
                f"{study.label(study.row_and_draw(one['candidate'])[0])} {100 * one['val_top1']:.1f}%"
                for one in record["candidates"]
            )
            chosen = study.label(study.row_and_draw(record["selected"])[0])
            found.append(f"{f'draw {draw}: ' if study.dataset.draws > 1 else ''}{chosen} ({accuracies})")
        yield (
            f"{study.label(name)}: the row with the best validation accuracy among"
            f" {', '.join(map(study.label, row.among))}, mean over runs; its sets and classifiers are that"
            f" row's. Chosen: {'; '.join(found)}."
        )


# --- cells --------------------------------------------------------------------------------------------------


CUT = "↑"  # sign of rows that were cut while rising
HEADER = (
    "Method", "Family", "Real / class", "Added / class", "Steps", "Top-1 (%)", "n", "Overlap", "Paper (%)",
)  # fmt: skip
NUMERIC = (False, False, True, True, True, True, True, True, True)
PAPERS_FIELDS = ("paper_top1_percent", "paper_stderr_percent")


def _stands_beside_the_paper(rows: Sequence[Row]) -> bool:
    """Whether the paper has a number for a row."""
    return any(row.paper_top1_percent is not None for row in rows)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.label,
        row.family,
        f"{row.real_per_class:.4g}",
        f"{row.added_per_class:.4g}",
        NONE if row.steps is None else f"{row.steps:.0f}{f' {CUT}' if row.is_cut else ''}",
        spread(row.top1_percent, row.stderr_percent),
        str(row.n),
        NONE if row.overlap is None else f"{row.overlap:.0%}",
        spread(row.paper_top1_percent, row.paper_stderr_percent),
    )


# --- formats ------------------------------------------------------------------------------------------------


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows of ``table1.csv``."""
    return render.read_csv(path, Row)


def layout_of(study: str, rows: Sequence[Row], notes: tuple[str, ...], answer: str = "") -> Layout:
    """Table 1 as displayed, with the study's answer above it; without the paper's column if it is empty."""
    columns = len(HEADER) if _stands_beside_the_paper(rows) else len(HEADER) - 1
    cells = tuple(_cells(row)[:columns] for row in rows)
    return Layout(f"Table 1, study {study}", HEADER[:columns], NUMERIC[:columns], cells, notes, answer)


def write_table1(
    study: Study,
    results: Iterable[str | Path],
    manifests: Iterable[str | Path],
    outs: Mapping[str, str | Path],
    excluded: Collection[str] = (),
    draws: Sequence[str | Path] = (),
    lrs: Sequence[str | Path] = (),
    choices: Sequence[str | Path] = (),
) -> Table1:
    """Write Table 1 to ``outs``: paths by format, ``csv`` and ``runs``.

    :mod:`augbench.report.tables.table1_text` writes it as text.
    """
    table = build_table(study, results, manifests, excluded, draws, lrs, choices)
    without = () if _stands_beside_the_paper(table.rows) else PAPERS_FIELDS
    texts = {"csv": render_csv(table.rows, table.notes, without), "runs": render_csv(table.runs)}
    for kind, path in outs.items():
        write_text(path, texts[kind])
    return table
