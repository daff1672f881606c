"""Write ``table.md`` from the lines: each goal beside its baseline, every variant, and what is missing."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.day.lines import Line, Lines, last
from benchmarks.day.rates import Measured, best, measured, share_of_copies, share_of_products
from benchmarks.day.stages import COMPLETE, CUT, STAGES, WITHOUT_COMPILED

NAME = "table.md"
Name = tuple[str, str]  # stage and variant
ONE: Name = ("generation", "diffusers, one at a time")
EAGER: Name = ("generation", "ours, eager")
COMPILED: Name = ("generation_compiled", "ours, compiled")
PLAIN: Name = ("classifier", "plain mixed-precision step, batch ready")
ONE_CLASS: Name = ("personalise", "diffusers' textual inversion, one class")
WORDS: Name = ("personalise", "ours, pseudo-words")


@dataclass(frozen=True)
class Goal:
    """A row: a variant beside its baseline; the fastest batch size of each counts.

    Attributes
    ----------
    ratio, rate, share : float, optional
        Least rate as a multiple of the baseline's, least rate, and least share of bare matrix products.
    seconds : float, optional
        Most seconds of one item, for start-up.
    copies : float, optional
        Least share of copies.
    """

    number: str
    variant: Name
    baseline: Name | None = None
    ratio: float | None = None
    rate: float | None = None
    share: float | None = None
    seconds: float | None = None
    copies: float | None = None
    same_batch: bool = False


GOALS = (
    Goal("G1", COMPILED, ("generation_compiled", ONE[1]), ratio=4, rate=4.8, share=0.5),
    Goal("G1", COMPILED, ("generation", "diffusers"), ratio=1.6),
    Goal("G1", COMPILED, ("generation_compiled", "ours, eager")),
    Goal("G1", EAGER, ONE),
    Goal("G1", EAGER, ("generation", "diffusers")),
    Goal("G2", ("generation_compiled", "ours, compiled, fast mode"), COMPILED, ratio=2.5),
    Goal("G2", ("generation", "ours, eager, fast mode"), EAGER, ratio=2.5),
    Goal("G3", ("classifier", "ours"), PLAIN, ratio=1.3, rate=5500),
    Goal("G3", ("classifier", "ours, compiled"), PLAIN, ratio=1.3, rate=5500),
    Goal("G3", ("classifier", "ours"), ("classifier", "our step, batch ready"), ratio=0.98),
    Goal("G3", ("classifier", "our step, batch ready"), PLAIN),
    Goal(
        "G4",
        ("embed", "ours"),
        ("embed", "transformers, half precision, pixels on the device"),
        None,
        2400,
        0.5,
    ),
    Goal("G4", ("embed", "ours, compiled"), ("embed", "ours")),
    Goal("G5", ("search", "ours, many queries"), ("search", "bare products, many queries"), share=0.5),
    Goal("G5", ("search", "ours, few queries"), ("search", "bare products, few queries"), copies=0.8),
    Goal("G6", WORDS, ONE_CLASS, ratio=15, rate=190),
    Goal("G6", ("personalise", "ours, conditioning vectors"), ONE_CLASS, ratio=15, rate=190),
    Goal("G6", WORDS, ("personalise", "ours, pseudo-words, latents not cached"), ratio=1.5, same_batch=True),
    Goal(
        "G7",
        ("personalise", "ours, conditioning and U-Net"),
        ("personalise", "diffusers' text-to-image training"),
        ratio=2,
        rate=115,
    ),
    Goal("G8", ("startup", "compiled, kernels there"), seconds=15),
    Goal("G8", ("startup", "compiled, no kernels"), seconds=60),
    Goal("G8", ("startup", "eager"), seconds=15),
)


def _goal(goal: Goal) -> str:
    parts = [
        f"{goal.ratio:g} x" if goal.ratio else "",
        f"{goal.rate:,g}/s" if goal.rate else "",
        f"{goal.share:.0%} of products" if goal.share else "",
        f"{goal.copies:.0%} of copies" if goal.copies else "",
        f"{goal.seconds:g} s" if goal.seconds else "",
    ]
    return ", ".join(filter(None, parts))


def _pair(lines: list[Line], goal: Goal, size: str) -> tuple[Measured | None, Measured | None]:
    """A goal's variant and its baseline, at the same batch size where the goal asks for it."""
    found = best(lines, *goal.variant, size)
    base = best(lines, *goal.baseline, size) if goal.baseline else None
    if goal.same_batch and base is not None:
        batch = base.lines[0]["batch"]
        found = measured(lines, goal.variant[0], f"{goal.variant[1]}, batches of {batch}", size)
    return found, base


