"""Look at a machine before anything is measured: GPU, driver, packages, compiler, disk."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.day import gpu
from benchmarks.day.runner import ROOT, environment
from benchmarks.day.wheels import GROUPS

Report = dict[str, Any]
NAME = "preflight.json"
LOCK = ROOT / "envs/requirements.lock"
MOST_MB = 60  # of the folder to bring
# module to try, and the stages that need it
MODULES = {
    "torch": "all",
    "numpy": "all",
    "yaml": "all but ceilings",
    "PIL": "all but ceilings",
    "pydantic": "all but ceilings",
    "pyarrow": "personalise, search",
    "torchvision": "classifier",
    "safetensors": "generation, startup, personalise",
    "transformers": "generation, startup, personalise, embed",
    "diffusers": "generation, startup, personalise",
    "triton": "compiled variants on a GPU",
    "benchmarks.day.ceilings": "ceilings",
    "benchmarks.day.generation": "generation",
    "benchmarks.day.startup": "startup",
    "benchmarks.day.classifier": "classifier",
    "benchmarks.day.personalise": "personalise",
    "benchmarks.day.embed": "embed",
    "benchmarks.day.search": "search",
}
OPTIONAL = ("triton",)  # only a GPU's compiled kernels need it
DISTRIBUTIONS = {"yaml": "pyyaml", "PIL": "pillow"}
IMPORTER = """
import importlib, json, sys
for name in sys.argv[1:]:
    print(json.dumps({"module": name}), flush=True)
    try:
        module = importlib.import_module(name)
        found = {"version": str(getattr(module, "__version__", ""))}
    except BaseException as error:
        found = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps({"module": name, **found}), flush=True)
"""
TORCH = """
import json, torch
found = {"version": torch.__version__, "cuda_of_wheel": torch.version.cuda}
found["usable"] = torch.cuda.is_available()
found["architectures"] = torch.cuda.get_arch_list()
if found["usable"]:
    found["name"] = torch.cuda.get_device_name()
    found["capability"] = list(torch.cuda.get_device_capability())
    found["memory_free"], found["memory"] = torch.cuda.mem_get_info()
    found["cudnn"] = torch.backends.cudnn.version()
    try:
        total = (torch.ones(1000, device="cuda") * 2).sum().item()
        found["computes"] = total == 2000
    except RuntimeError as error:
        found["computes"], found["error"] = False, str(error).splitlines()[0]
print(json.dumps(found))
"""


def look(device: str, out: Path, scratch: Path, site: Path | None) -> Report:
    """Look at everything; return the report, with its ``problems`` in plain lines."""
    surroundings = environment(scratch, site)
    torch = _torch(surroundings)
    report: Report = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processor": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "disk_free_gb": {str(path): round(shutil.disk_usage(path).free / 1e9, 1) for path in (out, scratch)},
        "compiler": shutil.which(os.environ.get("CC", "")) or shutil.which("cc") or shutil.which("gcc"),
        "gpu": gpu.state() if device == "cuda" else None,
        "torch": torch,
        "modules": try_imports(surroundings),
        "wheels_used": sorted(path.name for path in site.glob("*.dist-info")) if site else [],
    }
    return report | {"problems": problems(report, device), "bring": bring(report)}


def _torch(surroundings: Mapping[str, str]) -> Report:
    try:
        done = subprocess.run(
            [sys.executable, "-c", TORCH], capture_output=True, text=True, timeout=120, env=dict(surroundings)
        )
        return json.loads(done.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, IndexError, ValueError):
        return {"error": "torch can't be asked: its process failed or took over 120 s"}


def try_imports(surroundings: Mapping[str, str]) -> dict[str, Report]:
    """Import each of :data:`MODULES` in fresh processes; a crash is blamed on the module that was tried."""
    found: dict[str, Report] = {}
    while waiting := [name for name in MODULES if name not in found]:
        try:
            done = subprocess.run(
                [sys.executable, "-c", IMPORTER, *waiting],
                capture_output=True,
                text=True,
                timeout=180,
                env=dict(surroundings),
            )
            text, how = done.stdout, f"its import ended the process with status {done.returncode}"
        except subprocess.TimeoutExpired as expired:
            text, how = _text(expired.stdout), "its import took over 180 s"
        tried = waiting[0]
        for line in text.splitlines():
            try:
                values = json.loads(line)
                tried = values.pop("module")
            except (ValueError, KeyError, AttributeError, TypeError):
                continue  # what a module printed
            if values:
                found[tried] = values
        found.setdefault(tried, {"error": how})
    return found


def _text(output: Any) -> str:
    return output.decode(errors="replace") if isinstance(output, bytes) else output or ""


def problems(report: Report, device: str) -> list[str]:
    """Return what keeps stages from running, one line each."""
    found = [
        f"{name}: {tried['error']} (needed by: {MODULES[name]})"
        for name, tried in report["modules"].items()
        if "error" in tried and not (name in OPTIONAL and device == "cpu")
    ]
    torch = report["torch"]
    if device == "cuda" and "error" not in torch and not torch["usable"]:
        driver = (report["gpu"] or {}).get("cuda_of_driver", "unknown: no nvidia-smi")
        found.append(
            f"torch {torch['version']} can't use the GPU: its CUDA is {torch['cuda_of_wheel']}, "
            f"the driver's {driver}; a wheel for the driver's CUDA or older is needed"
        )
    if device == "cuda" and torch.get("usable"):
        found += architecture_problem(torch)
        if torch.get("computes") is False:
            found.append(
                f"{torch['name']}: a sum of 1,000 numbers fails: {torch.get('error', 'wrong result')}"
            )
    if others := (report["gpu"] or {}).get("processes"):
        found.append(f"other processes use the GPU: {'; '.join(others)}")
    if report["compiler"] is None:
        found.append("no C compiler (cc, gcc): compiled variants fail; set CC if it has another name")
    found += [
        f"{path}: {free} GB free, 8 are needed" for path, free in report["disk_free_gb"].items() if free < 8
    ]
    return found


def architecture_problem(torch: Report) -> list[str]:
    """Return a line if torch's wheel has no code that this GPU can run."""
    major, minor = torch["capability"]
    numbers = [name.partition("_") for name in torch["architectures"]]
    binary = [_number(number) for kind, _, number in numbers if kind == "sm"]
    portable = [_number(number) for kind, _, number in numbers if kind == "compute"]
    runs = any(found[0] == major and found[1] <= minor for found in binary)
    if runs or any(found <= (major, minor) for found in portable):
        return []
    return [
        f"{torch['name']} has compute capability {major}.{minor}; torch {torch['version']} has code for "
        f"{', '.join(torch['architectures'])} only: another wheel of torch is needed"
    ]


