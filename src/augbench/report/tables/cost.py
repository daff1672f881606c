"""Cost of each method: time to make or find its images and to train on them, and accuracy gained per hour.

Input: Snakemake's benchmark file of every job, the classifiers' ``timing.json``, sizes on disk,
``table1.csv``. Output: ``cost.csv`` (full precision) and Markdown, with one row per method and one per step
that methods share.

A row's cost is what the row would have taken alone: a row that draws from another row's pool, or starts or
learns from its images, includes the cost of these images once, so rows do not add up. Reports and the leakage
guard serve all methods alike and are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

from augbench.files import read_json
from augbench.plan.jobs import JobFile, job_files, read_seconds
from augbench.plan.paths import Plan
from augbench.report.contrasts import baseline_of
from augbench.report.render import NONE, Layout, read_csv, signed, write_table
from augbench.report.tables import table1

# Stages with jobs that belong to one method.
MAKING = (
    "prompts",
    "search_queries",
    "search_block",
    "search",
    "retrieve",
    "learned_images",
    "cluster",
    "finetune",
    "choose_lr",
    "candidates",
    "pool_candidates",
    "classify_candidates",
    "select",
    "generate",
)
TRAINING = ("index_pool", "resample", "classify")
ON_GPU = frozenset(
    {
        *("search_queries", "search_block", "search", "retrieve", "finetune", "candidates", "generate"),
        *("cluster", "embed_corpus", "embed_corpus_block"),
    }
)
ON_CLASSIFIER_GPUS = frozenset({"classify", "classify_candidates"})
# Steps that methods share, with the methods that need them.
ALL, GENERATION, RETRIEVAL, CLUSTERED = "all rows", "generation", "retrieval", "rows with clusters"
COMPARED = "retrieval that uses training images"
SHARED = {
    "data": (ALL, ("classes", "splits", "fetch_fashion_mnist")),
    "clusters": (CLUSTERED, ("cluster", "fetch_inception")),
    "diffusion model": (GENERATION, ("fetch_diffusion", "fetch_safety_checker", "fingerprint_diffusion")),
    "CLIP": (RETRIEVAL, ("fetch_clip", "fetch_aesthetics", "fingerprint_clip")),
    "first weights of classifiers": (ALL, ("fetch_classifier", "fingerprint_classifier")),
    "training images in CLIP space": (COMPARED, ("embed_train",)),
    "corpus": (
        RETRIEVAL,
        ("corpus", "embed_corpus_block", "embed_corpus", "index_corpus", "retrieval_summary"),
    ),
}
BLOCKS = {"embed_corpus_block"}  # shared steps of several jobs
HOUR, MEGABYTE = 3600, 1e6


@dataclass(frozen=True)
class Hours:
    """Time of some jobs in hours: sum of run times, CPU time used, and time during which they held GPUs.

    ``cpu`` lacks jobs that ended before Snakemake measured them.
    """

    wall: float = 0.0
    cpu: float = 0.0
    gpu: float = 0.0

    def __add__(self, other: Hours) -> Hours:
        return Hours(self.wall + other.wall, self.cpu + other.cpu, self.gpu + other.gpu)

    def over(self, count: int) -> Hours:
        """The time of one of ``count`` equal parts."""
        return Hours(self.wall / count, self.cpu / count, self.gpu / count)


@dataclass(frozen=True)
class Row:
    """One method, or a step that methods share.

    For a shared step, ``method`` is empty and ``needed_by`` names the group of methods that need it.

    Attributes
    ----------
    make_wall_hours, make_cpu_hours, make_gpu_hours : float
        Jobs that make or find the images: prompts, search, download, fine-tuning, selection, sampling.
    train_wall_hours, train_cpu_hours, train_gpu_hours : float
        Jobs that draw the training sets and train classifiers on them, all runs.
    disk_mb : float
        Files of the row in the study's folder, in 10^6 bytes; files with several names count once.
    downloaded_mb : float or None
        Images fetched from the web for the row and kept; None if it fetches none.
    gain_points : float or None
        Accuracy minus the baseline's, in percentage points.
    points_per_hour : float or None
        ``gain_points`` per wall hour of making or finding the images; None if nothing was made.
    points_per_hour_with_shared : float or None
        The same, with all shared steps that the row needs charged to this row.
    upstream : str
        Labels of the rows whose images this row starts or learns from, directly or through others; making
        these images is part of the row's times, disk and downloads. Empty if there are none.
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
    upstream: str = ""


