"""Cost: what every method took to make or find its images and to train on them, and what a point of accuracy cost.

Flows in: the benchmark files that Snakemake leaves of every job, the classifiers' ``timing.json``, sizes on disk, ``table1.csv``. Flows out: ``cost.csv``
(full precision) and Markdown: one row per method, and one per step that methods share.

A row's cost is what that row alone would have taken: a row that draws from another one's pool is charged for that pool too, so rows do not add up. Reports
and the guard against leakage look at all methods alike and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from augbench.files import read_json, write_text
from augbench.plan.jobs import job_files, read_seconds
from augbench.plan.paths import Plan
from augbench.report.render import NONE, Layout, read_csv, render_csv, render_markdown, signed
from augbench.report.tables import table1
from augbench.report.tables.statistics import baseline_of

# Stages with jobs that belong to one method.
MAKING = (
    "prompts",
    "search",
    "retrieve",
    "finetune",
    "choose_lr",
    "candidates",
    "pool_candidates",
    "classify_candidates",
    "select",
    "generate",
)
TRAINING = ("index_pool", "resample", "classify")
ON_GPU = frozenset({"search", "retrieve", "finetune", "candidates", "generate", "cluster", "embed_corpus"})
ON_CLASSIFIER_GPUS = frozenset({"classify", "classify_candidates"})
# Steps that methods share, and which methods need them.
ALL, GENERATION, RETRIEVAL, CLUSTERED = "all rows", "generation", "retrieval", "rows with clusters"
SHARED = {
    "data": (ALL, ("classes", "splits", "fetch_fashion_mnist")),
    "clusters": (CLUSTERED, ("cluster", "fetch_inception")),
    "diffusion model": (GENERATION, ("fetch_diffusion", "fetch_safety_checker", "fingerprint_diffusion")),
    "CLIP": (RETRIEVAL, ("fetch_clip", "fetch_aesthetics", "fingerprint_clip")),
    "corpus": (RETRIEVAL, ("corpus", "embed_corpus", "index_corpus", "retrieval_summary")),
}
HOUR, MEGABYTE = 3600, 1e6


@dataclass(frozen=True)
class Hours:
    """Time of some jobs in hours: their run times added up, what they used of CPUs, and how long they held GPUs.

    ``cpu`` lacks jobs that were over before Snakemake measured them.
    """

    wall: float = 0.0
    cpu: float = 0.0
    gpu: float = 0.0

    def __add__(self, other: Hours) -> Hours:
        return Hours(self.wall + other.wall, self.cpu + other.cpu, self.gpu + other.gpu)


@dataclass(frozen=True)
class Row:
    """One method, or a step that methods share (``method`` is empty then, and ``needed_by`` says whose it is).

    Attributes
    ----------
    make_wall_hours, make_cpu_hours, make_gpu_hours : float
        Jobs that make or find the images: prompts, search, download, fine-tuning, selection, sampling.
    train_wall_hours, train_cpu_hours, train_gpu_hours : float
        Jobs that draw the training sets and train classifiers on them, all runs.
    disk_mb : float
        Files of the row in the study's folder, in 10^6 bytes; files with several names count once.
    downloaded_mb : float or None
        Images fetched from the web for the row, as far as they are kept; None where it fetches none.
    gain_points : float or None
        Accuracy over the baseline's, in points.
    points_per_hour : float or None
        That, over the wall hours of making or finding the images; None where nothing was made.
    points_per_hour_with_shared : float or None
        The same with the shared steps that the row needs, as if it were the only one to need them.
    """

    method: str
    label: str
    needed_by: str
    make_wall_hours: float
    make_cpu_hours: float
    make_gpu_hours: float
    train_wall_hours: float
    train_cpu_hours: float
    train_gpu_hours: float
    disk_mb: float
    downloaded_mb: float | None
    gain_points: float | None
    points_per_hour: float | None
    points_per_hour_with_shared: float | None


def hours_of(path: str | Path, gpus: int) -> Hours:
    """The time in a benchmark file, all its repeats; ``gpus`` is how many its job held.

    Raises
    ------
    UserError
        Another file, or a damaged one.
    """
    wall, cpu = (seconds / HOUR for seconds in read_seconds(path))
    return Hours(wall, cpu, wall * gpus)


def gpus_used(plan: Plan) -> tuple[int, int]:
    """GPUs that a sampling job and a classifier's job held, from the classifiers' own records; 0 where they trained on CPUs."""
    for method in plan.methods:
        for run in plan.runs:
            path = Path(plan.run_files(method, run)[0]).with_name("timing.json")
            if path.exists():
                gpus = int(read_json(path).get("gpus", 0))
                return min(gpus, 1), gpus
    return 0, 0


def size_mb(folders: Iterable[str | Path]) -> float:
    """Size of all files below ``folders`` in 10^6 bytes; a file with several names there counts once."""
    sizes: dict[tuple[int, int], int] = {}
    for folder in folders:
        for path in Path(folder).rglob("*"):
            if path.is_file():
                stat = path.stat()
                sizes[stat.st_dev, stat.st_ino] = stat.st_size
    return sum(sizes.values()) / MEGABYTE


def build_rows(plan: Plan, table: str | Path) -> list[Row]:
    """Rows of all methods in the config's order, then the shared steps that took time.

    Parameters
    ----------
    table : path
        ``table1.csv``.
    """
    entries = {row.method: row for row in table1.read_rows(table)}
    baseline = baseline_of([*entries.values()])
    gpus, classifier_gpus = gpus_used(plan)
    held = {**dict.fromkeys(ON_GPU, gpus), **dict.fromkeys(ON_CLASSIFIER_GPUS, classifier_gpus)}
    jobs = job_files(plan.path("benchmarks"), (*MAKING, *TRAINING))
    times = {job: hours_of(job.path, held.get(job.stage, 0)) for job in jobs}
    shared = _shared(plan, held)
    rows = []
    for method, config in plan.study.methods.items():
        making, training = Hours(), Hours()
        pool, parts = plan.study.pool_row(method), len(plan.parts(method)) if config.adds_images else 0
        for job, hours in times.items():
            if job.stage in TRAINING and job.method == method:
                training += hours
            elif job.stage in MAKING and job.method == pool and job.part < max(1, parts):
                making += hours
        gain = (
            entries[method].top1_percent - entries[baseline].top1_percent
            if baseline is not None and method != baseline
            else None
        )
        rows.append(
            Row(
                method,
                entries[method].label,
                "",
                making.wall,
                making.cpu,
                making.gpu,
                training.wall,
                training.cpu,
                training.gpu,
                size_mb(_folders(plan, method)),
                _downloaded(plan, pool),
                gain,
                *_per_hour(
                    gain,
                    making.wall,
                    sum(step.make_wall_hours for step in shared if step.needed_by in _needs(plan, pool)),
                ),
            )
        )
    return [*rows, *shared]


def _per_hour(gain: float | None, own: float, shared: float) -> tuple[float, float] | tuple[None, None]:
    """Points per hour of a row's own jobs, and of these and the shared ones."""
    return (None, None) if gain is None or own <= 0 else (gain / own, gain / (own + shared))


