"""``snakemake --profile slurm`` on a real Slurm: a small study with a job cancelled, one over its memory and one over its time gives the table of a local run."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import slurm_node
from conftest import PROJECT, SMALL_STUDY, Workspace, make_workspace
from slurm_node import SlurmJob, SlurmNode

pytestmark = pytest.mark.full

STUDY = copy.deepcopy(SMALL_STUDY)
STUDY["methods"] = {name: row for name, row in STUDY["methods"].items() if name in ("none", "simple_prompt", "pseudoword_clip", "retrieval")}
STUDY["execution"]["classes_per_job"] = 10
SHARDS = 20  # of a method: 10 classes in 2 parts
GENERATE = "rule_generate_000_wildcards_simple_prompt"
CANDIDATES = "rule_candidates_pseudoword_clip_000"
RETRIEVE = "rule_retrieve_000_wildcards_retrieval"
PATIENCE = 600  # seconds


def cluster_workspace(folder: Path) -> Workspace:
    """A clone-like folder with the cut-down study."""
    workspace = make_workspace(folder)
    (folder / "slurm").symlink_to(PROJECT / "slurm")
    workspace.write_study(STUDY)
    return workspace


@dataclass
class Run:
    """``snakemake --profile slurm`` under way; what it says goes to a file."""

    workspace: Workspace
    process: subprocess.Popen[str]
    log: Path

    @property
    def text(self) -> str:
        """What it has said."""
        return self.log.read_text()

    def ended(self) -> int:
        """Wait for its end; its exit status."""
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """``kill -9``."""
        self.process.kill()
        self.process.wait()


def start(workspace: Workspace, *arguments: str, targets: tuple[str, ...] = ("table1",), site: tuple[str, ...] = ("gpus_per_job=0",)) -> Run:
    """As a user types it, but that it looks after its jobs more often, for they are short."""
    command = [sys.executable, "-m", "snakemake", "--profile", "slurm", "--configfile", "study.yaml", "--default-resources", *site]
    command += ["--slurm-init-seconds-before-status-checks", "3", *arguments, "--", *targets]
    path = workspace.folder / f"run{len(list(workspace.folder.glob('run*.log')))}.log"
    with path.open("w") as log:
        process = subprocess.Popen(command, cwd=workspace.folder, env=workspace.environment(), stdout=log, stderr=log, text=True, start_new_session=True)
    return Run(workspace, process, path)


def stored(workspace: Workspace, method: str) -> dict[Path, int]:
    """Finished shards of a method in the store, with their inodes: an inode that changes was made again."""
    folder = workspace.results / ".store/shards"
    return {path: path.stat().st_ino for path in folder.glob("[!.]*") if pq.read_table(path, columns=["method"])["method"][0].as_py() == method}


def attempts(node: SlurmNode, what: str) -> list[SlurmJob]:
    """The jobs of a rule, in the order of submission."""
    return [job for job in node.jobs() if job.what == what]


def running(node: SlurmNode, what: str) -> SlurmJob | None:
    """The job of a rule that runs just now."""
    return next((job for job in attempts(node, what) if job.state == "RUNNING"), None)


def stop_scripts(workspace: Workspace, name: str) -> None:
    """Jobs of a script hang, as they do when a disk no longer answers."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command, folder = (process / "cmdline").read_text(), (process / "cwd").resolve()
        except OSError:
            continue
        if f".{name}.py" in command and folder == workspace.folder.resolve():
            os.kill(int(process.name), signal.SIGSTOP)


@pytest.fixture(scope="module")
def node() -> Iterator[SlurmNode]:
    if reason := slurm_node.missing():
        pytest.skip(reason)
    with SlurmNode() as node:
        yield node


@dataclass
class Disturbed:
    """The study as it ended, and what was finished when its jobs were stopped."""

    run: Run
    jobs: list[SlurmJob]
    kept: dict[str, dict[Path, int]] = field(default_factory=dict)

    def attempts(self, what: str) -> list[SlurmJob]:
        return [job for job in self.jobs if job.what == what]

    @property
    def workspace(self) -> Workspace:
        return self.run.workspace


