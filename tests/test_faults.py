"""The fault matrix (docs/faults.md), row by row.

Each fault is really provoked, gives a clear message, and loses no finished work; a rerun completes.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import PROJECT, SMALL_STUDY, Workspace, make_workspace
from namespaces import namespace

from augbench.artifacts.shards import read_footer
from augbench.files import canonical_hash

pytestmark = pytest.mark.full

STUDY = copy.deepcopy(SMALL_STUDY)
STUDY["methods"] = {
    name: row
    for name, row in STUDY["methods"].items()
    if name in ("none", "simple_prompt", "pseudoword_clip", "retrieval")
}
STUDY["corpus"] |= {"images": 1000, "distractors": 100}
STUDY["diffusion"]["model"] = "models/stable-diffusion"
STUDY["retrieval"] = {"exclude": "none"}  # so that baselines do not wait for retrieval
STUDY["leakage"] = {"action": "off"}
STUDY["classifier"]["max_epochs"] = 6
SHARDS = 10  # per job of simple_prompt: 5 classes in 2 parts
FIRST_CLASSES = ("t_shirt_top", "trouser", "pullover", "dress", "coat")  # of job 000
KILLED = (
    "its log names no error: it was killed or ran out of memory; "
    "its finished parts are kept, so run the same command again"
)


def kept(workspace: Workspace) -> dict[str, int]:
    """Finished artifacts in the store with their inodes, without partial files; a new inode means remade."""
    store = workspace.store
    return {
        str(path.relative_to(store)): path.stat().st_ino
        for path in store.glob("*/[!.]*")
        if path.parent.name != "uses"
    }


def count(workspace: Workspace, kind: str, suffix: str = "") -> int:
    return sum(name.startswith(f"{kind}/") and name.endswith(suffix) for name in kept(workspace))


def shards_made(workspace: Workspace, method: str) -> int:
    """Number of a method's shards in the store, for the classes of its first job."""
    recipes = workspace.stored_shards(method).values()
    return sum(recipe["class_id"] in FIRST_CLASSES for recipe in recipes)


@dataclass
class Victim:
    """A job to kill while it works.

    Attributes
    ----------
    log : str
        Its log.
    message : str
        Name of the job in the report of its failure.
    reached : callable
        Whether it has come far enough, according to the study's files and its log.
    most : int
        Maximum number of artifacts that are made again.
    least : int
        Minimum number of artifacts that are taken from the store.
    """

    log: str
    message: str
    reached: Callable[[Workspace, str], bool]
    most: int
    least: int

    def kill(self, workspace: Workspace) -> bool:
        """Kill (-9) the job if it has come far enough; return whether it was killed."""
        log = workspace.results / "logs" / self.log
        if not log.is_file() or not self.reached(workspace, log.read_text()):
            return False
        writers = [process for process in Path("/proc").glob("[0-9]*") if writes_to(process, log)]
        assert writers, f"{self.log}: ended before it was killed: {log.read_text()}"
        for process in writers:
            os.kill(int(process.name), signal.SIGKILL)
        return True


def writes_to(process: Path, log: Path) -> bool:
    """Whether a process prints to ``log``."""
    try:
        return os.readlink(process / "fd/1") == str(log.resolve())
    except OSError:
        return False


VICTIMS = {
    "generate": Victim(
        "generate/simple_prompt_000.log",
        "generate images of simple_prompt",
        lambda work, log: shards_made(work, "simple_prompt") >= 2,
        SHARDS - 2,
        2,
    ),
    "finetune": Victim(
        "finetune/pseudoword_clip_000_lr1.log",
        "fine-tune pseudoword_clip",
        lambda work, log: "epoch 1 of" in log,
        5,
        0,
    ),
    # five classes, each with a shard and a ledger
    "retrieve": Victim(
        "retrieve/retrieval_000.log", "retrieve images: retrieval", lambda work, log: "round 1" in log, 10, 0
    ),
    "classify": Victim(
        "classify/none_000.log",
        "train classifiers: none",
        lambda work, log: count(work, "predictions") >= 1,
        7,
        1,
    ),
}


