"""Write ``throughput.yaml``, which ``augbench plan`` reads, from the lines of full-size stages on a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.day.lines import Lines
from benchmarks.day.rates import best
from benchmarks.throughput import write_figures

NAME = "throughput.yaml"
# figure: variants, of which the first that was measured counts
FIGURES = {
    "generate": (("generation_compiled", "ours, compiled"), ("generation", "ours, eager")),
    "finetune_vectors": (("personalise", "ours, pseudo-words"),),
    "finetune_unet": (("personalise", "ours, conditioning and U-Net"),),
    "classify": (("classifier", "ours"),),
    "embed": (("embed", "ours"),),
}
START = (("startup", "compiled, kernels there"), ("startup", "eager"))


def figures(out: Path) -> dict[str, float]:
    """Return the figures that the lines give."""
    lines, found = Lines(out).read(), {}
    for figure, variants in {**FIGURES, "start": START}.items():
        rates = [rate for stage, name in variants if (rate := best(lines, stage, name, "full"))]
        if rates:
            found[figure] = 1 / rates[0].median if figure == "start" else rates[0].median
    return found


def main(out: Path) -> None:
    """Write the file of one output folder."""
    runs = [line for line in Lines(out).read() if line["kind"] == "run"]
    if runs and (found := figures(out)):
        write_figures(out / NAME, runs[0]["gpu"], found, f"{runs[0]['command']}, {runs[0]['time'][:10]}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