def row(lines: list[Line], goal: Goal, size: str) -> str:
    """Return a goal's row."""
    found, base = _pair(lines, goal, size)
    cells = [goal.number, goal.variant[1] if found is None else found.variant]
    if found is None:
        return f"| {' | '.join([*cells, 'not measured', '', '', _goal(goal), '', '', '', ''])} |"
    seconds = goal.number == "G8"
    rate = f"{found.spread(lambda value: 1 / value)} s" if seconds else f"{found.spread()}/s"
    ratio, beside = "", "" if goal.baseline is None else f"{goal.baseline[1]}: not measured"
    if base is not None:
        beside = f"{base.variant}: {base.spread()}/s"
        ratio = f"{found.median / base.median:.3g}"
    products, copies = share_of_products(lines, found), share_of_copies(lines, found)
    values = {
        "ratio": None if base is None else found.median / base.median,
        "rate": found.median,
        "share": products,
        "copies": copies,
        "seconds": 1 / found.median,
    }
    shares = [_percent(products)] + ([f"copies {_percent(copies)}"] if copies is not None else [])
    cells += [rate, beside, ratio, _goal(goal), _reached(goal, values, size), ", ".join(filter(None, shares))]
    return f"| {' | '.join([*cells, str(len(found.rates)), str(len(base.rates)) if base else ''])} |"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _reached(goal: Goal, values: dict[str, float | None], size: str) -> str:
    """Whether each part of the goal is reached; goals are for full-size networks."""
    parts = {"ratio": goal.ratio, "rate": goal.rate, "share": goal.share, "copies": goal.copies}
    asked = {name: least for name, least in parts.items() if least is not None}
    if size != "full" or not (asked or goal.seconds):
        return ""
    verdicts = [
        "?" if (value := values[name]) is None else "yes" if value >= least else "no"
        for name, least in asked.items()
    ]
    if goal.seconds:
        verdicts.append("yes" if (values["seconds"] or 0) <= goal.seconds else "no")
    return ", ".join(verdicts)


def _named(lines: list[Line]) -> list[Line]:
    """Give the search's variants names without numbers of queries: the most are many, the fewest few."""
    counts = [line["queries"] for line in lines if line["kind"] == "window" and "queries" in line]
    if not counts:
        return lines
    words = {f"{max(counts):,} queries": "many queries", f"{min(counts):,} queries": "few queries"}
    named = []
    for line in lines:
        variant = str(line.get("variant", ""))
        for number, word in words.items():
            if line.get("stage") == "search" and variant.endswith(f", {number}"):
                line = {**line, "variant": variant.replace(number, word)}
        named.append(line)
    return named


def _gib(lines: Iterable[Line], key: str) -> str:
    values = [line[key] for line in lines if line.get(key) is not None]
    return f"{max(values) / 2**30:.1f}" if values else ""


def _clock(lines: Iterable[Line], key: str) -> str:
    values = [line["clocks"][key] for line in lines if (line.get("clocks") or {}).get(key) is not None]
    return f"{statistics.median(values):.0f}" if values else ""