def hours_of(path: str | Path, gpus: int) -> Hours:
    """Time in a benchmark file, all repeats; ``gpus`` is the number of GPUs that its job held.

    Raises
    ------
    UserError
        The file is damaged, or is not a benchmark file.
    """
    wall, cpu = (seconds / HOUR for seconds in read_seconds(path))
    return Hours(wall, cpu, wall * gpus)


def gpus_used(plan: Plan) -> tuple[int, int]:
    """Numbers of GPUs that a sampling job and a classifier's job held; 0 if classifiers trained on CPUs.

    Read from the classifiers' records.
    """
    for method in plan.methods:
        for run in plan.runs:
            path = Path(plan.run_files(method, run)[0]).with_name("timing.json")
            if path.exists():
                gpus = int(read_json(path).get("gpus", 0))
                return min(gpus, 1), gpus
    return 0, 0


def _merging(plan: Plan) -> set[str]:
    """Stages whose jobs merge what other jobs have computed, without a GPU."""
    merging = {"search": plan.searched_in_blocks, "embed_corpus": plan.embed_blocks}
    return {stage for stage, shared in merging.items() if shared}


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
    """Build the rows of all methods in the config's order, then those of the shared steps that took time.

    Parameters
    ----------
    table : path
        ``table1.csv``.
    """
    entries = {row.method: row for row in table1.read_rows(table)}
    baseline = baseline_of([*entries.values()])
    gpus, classifier_gpus = gpus_used(plan)
    held = {
        **dict.fromkeys(ON_GPU - _merging(plan), gpus),
        **dict.fromkeys(ON_CLASSIFIER_GPUS, classifier_gpus),
    }
    jobs = job_files(plan.path("benchmarks"), (*MAKING, *TRAINING))
    times = {job: hours_of(job.path, held.get(job.stage, 0)) for job in jobs}
    shared = _shared(plan, held)
    rows = []
    for method in plan.study.methods:
        making, training = _scoring(plan, method, times, gpus), Hours()
        sources, upstream = _sources(plan, method), _upstream(plan, method)
        own = [name for row in _trained(plan, method) for name in plan.in_all_draws(row)]
        made = {name: parts for pool, parts in sources.items() for name in plan.in_all_draws(pool)}
        for job, hours in times.items():
            if job.stage in TRAINING and job.method in own:
                training += hours
            elif job.stage in MAKING and job.part < made.get(job.method, 0):
                making += hours
        gain = (
            entries[method].top1_percent - entries[baseline].top1_percent
            if baseline is not None and method != baseline
            else None
        )
        steps = [step for step in shared if step.needed_by in _needs(plan, sources)]
        alone, with_shared = _per_hour(gain, making.wall, sum(step.make_wall_hours for step in steps))
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
                _downloaded(plan, sources),
                gain,
                alone,
                with_shared,
                upstream=", ".join(map(plan.study.label, upstream)),
            )
        )
    return [*rows, *shared]


def _trained(plan: Plan, method: str) -> tuple[str, ...]:
    """Rows whose classifiers a row needs: its own, or those of all rows that it chooses among."""
    choosing = plan.study.choosing.get(method)
    return (method,) if choosing is None else choosing.among


def _sources(plan: Plan, method: str) -> dict[str, int]:
    """Number of parts that a row needs of each pool, also of those that its images were made from."""
    study, parts = plan.study, dict[str, int]()
    waiting = [*_trained(plan, method)]
    while waiting:
        row = waiting.pop()
        for pool in study.pools_of(row):
            parts[pool] = max(parts.get(pool, 0), study.parts_drawn(row, pool))
            waiting += study.methods[pool].built_on
    return parts


