"""Fixtures that the tests share: a clone-like working directory, and one finished small study."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

from augbench.artifacts.shards import read_footer
from augbench.data import fashion_mnist

PROJECT = Path(__file__).resolve().parents[1]
DOWNLOADS = PROJECT / "results/downloads"
LINKED = ("Snakefile", "workflow", "src", "resources", "envs", "config", "profiles")

LEAST_STUDY: dict[str, Any] = {  # for code that needs a study and none of its values
    "study": "s",
    "dataset": {"kind": "fashion_mnist"},
    "diffusion": {"model": "none"},
    "clip": {"model": "none"},
    "methods": {"none": {"mechanism": "real"}},
    "augmentation": {"images_per_class": 1},
}
SMALL_STUDY: dict[str, Any] = {
    "study": "small",
    "dataset": {
        "kind": "fashion_mnist",
        "classes": "classes.yaml",
        "train_fraction": 0.0014,
        "validation_fraction": 0.002,
        "test_images_per_class": 20,
    },
    "corpus": {"kind": "miniature", "images": 3000, "distractors": 300},
    "diffusion": {
        "model": "resources/mini/stable-diffusion",
        "resolution": 32,
        "scheduler": "ddim",
        "steps": 2,
        "guidance_scale": 2.0,
        "dtype": "float32",
    },
    "clip": {"model": "resources/mini/clip"},
    "methods": {
        "none": {"mechanism": "real"},
        "real_20pct": {"mechanism": "real", "split": "train2x"},
        "simple_prompt": {"mechanism": "sample", "prompt": {"class_name": "lemmas"}},
        "clip_prompts": {"mechanism": "sample", "prompt": {"templates": "clip"}},
        "boomerang": {
            "mechanism": "sample",
            "start": "training_images",
            "steps": 10,
            "guidance_scale": 1.0,
            "prompt": {"templates": "empty"},
        },
        # these two are not in the paper: a new method is only a new row
        "pseudoword_clip": {
            "mechanism": "personalise",
            "learn": "pseudoword",
            "prompt": {"templates": "clip"},
            "candidates": ["val_loss", 1],
        },
        "imagic_k2": {
            "mechanism": "personalise",
            "learn": "conditioning",
            "clusters": 2,
            "train_unet": True,
            "lr_grid": [1.0, 3.0],
            "candidates": [1, 2],
        },
        "retrieval": {"mechanism": "retrieve", "images_per_class": 10, "duplicate_threshold": 0.999},
    },
    "finetune": {"features": "clip", "max_epochs": 2, "patience": 1},
    "augmentation": {"images_per_class": 20, "images_per_part": 10, "resamples": 2},
    "leakage": {"clip_threshold": 0.98, "neighbours": 1},
    "classifier": {
        "layers": [1, 1, 1, 1],
        "arch": "resnet18",
        "base_width": 8,
        "stem": "small",
        "resolution": 32,
        "evaluation_resize": 32,
        "batch_size": 32,
        "lr": 0.05,
        "max_epochs": 2,
    },
    "report": {"paper_study": "imagenet10"},
    "execution": {"classes_per_job": 5, "runs_per_job": 2, "batch_size": 20},
}


# modules that take a process longer than a minute, the longest first
LONGEST = (
    "test_slurm",
    "test_two_studies",
    "test_stable_answers",
    "test_gpu_day",
    "test_faults",
    "test_full_studies",
    "test_web_retrieval",
    "test_draws",
    "test_safety",
    "test_benchmark_scripts",
    "test_compiling",
    "test_fake_cuda",
    "test_personalise",
    "test_classifier",
    "test_ddp",
)


def uses_the_finished_study(path: Path) -> bool:
    """Whether a test module uses the finished study, which runs once for all tests."""
    return re.search("(finished|current): Workspace", path.read_text(encoding="utf-8")) is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the slowest modules first, so that no process works alone at the end."""
    places = {name: place for place, name in enumerate(LONGEST)}

    def place(path: Path) -> int:
        return -1 if uses_the_finished_study(path) else places.get(path.stem, len(LONGEST))

    order = {path: place(path) for path in {item.path for item in items}}
    items.sort(key=lambda item: order[item.path])


class ByModule(LoadScopeScheduling):
    """Run modules in parallel; those that use the finished study share a process, which runs it once."""

    def _split_scope(self, nodeid: str) -> str:
        module = nodeid.partition("::")[0]
        return "the finished study" if uses_the_finished_study(PROJECT / module) else module

    def _reschedule(self, node: WorkerController) -> None:
        """Hand a process its next module one test before it needs it; xdist does so two tests before.

        A test of minutes would hold back the module that waits behind it, while another process is idle.
        """
        if node not in self.assigned_work or self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByModule:
    """Distribute the tests of ``make test`` among its processes."""
    return ByModule(config, log)