def _needs(plan: Plan, pool: str) -> set[str]:
    """Who needs the shared steps that a row needs, in the words of :data:`SHARED`."""
    needs = {ALL}
    if pool in plan.study.retrieved:
        needs.add(RETRIEVAL)
    if pool in plan.study.generated:
        needs.add(GENERATION)
    if pool in plan.study.personalised and plan.study.personalised[pool].clusters > 1:
        needs.add(CLUSTERED)
    return needs


def _folders(plan: Plan, method: str) -> list[str]:
    """Folders with a row's files; a row that draws from another one's pool needs that row's images, too."""
    own = [plan.path(stage, method) for stage in ("resamples", "classifiers")]
    pool = plan.study.pool_row(method)
    return [*own, *(plan.path(stage, pool) for stage in ("shards", "finetune", "retrieval"))]


def _downloaded(plan: Plan, method: str) -> float | None:
    """Size of the files that a row fetched and kept."""
    folder = Path(plan.path(".downloads", method))
    return size_mb([folder]) if folder.is_dir() else None


def _shared(plan: Plan, held: Mapping[str, int]) -> list[Row]:
    """A row per shared step of which there are benchmark files."""
    rows = []
    for label, (needed_by, stages) in SHARED.items():
        paths = {stage: Path(plan.path("benchmarks", f"{stage}.tsv")) for stage in stages}
        hours = Hours()
        for stage, path in paths.items():
            if path.exists():
                hours += hours_of(path, held.get(stage, 0))
        if hours.wall:
            disk = size_mb([plan.path("corpus")]) if label == "corpus" else 0.0
            rows.append(
                Row(
                    method="",
                    label=label,
                    needed_by=needed_by,
                    make_wall_hours=hours.wall,
                    make_cpu_hours=hours.cpu,
                    make_gpu_hours=hours.gpu,
                    train_wall_hours=0.0,
                    train_cpu_hours=0.0,
                    train_gpu_hours=0.0,
                    disk_mb=disk,
                    downloaded_mb=None,
                    gain_points=None,
                    points_per_hour=None,
                    points_per_hour_with_shared=None,
                )
            )
    return rows