def _scoring(plan: Plan, method: str, times: Mapping[JobFile, Hours], gpus: int) -> Hours:
    """Time to score the pools that a row filters, and to train the classifiers that score them."""
    unfolded = plan.unfolded
    needed = dict.fromkeys([*_trained(plan, method), *plan.study.all_built_on(method)])
    rows = [name for row in needed for name in plan.in_all_draws(row)]
    filtered = [name for name in rows if name in unfolded.study.filters]
    scorers = {name: unfolded.study.filtering_row(name) for name in filtered}
    paths = {
        unfolded.benchmark(unfolded.score_stage(scorer), pool)
        for name, scorer in scorers.items()
        for pool in unfolded.study.pools_of(name)
    }
    spent = sum((hours_of(path, gpus) for path in sorted(paths) if Path(path).exists()), Hours())
    classifiers = {*scorers.values()}
    trained = [hours for job, hours in times.items() if job.stage == "classify" and job.method in classifiers]
    return sum((hours.over(len(plan.runs)) for hours in trained), spent)


def _per_hour(gain: float | None, own: float, shared: float) -> tuple[float, float] | tuple[None, None]:
    """Points per hour of a row's own jobs, and per hour of its own and the shared jobs."""
    return (None, None) if gain is None or own <= 0 else (gain / own, gain / (own + shared))


def _upstream(plan: Plan, method: str) -> list[str]:
    """Rows whose images a row needs, besides the pools that its training sets are drawn from."""
    own, study = {pool for row in _trained(plan, method) for pool in plan.study.pools_of(row)}, plan.study
    return [row for row in study.all_built_on(method) if row in study.pooled and row not in own]


def _needs(plan: Plan, pools: Iterable[str]) -> set[str]:
    """Groups of methods in :data:`SHARED` that a row with images of these pools belongs to."""
    needs, study = {ALL}, plan.study
    for pool in pools:
        if pool in study.retrieved:
            needs.add(RETRIEVAL)
            if study.retrieved[pool].depends_on_training_images:
                needs.add(COMPARED)
        if pool in study.generated:
            needs.add(GENERATION)
        row = study.personalised.get(pool)
        if row is not None and row.clusters > 1 and not row.edges:
            needs.add(CLUSTERED)
    return needs


def _folders(plan: Plan, method: str) -> list[str]:
    """Folders with a row's files, including those of rows that it chooses among and the images of others."""
    rows = dict.fromkeys([method, *_trained(plan, method)])
    own = [(stage, row) for stage in ("resamples", "classifiers") for row in rows]
    stages = ("shards", "finetune", "retrieval")
    pooled = [(stage, pool) for stage in stages for pool in _sources(plan, method)]
    return [plan.path(stage, name) for stage, row in (*own, *pooled) for name in plan.in_all_draws(row)]


def _downloaded(plan: Plan, pools: Iterable[str]) -> float | None:
    """Size of the files that were fetched for some pools and kept, in 10^6 bytes; None if there are none."""
    folders = [folder for pool in pools if (folder := Path(plan.path(".downloads", pool))).is_dir()]
    return size_mb(folders) if folders else None


def _of_generators(plan: Plan) -> list[str]:
    """Rules that fetch and hash the models in ``generators``."""
    rules = ("fetch_generator", "fetch_safety_checker_of", "fingerprint_generator")
    return [f"{rule}_{name}" for name in plan.study.used_generators for rule in rules]


def _shared(plan: Plan, held: Mapping[str, int]) -> list[Row]:
    """One row per shared step that has benchmark files."""
    rows = []
    for label, (needed_by, stages) in SHARED.items():
        hours = Hours()
        if needed_by == GENERATION:
            stages = (*stages, *_of_generators(plan))
        for stage in stages:
            for name in plan.in_all_draws(stage):
                path = Path(plan.path("benchmarks", f"{name}.tsv"))
                for file in sorted(path.with_suffix("").glob("*.tsv")) if stage in BLOCKS else [path]:
                    if file.exists():
                        hours += hours_of(file, held.get(stage, 0))
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


# --- display ------------------------------------------------------------------------------------------------


NUMERIC = (False, *[True] * 11)


