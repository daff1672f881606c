"""GPUs of this machine: whether torch can use them, and some for each job.

A GPU that is here but can't be used is an error: on the CPU, a study for a GPU would take months.

Without a scheduler all jobs of a run see all GPUs, and torch would put each job on the first one. So a job
takes a lock of the operating system on each GPU that it uses. The lock ends with the job, even if it is
killed. On a cluster the scheduler assigns GPUs, and no locks are taken.
"""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from augbench.errors import UserError
from augbench.runtime.launcher import SCHEDULERS, lock_file

if TYPE_CHECKING:
    from augbench.config.stages import Execution

logger = logging.getLogger(__name__)
VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
OFFERED = "AUGBENCH_GPUS"  # GPUs that the jobs of a run on this machine share out
OLDEST_DRIVER = {12: 525, 13: 580}
"""Oldest driver of each major version of CUDA (NVIDIA's CUDA Compatibility, minor version compatibility)."""
CUDA12_LOCK = "`make setup CUDA=12` (envs/cuda12.lock)"
CUDA12_ARCHITECTURES = ("sm_70", "sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120")
"""Targets of the torch in envs/cuda12.lock."""
MOST_THREADS = 8  # of a job with a GPU; as threads_per_gpu in slurm/config.yaml
_held: list[ExitStack] = []  # kept open, because closing a file releases its lock


@dataclass(frozen=True)
class Gpu:
    """A GPU: its name, and its entry in ``CUDA_VISIBLE_DEVICES``: a UUID, or a number."""

    name: str
    entry: str


@dataclass(frozen=True)
class Card:
    """A GPU as torch sees it: its name, compute capability, and memory in bytes."""

    name: str
    capability: tuple[int, int]
    memory: int


@dataclass(frozen=True)
class TorchView:
    """An installed torch, and the GPUs that it can use.

    Attributes
    ----------
    version : str
        Version of torch.
    cuda : str, optional
        Version of CUDA that torch was built for; None: built without CUDA.
    architectures : sequence of str
        Targets that its kernels were compiled for: ``sm_90`` (machine code), ``compute_90`` (PTX).
    cards : sequence of Card
        Visible GPUs.
    error : str
        Reason why there are none.
    """

    version: str
    cuda: str | None
    architectures: Sequence[str] = ()
    cards: Sequence[Card] = ()
    error: str = ""


# --- which GPUs there are; without torch --------------------------------------------------------------------


def gpu_is_here(root: Path = Path("/")) -> bool:
    """Whether this process was given an NVIDIA GPU.

    False where the user has hidden all GPUs with ``CUDA_VISIBLE_DEVICES``.

    Parameters
    ----------
    root : Path
        Folder that has ``dev`` and ``proc``.
    """
    if _chosen() == []:
        return False
    files = [path for path in (root / "dev").glob("nvidia[0-9]*") if path.name[6:].isdecimal()]
    return any(map(_is_granted, files)) or ((root / "dev/dxg").exists() and bool(_listed()))


def driver_version(root: Path = Path("/")) -> str | None:
    """Version of NVIDIA's kernel driver, such as ``580.65.06``; None if it does not tell."""
    path = root / "proc/driver/nvidia/version"
    found = re.search(r"\b\d{3,}\.\d+(\.\d+)?\b", path.read_text()) if path.is_file() else None
    return found and found[0]


def visible_gpus(root: Path = Path("/")) -> list[Gpu]:
    """GPUs that this process may use; those of ``CUDA_VISIBLE_DEVICES`` if it is set."""
    if not gpu_is_here(root):
        return []
    found, chosen = _listed() or _known_to_driver(root), _chosen()
    if chosen is None:
        return found
    # CUDA's own order begins with the fastest GPU: numbers are as in the list only if all GPUs are alike
    alike = len({gpu.name for gpu in found}) == 1 or os.environ.get(ORDER) == "PCI_BUS_ID"
    numbered = alike and not any(gpu.entry.startswith("MIG-") for gpu in found)
    gpu_of = {str(number): gpu for number, gpu in enumerate(found)} if numbered else {}
    for entry in chosen:
        same = (gpu for gpu in found if gpu.entry.startswith(entry))
        gpu_of.setdefault(entry, next(same, Gpu("GPU", entry)))
    return [gpu_of[entry] for entry in chosen]


def _chosen() -> list[str] | None:
    """Entries of ``CUDA_VISIBLE_DEVICES`` up to the first invalid one, as in CUDA; None if it is not set."""
    if VISIBLE not in os.environ:
        return None
    found: list[str] = []
    for entry in map(str.strip, os.environ[VISIBLE].split(",")):
        if not re.fullmatch(r"\d+|(GPU|MIG)-.+", entry):
            break
        found.append(entry)
    return found