# --- what is shown ----------------------------------------------------------------------------------------------------


NUMERIC = (False, *[True] * 11)


def _unit(rows: Iterable[Row]) -> tuple[str, float]:
    """Hours, or minutes where no row took an hour; and how many of them an hour has."""
    longest = max((row.make_wall_hours + row.train_wall_hours for row in rows), default=0.0)
    return ("hours", 1) if longest >= 1 else ("minutes", 60)


def _header(unit: str) -> tuple[str, ...]:
    times = (f"job-{unit}", f"CPU-{unit}", f"GPU-{unit}")
    return (
        "Method",
        *(f"Images: {time}" for time in times),
        *(f"Training: {time}" for time in times),
        "Disk (MB)",
        "Downloads (MB)",
        "Gain (points)",
        "Points per job-hour",
        "with shared steps",
    )


def _notes(plan: Plan) -> tuple[str, ...]:
    notes = [
        "Images: jobs that make or find a row's images: prompts, search and download, or fine-tuning, candidates and their selection, and sampling. Training: jobs that"
        " draw its training sets and train and score a classifier on each.",
        "Job time: run times of the jobs, added up; side by side they take less. CPU and GPU time: what these jobs used of CPUs, and how long they held GPUs.",
        "Points per job-hour: gain in accuracy over the baseline, over the job-hours of making or finding the images; where the gain's error is as large as the gain"
        " (statistics.md), this figure says nothing.",
        "Shared steps serve several rows, and are in none of the times above: the corpus is embedded once for all retrieval, a model fetched once for all"
        " generation. 'With shared steps' charges a row with all those that it needs, as if it were alone.",
        "The diffusion model's training and the collection of the corpus are the work of others, and not counted.",
        "Times are those of the last run of each job: where images came from the store, as after an interruption, they are too small.",
    ]
    if plan.study.drawn:
        notes.append(
            "A row that draws from another row's pool is charged for that pool, so that rows do not add up."
        )
    return tuple(notes)


def _cells(row: Row, per_hour: float) -> tuple[str, ...]:
    hours = [getattr(row, field.name) for field in fields(Row) if field.name.endswith("_hours")]
    return (
        row.label if row.method else f"shared by {row.needed_by}: {row.label}",
        *(f"{per_hour * value:,.2f}" if value else "0" for value in hours),
        f"{row.disk_mb:,.1f}",
        NONE if row.downloaded_mb is None else f"{row.downloaded_mb:,.1f}",
        signed(row.gain_points),
        *map(_rate, (row.points_per_hour, row.points_per_hour_with_shared)),
    )


def _rate(value: float | None) -> str:
    """Points per hour in three digits."""
    return NONE if value is None else f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"


def read_rows(path: str | Path) -> list[Row]:
    """The rows of ``cost.csv``."""
    return read_csv(path, Row)


def write_cost(plan: Plan, table: str | Path, outs: Mapping[str, str | Path]) -> list[Row]:
    """Write the costs to ``outs``: paths by format (``csv``, ``md``), those that are given; parameters as :func:`build_rows`."""
    rows, notes = build_rows(plan, table), _notes(plan)
    unit, per_hour = _unit(rows)
    layout = Layout(
        f"Cost, study {plan.study.study}",
        _header(unit),
        NUMERIC,
        tuple(_cells(row, per_hour) for row in rows),
        notes,
    )
    texts = {"csv": render_csv(rows, notes), "md": render_markdown(layout)}
    for kind, path in outs.items():
        write_text(path, texts[kind])
    return rows