def _number(text: str) -> tuple[int, int]:
    digits = "".join(character for character in text if character.isdigit())
    return int(digits[:-1] or 0), int(digits[-1:] or 0)


def bring(report: Report) -> list[str]:
    """Return the wheels to bring for what is missing, as lines: name, version, Python and platform."""
    pinned = locked_versions()
    lacking = [
        DISTRIBUTIONS.get(name, name)
        for name, tried in report["modules"].items()
        if "error" in tried and not name.startswith("benchmarks.")
    ]
    groups = [group for group in GROUPS if any(package in group for package in lacking)]
    packages = sorted({*lacking, *(package for group in groups for package in group)})
    tag = "cp" + "".join(report["python"].split(".")[:2])
    return [
        f"{package}=={pinned.get(package, 'any')}, for {tag} on linux {report['processor']}"
        for package in packages
    ]


def locked_versions() -> dict[str, str]:
    """Return the versions in the lock by package."""
    lines = LOCK.read_text().splitlines() if LOCK.exists() else []
    pins = (line.split(" ")[0].partition("==") for line in lines if "==" in line and line[:1].isalnum())
    return {name: version for name, _, version in pins}


def text(report: Report) -> str:
    """Format the report for the terminal."""
    state, torch = report["gpu"] or {}, report["torch"]
    lines = [
        f"Python {report['python']}, {report['platform']}, {report['cores']} cores, "
        f"C compiler: {report['compiler'] or 'none'}",
        f"torch {torch.get('version', '?')} (CUDA {torch.get('cuda_of_wheel')}, cuDNN {torch.get('cudnn')})",
    ]
    if state:
        lines += [
            f"{state.get('name')}, driver {state.get('driver_version')} "
            f"(CUDA {state.get('cuda_of_driver')}), "
            f"{state.get('memory.used')} of {state.get('memory.total')} MiB used",
            f"clocks now {state.get('clocks.sm')} and {state.get('clocks.mem')} MHz, at most "
            f"{state.get('clocks.max.sm')} and {state.get('clocks.max.mem')}; "
            f"{state.get('power.draw')} of {state.get('power.limit')} W; {state.get('temperature.gpu')} C",
        ]
    versions = [
        f"{name} {tried['version']}" for name, tried in report["modules"].items() if tried.get("version")
    ]
    lines.append(", ".join(versions))
    if report["wheels_used"]:
        lines.append(f"unpacked from wheels: {', '.join(report['wheels_used'])}")
    lines += [f"problem: {problem}" for problem in report["problems"]]
    if report["bring"]:
        lines += [f"wheels to bring (`--pack` makes the folder, at most {MOST_MB} MB):"]
        lines += [f"  {wheel}" for wheel in report["bring"]]
    lines.append("to take back: lines.jsonl, table.md, preflight.json and throughput.yaml in --out")
    return "\n".join(lines)