@dataclass(frozen=True)
class Killed:
    """A study of which four jobs were killed in the first run, and which a second run completed.

    Attributes
    ----------
    said : str
        Output of the first run.
    kept : dict
        Artifacts that the first run finished.
    logs : dict
        Logs of the killed jobs from the second run.
    """

    workspace: Workspace
    said: str
    kept: dict[str, int]
    logs: dict[str, str]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Killed:
    """Run the study twice; in the first run a job of each kind is killed while it works."""
    workspace = make_workspace(tmp_path_factory.mktemp("faults"))
    shutil.copytree(PROJECT / "resources/mini/stable-diffusion", workspace.folder / "models/stable-diffusion")
    workspace.write_study(STUDY)
    alive = set(VICTIMS)
    command = [sys.executable, "-m", "augbench.cli", "run", "--configfile", "study.yaml", "--cores", "2"]
    with (workspace.folder / "run.log").open("w") as log:
        process = subprocess.Popen(
            command,
            cwd=workspace.folder,
            env=workspace.environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        try:
            while process.poll() is None:
                alive -= {name for name in alive if VICTIMS[name].kill(workspace)}
                time.sleep(0.02)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    said = (workspace.folder / "run.log").read_text()
    assert not alive and process.returncode == 1, f"{sorted(alive)} never came that far: {said}"
    finished = kept(workspace)
    workspace.run()
    return Killed(
        workspace,
        said,
        finished,
        {name: (workspace.results / "logs" / victim.log).read_text() for name, victim in VICTIMS.items()},
    )


@pytest.fixture
def study(killed: Killed) -> Iterator[Workspace]:
    """The finished study, which must be complete again after the test."""
    yield killed.workspace
    assert killed.workspace.plan() == {}


def tally(log: str) -> tuple[int, int]:
    """Numbers of artifacts that a job made, and took from the store."""
    made, taken = re.findall(r"done: (\d+) made, (\d+) taken from the store", log)[-1]
    return int(made), int(taken)


@pytest.mark.parametrize("name", VICTIMS)
def test_a_job_killed_at_its_work_is_named_and_a_rerun_makes_only_what_it_had_not_finished(
    killed: Killed, name: str
) -> None:
    victim = VICTIMS[name]
    report = killed.said[killed.said.index(f"FAILED: {victim.message}\n") :].splitlines()
    log = f"    the whole log: results/small/logs/{victim.log}"
    assert report[: report.index(log)][-1].strip() == KILLED
    made, taken = tally(killed.logs[name])
    assert 0 < made <= victim.most and taken >= victim.least


def test_killed_jobs_cost_the_others_nothing_and_a_rerun_makes_nothing_twice(
    killed: Killed, study: Workspace
) -> None:
    assert len(killed.kept) > 5
    after = kept(study)
    assert {name: after.get(name) for name in killed.kept} == killed.kept
    assert (
        "augbench: stopped after" in killed.said
        and "finished work is kept, run again to resume" in killed.said
    )


# --- shards ---------------------------------------------------------------------------------------


def truncated(content: bytes) -> bytes:
    return content[:-50]


def bit_flipped(content: bytes) -> bytes:
    place = content.index(b"IDAT") + 100
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def foreign(content: bytes) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(pa.table({"image": [b"x"]}), stream)
    return stream.getvalue().to_pybytes()


def stored(workspace: Workspace, shard: Path) -> Path:
    """Path of a shard in the store."""
    return workspace.store / "shards" / f"{canonical_hash(read_footer(shard)['recipe'])}.parquet"


def shard_of(workspace: Workspace, class_id: str, part: int = 0) -> Path:
    return workspace.results / f"shards/simple_prompt/selected/{class_id}/{part}.parquet"


def failed_run(workspace: Workspace) -> str:
    """Output of a run that fails."""
    done = workspace.augbench("run", "--configfile", "study.yaml", "--cores", "2")
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (truncated, "not a whole Parquet file"),
        (bit_flipped, "its content does not match its checksum"),
        (foreign, "a Parquet file that is not a shard"),
    ],
)
def test_a_damaged_shard_is_named_and_after_deleting_it_only_it_is_made_again(
    study: Workspace, damage: Callable[[bytes], bytes], said: str
) -> None:
    shard = shard_of(study, "bag")
    content, before = shard.read_bytes(), kept(study)
    with shard.open("r+b") as stream:  # the store's copy is the same file
        stream.truncate(stream.write(damage(content)))
    (study.results / "tables/diagnostics.csv").unlink()  # so that a job reads the shard
    lines = [line for line in failed_run(study).splitlines() if said in line]
    named = "results/small/shards/simple_prompt/selected/bag/0.parquet: "
    # a line for each job that reads it
    assert lines
    assert all(named in line and line.endswith("delete it and run again: it is remade") for line in lines)
    shard.unlink()
    study.run()
    assert tally((study.results / "logs/generate/simple_prompt_001.log").read_text()) == (1, SHARDS - 1)
    assert shard.read_bytes() == content
    remade = str(stored(study, shard).relative_to(study.store))
    assert {name: inode for name, inode in kept(study).items() if name != remade} == {
        name: inode for name, inode in before.items() if name != remade
    }