def _is_granted(device: Path) -> bool:
    """Whether a device file belongs to a GPU that the container or scheduler has given to this process."""
    try:
        os.close(os.open(device, os.O_RDWR))
    except OSError as error:
        return error.errno not in (errno.EPERM, errno.ENXIO, errno.ENODEV)
    return True


def _listed() -> list[Gpu]:
    """GPUs, or instances of multi-instance GPUs, as ``nvidia-smi`` lists them, in the PCI bus's order."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    try:
        done = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    found: list[Gpu] = []
    for line in done.stdout.splitlines() if done.returncode == 0 else ():
        if whole := re.match(r"GPU \d+: (.*) \(UUID: (GPU-\S+)\)", line):
            found.append(Gpu(whole[1], whole[2]))
        elif part := re.match(r"\s+MIG (\S+) .*\(UUID: (MIG-\S+)\)", line):
            if found[-1].entry.startswith("GPU-"):
                found.pop()  # CUDA uses its instances, not the whole
            found.append(Gpu(part[1], part[2]))
    return found


def _known_to_driver(root: Path) -> list[Gpu]:
    """GPUs as the driver describes them in ``/proc``, in the PCI bus's order."""
    found: list[Gpu] = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        lines = (line.partition(":") for line in path.read_text().splitlines())
        about = {name.strip(): value.strip() for name, _, value in lines}
        if not _is_granted(root / f"dev/nvidia{about.get('Device Minor', '')}"):
            continue
        uuid = about.get("GPU UUID", "?")  # question marks until somebody has used the GPU
        found.append(Gpu(about.get("Model", "GPU"), str(len(found)) if "?" in uuid else uuid))
    return found


# --- whether torch can use them -----------------------------------------------------------------------------


def require_usable(wanted: str) -> None:
    """Raise a :class:`UserError` if there is a GPU here that torch can't use.

    Parameters
    ----------
    wanted : str
        ``execution.device``, except ``cpu``.
    """
    if (found := _problem_here(wanted)) is not None:
        raise found


@cache
def _problem_here(wanted: str) -> UserError | None:
    return problem(wanted, torch_view(), driver_version()) if gpu_is_here() else None


def problem(wanted: str, view: TorchView, driver: str | None) -> UserError | None:
    """Reason why torch can't use the GPUs of this machine, with what helps; None if it can.

    Parameters
    ----------
    wanted : str
        ``execution.device``.
    view : TorchView
        What torch sees.
    driver : str, optional
        Version of the driver.
    """
    where, cpu = "execution.device", "or `execution.device: cpu`"
    torch = f"torch {view.version}"
    for card in view.cards:
        if not has_kernels(view.architectures, card.capability):
            lock = f"{CUDA12_LOCK}, " if has_kernels(CUDA12_ARCHITECTURES, card.capability) else ""
            return UserError(
                where,
                f"{wanted!r}, but {card.name} has compute capability {'.'.join(map(str, card.capability))}"
                f" and {torch} has kernels for {', '.join(view.architectures)}",
                f"allowed: {lock}another GPU ({VISIBLE}), {cpu}",
            )
    if view.cards:
        return None
    if view.cuda is None:
        return UserError(
            where, f"{wanted!r}, but {torch} was built without CUDA", f"allowed: `make setup`, {cpu}"
        )
    needed, has = OLDEST_DRIVER.get(int(view.cuda.split(".")[0]), 0), int((driver or "0").split(".")[0])
    if 0 < has < needed:
        lock = f", {CUDA12_LOCK}," if OLDEST_DRIVER[12] <= has else ""
        return UserError(
            where,
            f"{wanted!r}, but the GPU's driver is {driver} and {torch} is for CUDA {view.cuda}",
            f"allowed: driver {needed} or newer{lock} {cpu}",
        )
    hidden = f" ({VISIBLE}={os.environ[VISIBLE]})" if VISIBLE in os.environ else ""
    return UserError(
        where,
        f"{wanted!r}, but {torch} can't use the GPU that is here{hidden}, driver {driver}: {view.error}",
        f"allowed: a GPU that works, {cpu}",
    )


def has_kernels(architectures: Sequence[str], capability: tuple[int, int]) -> bool:
    """Whether kernels for ``architectures`` run on a GPU of a compute capability.

    Machine code runs on the same major number and the same or a later minor one; PTX on all later GPUs. Code
    for ``sm_90a`` runs on 9.0 alone, code for ``sm_100f`` on its family (the same major number). An empty
    list says nothing, so it counts as yes. (NVIDIA's CUDA programming guide, compute capabilities.)
    """
    for kind, major, minor, suffix in re.findall(r"(sm|compute)_(\d+)(\d)([af]?)\b", " ".join(architectures)):
        compiled = (int(major), int(minor))
        later = capability >= compiled and (
            capability[0] == compiled[0] or (kind == "compute" and not suffix)
        )
        if capability == compiled or (later and suffix != "a"):
            return True
    return not architectures