def _unit(rows: Iterable[Row]) -> tuple[str, float]:
    """Unit of the times: hours, or minutes if no row took an hour; and the number of units in an hour."""
    longest = max((row.make_wall_hours + row.train_wall_hours for row in rows), default=0.0)
    return ("hours", 1) if longest >= 1 else ("minutes", 60)


def _header(unit: str) -> tuple[str, ...]:
    times = (f"job-{unit}", f"CPU-{unit}", f"GPU-{unit}")
    parts = [f"{part}: {time}" for part in ("Images", "Training") for time in times]
    gains = ("Gain (points)", "Points per job-hour", "with shared steps")
    return ("Method", *parts, "Disk (MB)", "Downloads (MB)", *gains)


def _notes(plan: Plan) -> tuple[str, ...]:
    notes = [
        "Images: jobs that make or find a row's images (prompts, search, download, fine-tuning, candidates,"
        " selection, sampling). Training: jobs that draw the row's training sets, and train and test a"
        " classifier on each.",
        "Job time: sum of the jobs' run times; jobs that run in parallel take less time in total. CPU time:"
        " CPU time that these jobs used. GPU time: time during which they held GPUs.",
        "Points per job-hour: gain in accuracy over the baseline, divided by the job-hours of making or"
        " finding the images. If the error of the gain is as large as the gain (statistics.md), this number"
        " is meaningless.",
        "Shared steps serve several rows and are not in the rows' times: the corpus is embedded once for"
        " all retrieval, a model is fetched once for all generation. 'with shared steps' adds all the"
        " shared steps that the row needs, as if the row ran alone.",
        "The training of the diffusion model and the collection of the corpus are not counted.",
        "Times are those of each job's last run. They are too low where images came from the store, for"
        " example after an interruption.",
    ]
    if plan.study.drawn:
        notes.append(
            "The times of a row that draws from another row's pool include that pool, so the rows do not add"
            " up."
        )
    if any(_upstream(plan, method) for method in plan.study.methods):
        notes.append(
            "'including X' in a row's name: images of the row started or learned from the images of X, and"
            " its times of images, disk and downloads include those of X, once."
        )
    if plan.study.filters:
        notes.append(
            "A row that filters pays for the whole pool, also for the images that it does not keep, for their"
            " scores, and for a classifier that gives them."
        )
    if plan.study.choosing:
        notes.append(
            "A row that chooses among others pays for the images and the classifiers of all of them."
        )
    return tuple(notes)


def _cells(row: Row, per_hour: float) -> tuple[str, ...]:
    hours = [getattr(row, field.name) for field in fields(Row) if field.name.endswith("_hours")]
    including = f" (including {row.upstream})" if row.upstream else ""
    return (
        f"{row.label}{including}" if row.method else f"shared by {row.needed_by}: {row.label}",
        *(f"{per_hour * value:,.2f}" if value else "0" for value in hours),
        f"{row.disk_mb:,.1f}",
        NONE if row.downloaded_mb is None else f"{row.downloaded_mb:,.1f}",
        signed(row.gain_points),
        *map(_rate, (row.points_per_hour, row.points_per_hour_with_shared)),
    )


def _rate(value: float | None) -> str:
    """Points per hour with three significant digits."""
    return NONE if value is None else f"{value:+,.0f}" if abs(value) >= 1000 else f"{value:+.3g}"


def read_rows(path: str | Path) -> list[Row]:
    """Read the rows of ``cost.csv``."""
    return read_csv(path, Row)


def write_cost(plan: Plan, table: str | Path, outs: Mapping[str, str | Path]) -> list[Row]:
    """Write the costs to ``outs``, which maps formats (any of ``csv``, ``md``) to paths.

    The other parameters are those of :func:`build_rows`.
    """
    rows, notes = build_rows(plan, table), _notes(plan)
    unit, per_hour = _unit(rows)
    layout = Layout(
        f"Cost, study {plan.study.study}",
        _header(unit),
        NUMERIC,
        tuple(_cells(row, per_hour) for row in rows),
        notes,
    )
    write_table(outs, layout, rows)
    return rows
