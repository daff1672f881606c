"""Measure the start-up cost of jobs: the time of each script of the workflow before and after its work.

Input: the scripts of this checkout, and with ``--against`` of another one. Output: a Markdown table, and
JSON with ``--json``: wall and processor time, peak memory, number of modules and heavy packages of

- each script of ``workflow/scripts``: a process that sets up the job, imports what the script imports, and
  ends;
- jobs up to their first step: a process that also makes the late imports, loads the model and does one step
  (image, batch).

Each run is a separate process, timed until it has ended; checkouts take turns.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from benchmarks.record import publish, surroundings, surroundings_line

Result = dict[str, Any]
PROJECT = Path(__file__).resolve().parents[1]
HEAVY = ("torch", "torchvision", "transformers", "diffusers", "scipy", "sklearn", "pandas", "matplotlib")

CHILD = """
import json, sys
from types import SimpleNamespace
from augbench.runtime.job import running
config, device, out = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
log = [f"results/{{config['study']}}/logs/startup.log"]
with running(SimpleNamespace(threads=1, resources={{}}, log=log, config=config, rule="startup")) as job:
{work}
    heavy = [name for name in {heavy} if name in sys.modules]
    with open(out, "w") as stream:
        json.dump({{"modules": len(sys.modules), "heavy": heavy}}, stream)
"""

FIRST_STEPS = {
    "sample: to the first image of one step": """
from augbench.models.folders import load_pipeline, pick_device
pipeline = load_pipeline(job.study.diffusion, pick_device(device))
side = job.study.diffusion.resolution
pipeline("a bag", num_inference_steps=1, height=side, width=side)
""",
    "embed: to the first image": """
from PIL import Image
from augbench.models.clip import load_clip
from augbench.models.folders import pick_device
load_clip({"folder": job.study.clip.folder}, pick_device(device)).image_tower()([Image.new("RGB", (300, 200), "red")])
""",
    "fine-tune: to the loaded U-Net": """
from augbench.models.folders import pick_device
from augbench.personalise.fine_tune import UNet2DConditionModel, load_part, torch
load_part(UNet2DConditionModel, job.study.diffusion.folder, "unet", torch.float32, pick_device(device))
""",
    "classify: to the first epoch of eight images": """