def test_damaged_and_foreign_shards_in_the_store_are_made_again_and_not_handed_out(study: Workspace) -> None:
    shards = {class_id: shard_of(study, class_id) for class_id in ("bag", "shirt", "sandal", "sneaker")}
    content = {class_id: shard.read_bytes() for class_id, shard in shards.items()}
    damaged = {
        "bag": truncated(content["bag"]),
        "shirt": bit_flipped(content["shirt"]),
        "sandal": foreign(b""),
        "sneaker": shard_of(study, "sneaker", part=1).read_bytes(),  # a complete shard of another recipe
    }
    for class_id, shard in shards.items():
        copy_kept = stored(study, shard)
        copy_kept.unlink()
        copy_kept.write_bytes(damaged[class_id])
        shard.unlink()
    study.run()
    assert tally((study.results / "logs/generate/simple_prompt_001.log").read_text()) == (4, SHARDS - 4)
    assert {class_id: shard.read_bytes() for class_id, shard in shards.items()} == content


# --- disks ----------------------------------------------------------------------------------------

RUN = """
import json, os, subprocess, sys
from pathlib import Path

def sh(*command):
    subprocess.run(command, check=True)

def run():
    command = [sys.executable, "-m", "augbench.cli", "run", "--configfile", "study.yaml", "--cores", "2"]
    done = subprocess.run(command, capture_output=True, text=True)
    log = Path("results/small/logs/generate/simple_prompt_001.log").read_text()
    return done.returncode, done.stderr, log
"""
FULL_DISK = """
store, free = "results/.store", int(sys.argv[1])
sh("cp", "-a", store, "store")
sh("mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", store)
sh("cp", "-a", "store/.", store)
disk = os.statvfs(store)
with open(f"{store}/filler", "wb") as filler:
    for block in range(disk.f_bavail - free):
        filler.write(bytes(disk.f_frsize))
first = run()
os.unlink(f"{store}/filler")
print(json.dumps([first, run()]))
"""
READ_ONLY = """
sh("mount", "--bind", "results", "results")
sh("mount", "-o", "remount,bind,ro", "results")
print(json.dumps([run()]))
"""


def runs_with_own_mounts(workspace: Workspace, code: str, *arguments: str) -> list[tuple[int, str, str]]:
    """Exit status, output and log of `generate`, for each run in ``code``."""
    command = [*namespace("--mount"), sys.executable, "-c", RUN + code, *arguments]
    done = subprocess.run(
        command, cwd=workspace.folder, env=workspace.environment(), capture_output=True, text=True
    )
    if "mount: " in done.stderr:
        pytest.skip(f"no mounts here: {done.stderr.splitlines()[0]}")
    assert done.returncode == 0, done.stderr
    return [tuple(run) for run in json.loads(done.stdout)]


def test_a_full_disk_is_one_line_and_what_was_finished_before_is_not_made_again(study: Workspace) -> None:
    """Run with a disk that has space for one of two missing shards, then with enough space."""
    shards = [shard_of(study, "sandal", part) for part in (0, 1)]
    content = [shard.read_bytes() for shard in shards]
    pages = [-(-len(data) // 4096) for data in content]
    for shard in shards:
        stored(study, shard).unlink()
        shard.unlink()
    full, room = runs_with_own_mounts(study, FULL_DISK, str(sum(pages) - 1))
    assert full[0] == 1
    (line,) = [line for line in full[1].splitlines() if "No space left on device" in line]
    assert "results/.store/shards: " in line and line.endswith(
        "free space or make it writable, then run again; nothing finished is lost"
    )
    assert room[0] == 0, room[1]
    assert tally(room[2]) == (1, SHARDS - 1)
    assert [shard.read_bytes() for shard in shards] == content


def test_read_only_results_are_one_line_before_anything_runs(study: Workspace) -> None:
    (study.results / "figures/figure1.png").unlink()
    before = kept(study)
    ((status, said, _),) = runs_with_own_mounts(study, READ_ONLY)
    assert status == 1
    assert said.splitlines() == [
        "augbench: results/small: not writable; a writable folder for results is needed"
    ]
    study.run()
    assert (study.results / "figures/figure1.png").is_file() and kept(study) == before


# --- models ---------------------------------------------------------------------------------------


def test_a_missing_model_file_is_one_line_before_anything_runs(study: Workspace) -> None:
    weights = study.folder / "models/stable-diffusion/unet/diffusion_pytorch_model.safetensors"
    before = kept(study)
    weights.rename(study.folder / "weights")
    (study.results / "figures/figure1.png").unlink()
    said = failed_run(study).splitlines()
    assert said == [
        "augbench: models/stable-diffusion/unet: no weights; allowed: a .safetensors or .bin file; "
        "download the model again"
    ]
    (study.folder / "weights").rename(weights)
    study.run()
    assert kept(study) == before