def torch_view() -> TorchView:
    """Ask torch; in a process that has chosen its GPUs already."""
    import torch

    if not torch.cuda.is_available():
        error = "no reason given"
        try:
            torch.cuda.init()
        except (RuntimeError, AssertionError) as raised:
            error = " ".join(str(raised).split())
        return TorchView(torch.__version__, torch.version.cuda, error=error)
    seen = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    cards = [Card(card.name, (card.major, card.minor), card.total_memory) for card in seen]
    return TorchView(torch.__version__, torch.version.cuda, torch.cuda.get_arch_list(), cards)


def ask_torch() -> TorchView:
    """Ask torch in a process of its own.

    This process then neither imports torch nor opens a GPU.

    Raises
    ------
    UserError
        Torch can't be imported.
    """
    done = subprocess.run([sys.executable, "-m", __name__], capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError("torch", last, "`make setup` installs it again")
    found = json.loads(done.stdout.splitlines()[-1])
    cards = [Card(**card | {"capability": tuple(card["capability"])}) for card in found.pop("cards")]
    return TorchView(**found, cards=cards)


# --- some for each job --------------------------------------------------------------------------------------


def snakemake_arguments(execution: Execution, cores: int, given: Sequence[str]) -> list[str]:
    """Limits of a run on this machine: as many jobs with a GPU as GPUs, each with its share of the cores.

    Parameters
    ----------
    execution : Execution
        A job that trains classifiers takes ``processes`` GPUs.
    cores : int
        Cores of the run. One is left for jobs without a GPU.
    given : sequence of str
        The user's arguments for Snakemake, which replace these.
    """
    names = [argument.partition("=")[0] for argument in given]
    gpus = 0 if execution.device == "cpu" or set(names) & set(SCHEDULERS) else len(visible_gpus())
    if not gpus:
        return []
    limits = [] if {"--resources", "--res"} & set(names) else ["--resources", f"gpu={gpus}"]
    if not {"--default-resources", "--default-res"} & set(names):
        threads = max(1, min(MOST_THREADS, (cores - 1) // gpus))
        limits += ["--default-resources", f"threads_per_gpu={threads}"]
        limits += [f"gpus_per_job={min(execution.processes, gpus)}"] if execution.processes else []
    return limits


def offer_gpus() -> int:
    """Let the jobs of a run without a scheduler share this machine's GPUs; return their number."""
    if gpus := visible_gpus():
        if VISIBLE not in os.environ:  # otherwise the user's numbers are in the user's order
            os.environ.setdefault(ORDER, "PCI_BUS_ID")
        os.environ[OFFERED] = " ".join(gpu.entry for gpu in gpus)
    return len(gpus)


def take_gpus(count: int) -> None:
    """Take GPUs of the run for this process until it ends, and hide the others; call this before CUDA starts.

    Jobs of other runs of the same user on this machine may have some. Then this waits.

    Parameters
    ----------
    count : int
        Number of GPUs, at most those of the run.
    """
    offered = os.environ.get(OFFERED, "").split()
    count = min(count, len(offered))
    if not count:
        return
    folder = Path(tempfile.gettempdir()) / f"augbench-gpus-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    waited = False
    while not (taken := _lock_some(folder, offered, count)):
        if not waited:
            logger.info("waiting for %d of the GPUs %s; other jobs use them", count, " ".join(offered))
        waited = True
        time.sleep(0.1 + random.random() / 5)  # jobs that want the same GPUs must not try in step
    os.environ[VISIBLE] = ",".join(taken)
    logger.info("GPU %s", os.environ[VISIBLE])


def _lock_some(folder: Path, offered: Sequence[str], count: int) -> list[str]:
    """Lock ``count`` of the GPUs and return them; lock none and return an empty list if too few are free."""
    taken = []
    with ExitStack() as stack:
        for entry in offered:
            stream = stack.enter_context((folder / entry.replace("/", "_")).open("a"))
            if lock_file(stream, fcntl.LOCK_EX | fcntl.LOCK_NB, "all jobs use the same GPU; set TMPDIR"):
                taken.append(entry)
            if len(taken) == count:
                _held.append(stack.pop_all())
                return taken
    return []


if __name__ == "__main__":
    print(json.dumps(asdict(torch_view())))