from pathlib import Path
from PIL import Image
from augbench.classifier.stage import train_run, LabelledImages, Compute, pick_device
colours = ["red", "green", "blue", "white", "black", "grey", "pink", "cyan"]
load = lambda rows: [Image.new("RGB", (32, 32), colour) for colour in colours[rows]]
images = LabelledImages(colours, [0, 1] * 4, load, "colours")
config = job.study.classifier.model_copy(update={"schedule": "plateau", "max_epochs": 1})
train_run(config, 2, images, None, images, 0, 0, Compute(pick_device(device)))
""",
}


def script_imports(path: Path) -> str:
    """Return the import statements of a script, one per line, without that of ``running``."""
    found = [
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    others = [node for node in found if "running" not in [alias.name for alias in node.names]]
    return "\n".join(ast.unparse(node) for node in others)


@dataclass(frozen=True)
class Checkout:
    """A checkout, and its own version of this benchmark, because its modules may have other names."""

    folder: Path
    benchmark: Any

    @classmethod
    def open(cls, folder: Path) -> Checkout:
        """Open the checkout in ``folder``."""
        spec = importlib.util.spec_from_file_location("startup_there", folder / "benchmarks" / "startup.py")
        assert spec is not None and spec.loader is not None
        module = sys.modules["startup_there"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return cls(folder, module)

    def entries(self) -> dict[str, str]:
        """Return the Python statements of each entry, by its name."""
        scripts = sorted((self.folder / "workflow" / "scripts").glob("*.py"))
        return {path.stem: script_imports(path) for path in scripts} | self.benchmark.FIRST_STEPS


def run_entry(checkout: Checkout, work: str, config: Result, device: str, folder: Path) -> Result:
    """Run one entry in a separate process and measure it from start to end."""
    out = folder / "report.json"
    code = checkout.benchmark.CHILD.format(
        work="\n".join("    " + line for line in work.splitlines()), heavy=HEAVY
    )
    environment = {**os.environ, "PYTHONPATH": str(checkout.folder / "src")}
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(config), device, str(out)], cwd=folder, env=environment
    )
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit((folder / "results" / config["study"] / "logs" / "startup.log").read_text()[-4000:])
    return {
        "seconds": round(seconds, 2),
        "processor_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_memory": usage.ru_maxrss * 1024,
        **json.loads(out.read_text()),
    }


def measure(options: argparse.Namespace) -> Result:
    """Measure all entries of all checkouts, in turn."""
    import yaml

    config = yaml.safe_load((PROJECT / "config" / "demo.yaml").read_text())
    config["execution"]["device"] = options.device
    if options.diffusion:
        config["diffusion"] |= {"model": str(options.diffusion.resolve()), "resolution": options.resolution}
    folders = {"ours": PROJECT} | ({"before": options.against.resolve()} if options.against else {})
    checkouts = {name: Checkout.open(folder) for name, folder in folders.items()}
    works = {name: checkout.entries() for name, checkout in checkouts.items()}
    wanted = [entry for entry in works["ours"] if not options.only or entry.partition(":")[0] in options.only]
    results: dict[str, dict[str, list[Result]]] = {
        entry: {name: [] for name in checkouts if entry in works[name]} for entry in wanted
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "resources").symlink_to(PROJECT / "resources")
        for repeat in range(options.repeats + 1):
            for entry, runs in results.items():
                for name in runs:
                    took = run_entry(checkouts[name], works[name][entry], config, options.device, folder)
                    if repeat:  # the first one fills the page cache and Python's own cache of compiled files
                        runs[name].append(took)
            print(f"round {repeat} of {options.repeats} done", file=sys.stderr)
    return {"results": results, "repeats": options.repeats}


def _spread(runs: Sequence[Result], key: str) -> str:
    values = sorted(run[key] for run in runs)
    return f"{statistics.median(values):.2f} ({values[0]:.2f} to {values[-1]:.2f})"


def markdown(report: Result) -> str:
    """Return a table with a row per entry: medians and ranges; with two checkouts also their ratio."""
    compared = any("before" in runs for runs in report["results"].values())
    before = (
        " before: seconds | before: processor seconds | ours / before, processor seconds |"
        if compared
        else ""
    )
    lines = [
        f"| | seconds | processor seconds |{before} peak memory, MB | heavy packages |",
        "|---|---:|---:|" + "---:|" * (4 if compared else 1) + "---|",
    ]
    for entry, runs in report["results"].items():
        cells = [_spread(runs["ours"], key) for key in ("seconds", "processor_seconds")]
        if "before" in runs:
            ours, other = (
                statistics.median(run["processor_seconds"] for run in runs[name])
                for name in ("ours", "before")
            )
            cells += [
                *(_spread(runs["before"], key) for key in ("seconds", "processor_seconds")),
                f"{ours / other:.2f}",
            ]
        elif compared:
            cells += ["", "", ""]
        memory = max(run["peak_memory"] for run in runs["ours"]) / 1e6
        lines.append(
            f"| {entry} | {' | '.join(cells)} | {memory:.0f} | {', '.join(runs['ours'][0]['heavy'])} |"
        )
    return "\n".join(
        [
            *lines,
            "",
            f"Median of {report['repeats']}, processes from start to end; {surroundings_line(report)}",
        ]
    )


def main(arguments: Sequence[str]) -> None:
    """Measure and print the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="device of the first steps")
    parser.add_argument(
        "--diffusion",
        type=Path,
        help="model for the first steps, in diffusers' layout; default: the miniature",
    )
    parser.add_argument("--resolution", type=int, default=512, help="resolution of that model in pixels")
    parser.add_argument("--against", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument(
        "--only", nargs="+", help="names of scripts and first steps (the word before the colon); default: all"
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args(arguments)
    report = measure(options) | surroundings("benchmarks/startup.py", arguments, options.device)
    publish(report, markdown(report), options.json)


if __name__ == "__main__":
    main(sys.argv[1:])