@pytest.fixture(scope="module")
def disturbed(node: SlurmNode, tmp_path_factory: pytest.TempPathFactory) -> Disturbed:
    """The study through Slurm, start to table, at a site that names all it can."""
    workspace = cluster_workspace(tmp_path_factory.mktemp("cluster"))
    kept: dict[str, dict[Path, int]] = {}

    def stop(what: str, method: str, how: Callable[[SlurmJob], None]) -> None:
        job = running(node, what)
        if what not in kept and job is not None and len(finished := stored(workspace, method)) >= 3:
            how(job)
            kept[what] = finished

    run = start(
        workspace,
        *("--set-resources", f"{RETRIEVE[5:17]}:mem_mb=300 if attempt == 1 else 4000", f"{CANDIDATES[5:]}:runtime=1 if attempt == 1 else 30"),
        site=("slurm_partition=everyone", "gpu_type=toy", "gpu_partition=gpus", "threads_per_gpu=1", "longest_job=300"),
    )
    try:
        while run.process.poll() is None:
            stop(GENERATE, "simple_prompt", lambda job: node.cancel(job.number))
            stop(CANDIDATES, "pseudoword_clip", lambda _: stop_scripts(workspace, "generate_candidates"))
            time.sleep(0.1)
    finally:
        run.kill()
    return Disturbed(run, node.jobs(), kept)


def test_the_study_ends_with_the_table_of_a_local_run(disturbed: Disturbed, tmp_path: Path) -> None:
    assert disturbed.run.process.returncode == 0, disturbed.run.text[-4000:]
    local = cluster_workspace(tmp_path)
    local.run("--target", "table1")
    for table in ("table1.csv", "table1_runs.csv"):
        assert (disturbed.workspace.results / "tables" / table).read_text() == (local.results / "tables" / table).read_text()


def test_a_cancelled_job_is_tried_again_with_twice_the_memory_and_time(disturbed: Disturbed) -> None:
    jobs = disturbed.attempts(GENERATE)
    assert [job.state for job in jobs] == ["CANCELLED", "COMPLETED"]
    assert [job.memory for job in jobs] == ["3000M", "6000M"]
    assert [job.limit for job in jobs] == ["04:00:00", "05:00:00"], "no job asks for more time than the site's longest"


def test_a_job_over_its_memory_is_tried_again(disturbed: Disturbed) -> None:
    first, second = disturbed.attempts(RETRIEVE)
    assert (first.memory, second.memory, second.state) == ("300M", "4000M", "COMPLETED")
    assert first.state in ("FAILED", "OUT_OF_MEMORY")
    (log,) = (disturbed.workspace.folder / "results/slurm_logs").rglob(f"{first.number}.log")
    assert "exceeded memory limit" in log.read_text()


def test_a_job_over_its_time_is_tried_again(disturbed: Disturbed) -> None:
    jobs = disturbed.attempts(CANDIDATES)
    assert [(job.state, job.limit) for job in jobs] == [("TIMEOUT", "00:01:00"), ("COMPLETED", "00:30:00")]


@pytest.mark.parametrize(("what", "log"), [(GENERATE, "generate/simple_prompt_000.log"), (CANDIDATES, "candidates/pseudoword_clip_000.log")])
def test_no_finished_shard_is_made_twice(disturbed: Disturbed, what: str, log: str) -> None:
    kept = disturbed.kept[what]
    assert len(kept) >= 3 and {path: path.stat().st_ino for path in kept} == kept
    tally = (disturbed.workspace.results / "logs" / log).read_text().rpartition("done: ")[2]
    made, taken = (int(part.split()[0]) for part in tally.splitlines()[0].split(", "))
    assert taken >= len(kept) and made + taken == SHARDS


def test_jobs_that_use_a_gpu_ask_for_the_sites_type_in_its_partition_and_no_other_does(disturbed: Disturbed) -> None:
    asked = {job.what: (job.partition, job.gpus) for job in disturbed.jobs}
    assert asked.pop("rule_corpus") == ("everyone", "")
    assert {GENERATE, CANDIDATES, RETRIEVE} < set(asked)
    assert set(asked.values()) == {("gpus", "gres:gpu:toy:1")}


def test_small_rules_are_no_jobs(disturbed: Disturbed) -> None:
    rules = {job.what.removeprefix("rule_").partition("_wildcards_")[0] for job in disturbed.jobs}
    method = "pseudoword_clip"
    large = {f"finetune_{method}_000", f"candidates_{method}_000", f"classify_candidates_{method}", "generate_000", "retrieve_000", "classify_000"}
    assert rules == {"corpus", "embed_corpus", "search", *large}


def test_a_finished_study_has_nothing_to_do(disturbed: Disturbed) -> None:
    run = start(disturbed.workspace)
    assert run.ended() == 0 and "Nothing to be done" in run.text


@pytest.fixture
def unmade(disturbed: Disturbed) -> Iterator[tuple[Workspace, tuple[str, ...]]]:
    """The finished study without a method's shards, and those."""
    workspace = disturbed.workspace
    for path in stored(workspace, "simple_prompt"):
        path.unlink()
    shards = sorted((workspace.results / "shards/simple_prompt/selected").rglob("[0-9].parquet"))
    assert len(shards) == SHARDS
    for path in shards:
        path.unlink()
    yield workspace, tuple(str(path.relative_to(workspace.folder)) for path in shards)