def variants(lines: list[Line], size: str) -> list[str]:
    """Return a row per variant that has windows."""
    names = dict.fromkeys((line["stage"], line["variant"]) for line in lines if line["kind"] == "window")
    rows = [
        "| stage | variant | batch | items/s: median (least to most) | windows | share of products "
        "| GiB used, taken | blocking copies | MHz | W |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for stage, variant in names:
        found = measured(lines, stage, variant, size)
        assert found is not None
        blocking = last(lines, "fact", stage, name="blocking", variant=variant)
        counted = blocking is not None and isinstance(blocking["value"], dict)
        cells = [
            stage,
            variant,
            str(found.lines[0].get("batch") or ""),
            found.spread(),
            str(len(found.rates)),
            _percent(share_of_products(lines, found)),
            ", ".join(filter(None, (_gib(found.lines, f"peak_{key}") for key in ("allocated", "reserved")))),
            str(sum(blocking["value"].values())) if blocking is not None and counted else "",
            _clock(found.lines, "clocks.sm"),
            _clock(found.lines, "power.draw"),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def missing(lines: list[Line]) -> list[str]:
    """Return a line for each variant and stage that lacks something, with its last reason."""
    found: dict[tuple[str, str], str] = {}
    for line in lines:
        key = line.get("stage", ""), line.get("variant", "")
        if line["kind"] in ("outcome", "error"):
            found[key] = f"{line.get('outcome', 'error')}: {line['reason']}"
        elif line["kind"] == "begun":
            found[key] = "its process ended before it was measured"
        elif line["kind"] in ("built", "window"):
            found.pop(key, None)
        elif line["kind"] == "stage":
            found.pop(key, None)
            if line["ended"] not in (COMPLETE, WITHOUT_COMPILED, CUT):
                found[key] = f"{line['ended']}: {line['reason']}"
    started = {line.get("stage") for line in lines}
    for stage in STAGES:
        if stage.name not in started:
            found[stage.name, ""] = "not started"
    return [f"- {stage}{f', {variant}' * bool(variant)}: {why}" for (stage, variant), why in found.items()]


def _facts(lines: list[Line]) -> list[str]:
    found = []
    for line in lines:
        if line["kind"] == "fact" and line["stage"] == "ceilings" and line["name"] == "product_rate":
            found.append(f"- products in {line['dtype']}: {line['value'] / 1e12:.4g} TFLOP/s")
        elif line["kind"] == "fact" and line["name"] == "copy_rate" and line["stage"] == "ceilings":
            found.append(f"- copies, read and written: {line['value'] / 1e12:.3g} TB/s")
        elif line["kind"] == "fact" and line["name"] == "recall":
            found.append(f"- recall of the exact search: {line['value']:.6g}")
    return found


def text(lines: list[Line]) -> str:
    """Return the whole table as Markdown."""
    runs = [line for line in lines if line["kind"] == "run"]
    if not runs:
        return "No run yet.\n"
    first, size = runs[0], runs[0]["size"]
    gpu: Any = first["gpu"] or "no GPU"
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items() if version)
    lines = _named(lines)
    whole = (
        "Windows of the exact mode have fewer steps than an image. Seconds of an image = window seconds / "
        "images + (its steps - the window's) x measured seconds of a step / batch."
    )
    return "\n".join(
        [
            f"# {gpu}, {size} size, random weights, {runs[0]['time'][:10]}",
            "",
            "| | what | rate: median (least to most) | baseline | times | goal on one H200 | reached "
            "| share of products | windows | baseline's |",
            "|---|---|---:|---|---:|---|---|---:|---:|---:|",
            *(row(lines, goal, size) for goal in GOALS),
            "",
            whole,
            "",
            *_facts(lines),
            "",
            "## Missing",
            "",
            *(missing(lines) or ["Nothing."]),
            "",
            "## All variants",
            "",
            *variants(lines, size),
            "",
            f"Python {first['python']}, {versions}. Commands: "
            + ", ".join(f"`{run['command']}` ({run['time']})" for run in runs),
            "",
        ]
    )


def write(out: Path) -> None:
    """Write the table of the lines in ``out``."""
    (out / NAME).write_text(text(Lines(out).read()))