@dataclass(frozen=True)
class Workspace:
    """A working directory that looks like a fresh clone, with a study in ``study.yaml``."""

    folder: Path

    @property
    def results(self) -> Path:
        """Folder of the small study's results."""
        return self.folder / "results/small"

    @property
    def store(self) -> Path:
        """The store that all studies here share."""
        return self.folder / "results/.store"

    def stored_shards(self, method: str) -> dict[Path, dict[str, Any]]:
        """Finished shards of a method's kind in the store, with their recipes, which name no method."""
        personalised = self.study["methods"][method]["mechanism"] == "personalise"
        found = {}
        for path in (self.store / "shards").glob("[!.]*"):
            recipe = read_footer(path)["recipe"]
            if "diffusion" in recipe and ("learned" in recipe) == personalised:
                found[path] = recipe
        return found

    @property
    def study(self) -> dict[str, Any]:
        """The study in ``study.yaml``."""
        return yaml.safe_load((self.folder / "study.yaml").read_text())

    def write_study(self, study: Mapping[str, Any]) -> None:
        """Replace ``study.yaml``."""
        (self.folder / "study.yaml").write_text(yaml.safe_dump(dict(study), sort_keys=False))

    def environment(self) -> dict[str, str]:
        """The jobs' environment: one thread, this clone's package."""
        path = os.pathsep.join(filter(None, [str(self.folder / "src"), os.environ.get("PYTHONPATH", "")]))
        return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}

    def augbench(self, *arguments: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run ``augbench`` here, after the command's ``prefix`` (see ``namespaces.py``)."""
        command = [*prefix, sys.executable, "-m", "augbench.cli", *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True
        )

    def run(self, *extra: str, prefix: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
        """Run the study to its end; fail the test if the run fails."""
        done = self.augbench("run", "--configfile", "study.yaml", "--cores", "2", *extra, prefix=prefix)
        assert done.returncode == 0, done.stderr[-4000:]
        return done

    def leave_behind(self) -> None:
        """Mark the study as not up to date, so that only a test that needs it pays for a whole run."""
        (self.folder / "behind").touch()

    def catch_up(self) -> None:
        """Run the study if a test has marked it as not up to date."""
        if (self.folder / "behind").exists():
            self.run()
            (self.folder / "behind").unlink()

    def plan(self, *arguments: str, configfiles: Sequence[str] = ("study.yaml",)) -> dict[str, int]:
        """Number of jobs per rule in a dry run."""
        command = [
            sys.executable,
            "-m",
            "snakemake",
            "-n",
            "--quiet",
            "rules",
            "--cores",
            "2",
            *arguments,
            "--configfile",
            *configfiles,
        ]
        done = subprocess.run(
            command, cwd=self.folder, env=self.environment(), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        table = re.findall(r"^(\w+) +(\d+)$", done.stdout.split("Job stats:")[-1], re.MULTILINE)
        return {rule: int(count) for rule, count in table if rule not in ("total", "all")}


def fetch_garments() -> Path:
    """Fetch Fashion-MNIST and return its folder; the first process fetches while the others wait.

    It is fetched before any workflow starts, because Snakemake removes a job's output files before it runs
    the job, while other tests read them.
    """
    DOWNLOADS.mkdir(parents=True, exist_ok=True)
    with open(DOWNLOADS / "tests.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        fashion_mnist.fetch(DOWNLOADS / "fashion_mnist")
    return DOWNLOADS / "fashion_mnist"


def make_workspace(folder: Path) -> Workspace:
    """Make a clone-like folder; it shares the project's downloads, so that each is fetched once."""
    fetch_garments()
    for name in LINKED:
        (folder / name).symlink_to(PROJECT / name)
    (folder / "results").mkdir()
    (folder / "results/downloads").symlink_to(DOWNLOADS)
    (folder / "classes.yaml").write_text((PROJECT / "resources/classes/fashion_mnist.yaml").read_text())
    workspace = Workspace(folder)
    workspace.write_study(SMALL_STUDY)
    return workspace


@pytest.fixture(scope="session")
def garment_files() -> Path:
    """The folder of Fashion-MNIST's files."""
    return fetch_garments()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """A fresh working directory with the small study in it, nothing run yet."""
    return make_workspace(tmp_path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The small study, run once to its end through the launcher.

    Tests that change it restore it, or mark it as not up to date.
    """
    workspace = make_workspace(tmp_path_factory.mktemp("study"))
    workspace.run()
    return workspace


@pytest.fixture
def current(finished: Workspace) -> Workspace:
    """The finished study with everything up to date, whichever tests ran before."""
    finished.catch_up()
    return finished


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """Restore our logger's level, which a command run in this process sets."""
    logger = logging.getLogger("augbench")
    level = logger.level
    yield
    logger.setLevel(level)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Limit torch to one thread during the test."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


# --- folders of images ----------------------------------------------------------------------


def noise(seed: int, side: int = 16) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    return Image.fromarray(values)


def write_images(folder: Path, names: Iterable[str], first: int = 0) -> Path:
    """Write different images; ``first`` is the number of the first one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        noise(first + number).save(folder / name)
    return folder


def numbered(count: int) -> list[str]:
    return [f"{number:03d}.png" for number in range(count)]


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Working folder with a data set of two classes in ``pets`` and a corpus in ``corpus``."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("cat", "dog")):
        write_images(tmp_path / "pets" / name, numbered(12), 100 * number)
    write_images(tmp_path / "corpus/x", numbered(12), 1000)
    return tmp_path
