"""Show an estimate: aligned text for people, plain values for programs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from shutil import disk_usage
from typing import Any

from augbench.commands.plan.detectable import describe, detectable_of
from augbench.commands.plan.estimate import Estimate
from augbench.commands.plan.jobs import described, logged_jobs
from augbench.commands.plan.memory import needs_of, shortages
from augbench.commands.plan.steps import STAGES, Step, hours_left, total
from augbench.commands.plan.throughput import MEASURED
from augbench.plan.needs import Needs, Site


def _hours(value: float | None) -> str:
    if value is None:
        return "?"
    return "-" if value == 0 else f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _bytes(value: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.0f} kB" if value else "-"


OF_DIFFUSION = ("finetune", "candidates", "generate")  # stages whose hours a diffusion model decides
HEADER = ("stage", "method", "jobs", "done", "images", "steps", "GPU-hours", "left", "disk", "download")


def render(estimate: Estimate) -> str:
    """Render the steps as aligned columns, with totals per stage and of all, and the assumptions."""
    study, sizes, throughput = estimate.study, estimate.sizes, estimate.throughput
    steps = estimate.steps

    def cells(step: Step, left: float | None) -> tuple[str, ...]:
        hours = f"{'' if not step.measured else '*'}{_hours(step.gpu_hours)}"
        images = f"{step.images:,}" if step.images else "-"
        return (
            step.stage,
            step.method,
            f"{step.jobs:,}",
            f"{step.jobs_done:,}",
            images,
            f"{step.training_steps:,}" if step.training_steps else "-",
            hours,
            _hours(left),
            _bytes(step.disk_bytes),
            _bytes(step.download_bytes),
        )

    rows = [cells(step, step.gpu_hours_left) for step in steps]
    stages = [[step for step in steps if step.stage == stage] for stage in STAGES]

    def summed(group: Sequence[Step], *names: str) -> tuple[str, ...]:
        of_gpu = estimate.on_gpu(group)
        return cells(replace(total(of_gpu, *names), images=0), hours_left(of_gpu))

    sums = [summed(group, group[0].stage, f"all {len(group)}") for group in stages if len(group) > 1]
    everything, last = total(steps), summed(steps)
    widths = [max(len(row[place]) for row in (HEADER, *rows, *sums, last)) for place in range(len(HEADER))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()

    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    kind = "measured" if throughput.is_measured else "estimates, not measured"
    here = ", which ran without a GPU and are in no sum" if estimate.on_cpu else ""
    text = [
        f"{study.study}: {sizes.classes:,} classes, {_each(estimate)} training images each; "
        f"{sizes.validation:,} validation and {sizes.test:,} test images ({sizes.source})",
        f"GPU-hours: figures of {throughput.name} ({kind}; {throughput.chosen})"
        + (f"; * from this study's finished jobs{here}" if everything.measured else ""),
        "",
        line(HEADER),
        rule,
        *map(line, rows),
        rule,
        *map(line, sums),
        rule,
        line(last),
        "",
        f"files: {everything.files_done:,} of {everything.files:,} exist. " + _left(estimate, everything),
        *described(logged_jobs(study.study)),
        *_limits(estimate, everything),
        *_notes(estimate),
    ]
    return "\n".join(text) + "\n"


def _left(estimate: Estimate, everything: Step) -> str:
    """Say what is left to do; hours that a CPU may have measured are not added to those of a GPU."""
    if everything.jobs_done == everything.jobs:
        return "Nothing is left to do."
    known = estimate.on_gpu(estimate.steps)
    text = f"GPU-hours left: {_hours(hours_left(known))} of {_hours(total(known).gpu_hours)}"
    if estimate.on_cpu and (measured := [step for step in estimate.steps if step.measured]):
        text += f", and {_hours(hours_left(measured))} hours of the rows with *, as measured"
    return f"{text}."


def _each(estimate: Estimate) -> str:
    """Training images per class: their mean, or the span of a long tail."""
    sizes = estimate.sizes.by_class.values()
    tail = estimate.study.dataset.imbalance is not None
    return f"{max(sizes)} to {min(sizes)}" if tail else f"{estimate.sizes.per_class:.4g}"


def _limits(estimate: Estimate, everything: Step) -> Iterator[str]:
    """Yield the least run time on the GPUs, the memory of each stage, and what fits neither GPU nor disk."""
    gpu, left = estimate.throughput, hours_left(estimate.on_gpu(estimate.steps))
    if left:
        hours, several = left / estimate.gpus, "" if estimate.gpus == 1 else "s"
        days = f" ({hours / 24:,.1f} days)" if hours > 24 else ""
        slower = ""
        if estimate.on_cpu:
            slower = " These are a GPU's figures: none is used here, and a CPU takes far longer."
        yield f"Run time on {estimate.gpus} GPU{several}: {_hours(hours)} h{days} or more.{slower}"
    if gpu.memory is not None and (needs := list(needs_of(estimate.study))):
        stages = (f"{need.stage} {need.gib:.1f} GiB ({need.key}: {need.batch})" for need in needs)
        yield f"Memory of each GPU ({gpu.memory:.1f} GiB), estimated: {', '.join(stages)}."
        yield from (f"Does not fit: {line}." for line in shortages(estimate.study, gpu.name, gpu.memory))
    free, missing = disk_usage(".").free, sum(step.disk_bytes * step.share_left for step in estimate.steps)
    if missing > free:
        yield f"Does not fit here: missing files take {_bytes(missing)}, the disk has {_bytes(free)} free."


def _notes(estimate: Estimate) -> Iterator[str]:
    assumed = estimate.throughput.assumed
    classifier, most = estimate.study.classifier, estimate.study.finetune.max_epochs
    epochs = [f"{min(most, assumed['finetune_epochs'].value):.0f} of at most {most} epochs of fine-tuning"]
    if classifier.schedule == "plateau":
        few = min(classifier.max_epochs, assumed["classifier_epochs"].value)
        epochs.insert(0, f"{few:.0f} of at most {classifier.max_epochs} epochs of a classifier")
    yield (
        f"Assumed: {', '.join(epochs)}; sizes of images and links. resources/throughput.yaml names the source"
        f" of every figure; put measured figures into {MEASURED}."
    )
    yield "steps: optimiser steps of each classifier."
    if latents := sum(map(estimate.latents, estimate.plan.study.personalised)):
        yield (
            f"Latents: {latents:,} images and mirror images are encoded once, in the first fine-tuning row"
            f" ({_hours(estimate.encode_hours(latents))} GPU-hours,"
            f" {_bytes(estimate.latents_bytes(latents))}); `augbench clean` frees them when the study is"
            " finished."
        )
    yield from _searches(estimate)
    if (found := detectable_of(estimate.study)) is not None:
        yield describe(found)
    if estimate.classifier_work is None:
        yield (
            f"?: there is no figure for {classifier.arch}; the rate of finished jobs is used as soon as"
            " there are some."
        )
    if any(step.gpu_hours is None and step.stage in OF_DIFFUSION for step in estimate.steps):
        yield (
            "?: there is no figure for this row's diffusion model; the rate of finished jobs is used as soon"
            " as there are some."
        )
    if estimate.embed_hours(1) is None:
        yield (
            "?: the size of CLIP's image tower is not known, so there is no figure for jobs that embed"
            " images."
        )


def _searches(estimate: Estimate) -> Iterator[str]:
    """Yield what a job of each row that searches published embeddings reads, takes and asks for."""
    study, plan = estimate.study, estimate.plan
    if not estimate.corpus_bytes:
        return
    asked = Needs(study, Site()).search_job()["mem_mb"](None, 1) * 1e6
    for step in estimate.steps:
        if step.stage != "search" or study.retrieved[step.method].manifest is not None:
            continue
        jobs = max(1, len(plan.search_blocks))
        searches = step.jobs // (1 if jobs == 1 else jobs + 2)  # one in each draw of the training images
        several = f"{jobs} jobs share" if jobs > 1 else "one job searches"
        last = "it" if jobs == 1 else "one more job, which merges what they find,"
        yield (
            f"Search of {step.method}: {several} {_bytes(estimate.corpus_bytes)} of vectors,"
            f" {_hours((step.gpu_hours or 0.0) / searches / jobs)} h and {_bytes(asked)} of memory each;"
            f" {last} holds {_bytes(step.disk_bytes / searches)} of neighbours in memory."
        )


def as_json(estimate: Estimate) -> dict[str, Any]:
    """Return the same as plain values: steps, totals per stage and of all, and all figures with sources."""
    steps = estimate.steps

    def values(step: Step) -> dict[str, Any]:
        return {**asdict(step), "gpu_hours_left": step.gpu_hours_left}

    stages = {stage: [step for step in steps if step.stage == stage] for stage in STAGES}

    def summed(stage: str, group: Sequence[Step]) -> dict[str, Any]:
        of_gpu = estimate.on_gpu(group)
        return {**asdict(total(of_gpu, stage)), "gpu_hours_left": hours_left(of_gpu)}

    throughput, found = estimate.throughput, detectable_of(estimate.study)
    return {
        "study": estimate.study.study,
        "sizes": asdict(estimate.sizes),
        "device": {
            "key": throughput.device,
            "name": throughput.name,
            "chosen": throughput.chosen,
            "memory_gib": throughput.memory,
            "number": estimate.gpus,
            "on_cpu": estimate.on_cpu,
            "figures": {name: asdict(figure) for name, figure in throughput.rates.items()},
        },
        "gpu_memory": [{**asdict(need), "gib": need.gib} for need in needs_of(estimate.study)],
        "assumed": {name: asdict(figure) for name, figure in throughput.assumed.items()},
        "unfinished_jobs": [asdict(job) for job in logged_jobs(estimate.study.study)],
        "detectable": None if found is None else asdict(found),
        "steps": [values(step) for step in steps],
        "stages": {stage: summed(stage, group) for stage, group in stages.items() if group},
        "total": summed("total", steps),
    }
