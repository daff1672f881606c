"""``snakemake --profile slurm`` on a real Slurm.

A small study in which one job is cancelled, one exceeds its memory and one exceeds its time gives the table
of a local run.
"""

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

import pytest
import slurm_node
import yaml
from conftest import PROJECT, SMALL_STUDY, Workspace, make_workspace
from slurm_node import SlurmJob, SlurmNode

pytestmark = pytest.mark.full

STUDY = copy.deepcopy(SMALL_STUDY)
STUDY["methods"] = {
    name: row
    for name, row in STUDY["methods"].items()
    if name in ("none", "simple_prompt", "pseudoword_clip", "retrieval")
}
STUDY["execution"]["classes_per_job"] = 10
STUDY["corpus"] |= {"images": 1500, "distractors": 150}
STUDY["finetune"]["max_epochs"] = 1
SHARDS = 20  # per method: 10 classes in 2 parts
GENERATE = "rule_generate_simple_prompt_000"
CANDIDATES = "rule_candidates_pseudoword_clip_000"
RETRIEVE = "rule_retrieve_retrieval_000"
WITHOUT_GPUS = ("gpus_per_job=0", "threads_per_gpu=1")
PATIENCE = 600  # seconds
# the plugin waits ten seconds longer after each look in which no job has ended, and these jobs are short
SNAKEMAKE = """
from snakemake.cli import main
from snakemake_executor_plugin_slurm import Executor

Executor.next_seconds_between_status_checks = property(lambda self: 3, lambda self, seconds: None)
main()
"""


def cluster_workspace(folder: Path) -> Workspace:
    """Make a clone-like folder with the reduced study."""
    workspace = make_workspace(folder)
    (folder / "slurm").symlink_to(PROJECT / "slurm")
    workspace.write_study(STUDY)
    return workspace


@dataclass
class Run:
    """A running ``snakemake --profile slurm``, with its output in a file."""

    workspace: Workspace
    process: subprocess.Popen[str]
    log: Path

    @property
    def text(self) -> str:
        """Output so far."""
        return self.log.read_text()

    def ended(self) -> int:
        """Wait for its end and return its exit status."""
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Kill (-9) it."""
        self.process.kill()
        self.process.wait()


def start(
    workspace: Workspace,
    *arguments: str,
    targets: tuple[str, ...] = ("table1",),
    site: tuple[str, ...] = WITHOUT_GPUS,
) -> Run:
    """Start Snakemake with a user's command.

    It checks its jobs more often than usual, because they are short. ``site`` replaces the profile's values.
    """
    command = [
        sys.executable,
        "-c",
        SNAKEMAKE,
        "--profile",
        "slurm",
        "--configfile",
        "study.yaml",
        *(("--default-resources", *site) if site else ()),
    ]
    command += [*arguments, "--", *targets]
    path = workspace.folder / f"run{len(list(workspace.folder.glob('run*.log')))}.log"
    with path.open("w") as log:
        # the node has fewer real CPUs: a job with many threads would be slow
        environment = {**workspace.environment(), "OMP_THREAD_LIMIT": "1"}
        process = subprocess.Popen(
            command,
            cwd=workspace.folder,
            env=environment,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,
            # a shell makes a process that it starts with "&" ignore this signal
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
    return Run(workspace, process, path)


def stored(workspace: Workspace, method: str) -> dict[Path, int]:
    """Finished shards of a method in the store: inode by path; a new inode means remade."""
    return {path: path.stat().st_ino for path in workspace.stored_shards(method)}


def attempts(node: SlurmNode, what: str) -> list[SlurmJob]:
    """List the jobs of a rule in the order of submission."""
    return [job for job in node.jobs() if job.what == what]


def running(node: SlurmNode, what: str) -> SlurmJob | None:
    """The running job of a rule, or None."""
    return next((job for job in attempts(node, what) if job.state == "RUNNING"), None)


def stop_scripts(workspace: Workspace, name: str) -> None:
    """Make the jobs of a script hang, as if a disk no longer answered."""
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
    """The finished study, and the artifacts that were finished when its jobs were stopped."""

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
    """Run the study through Slurm to its table, at a site that sets all its values."""
    workspace = cluster_workspace(tmp_path_factory.mktemp("cluster"))
    kept: dict[str, dict[Path, int]] = {}

    def stop(what: str, method: str, how: Callable[[SlurmJob], None]) -> None:
        if (
            what not in kept
            and (job := running(node, what)) is not None
            and len(finished := stored(workspace, method)) >= 3
        ):
            how(job)
            kept[what] = finished

    def hang(job: SlurmJob) -> None:
        stop_scripts(workspace, "generate_candidates")
        node.shorten(job.number)

    run = start(
        workspace,
        *("--set-resources", f"{RETRIEVE[5:]}:mem_mb=300 if attempt == 1 else 4000"),
        site=(
            "slurm_partition=everyone",
            "gpu_type=toy",
            "gpu_partition=gpus",
            "threads_per_gpu=1",
            "longest_job=300",
        ),
    )
    try:
        while run.process.poll() is None:
            stop(GENERATE, "simple_prompt", lambda job: node.cancel(job.number))
            stop(CANDIDATES, "pseudoword_clip", hang)
            time.sleep(0.3)
    finally:
        run.kill()
    return Disturbed(run, node.jobs(), kept)


def test_the_study_ends_with_the_table_of_a_local_run(disturbed: Disturbed, tmp_path: Path) -> None:
    assert disturbed.run.process.returncode == 0, disturbed.run.text[-4000:]
    local = cluster_workspace(tmp_path)
    local.run("--target", "table1")
    for table in ("table1.csv", "table1_runs.csv"):
        assert (disturbed.workspace.results / "tables" / table).read_text() == (
            local.results / "tables" / table
        ).read_text()


def test_a_cancelled_job_is_tried_again_with_twice_the_memory_and_time(disturbed: Disturbed) -> None:
    jobs = disturbed.attempts(GENERATE)
    assert [job.state for job in jobs] == ["CANCELLED", "COMPLETED"]
    assert [job.memory for job in jobs] == ["3000M", "6000M"]
    assert [job.limit for job in jobs] == ["04:00:00", "05:00:00"], (
        "no job asks for more time than the site's longest"
    )


def test_a_job_over_its_memory_is_tried_again(disturbed: Disturbed) -> None:
    first, second = disturbed.attempts(RETRIEVE)
    assert (first.memory, second.memory, second.state) == ("300M", "4000M", "COMPLETED")
    assert first.state in ("FAILED", "OUT_OF_MEMORY")
    (log,) = (disturbed.workspace.folder / "results/slurm_logs").rglob(f"{first.number}.log")
    assert "exceeded memory limit" in log.read_text()


def test_a_job_over_its_time_is_tried_again(disturbed: Disturbed) -> None:
    jobs = disturbed.attempts(CANDIDATES)
    assert [(job.state, job.limit) for job in jobs] == [("TIMEOUT", "00:01:00"), ("COMPLETED", "05:00:00")]


@pytest.mark.parametrize(
    ("what", "log"),
    [(GENERATE, "generate/simple_prompt_000.log"), (CANDIDATES, "candidates/pseudoword_clip_000.log")],
)
def test_no_finished_shard_is_made_twice(disturbed: Disturbed, what: str, log: str) -> None:
    kept = disturbed.kept[what]
    assert len(kept) >= 3 and {path: path.stat().st_ino for path in kept} == kept
    tally = (disturbed.workspace.results / "logs" / log).read_text().rpartition("done: ")[2]
    made, taken = (int(part.split()[0]) for part in tally.splitlines()[0].split(", "))
    assert taken >= len(kept) and made + taken == SHARDS


def test_jobs_that_use_a_gpu_ask_for_the_sites_type_in_its_partition_and_no_other_does(
    disturbed: Disturbed,
) -> None:
    asked = {job.what: (job.partition, job.gpus) for job in disturbed.jobs}
    assert asked.pop("rule_corpus") == asked.pop("rule_choose_lr_pseudoword_clip") == ("everyone", "")
    assert {GENERATE, CANDIDATES, RETRIEVE} < set(asked)
    assert set(asked.values()) == {("gpus", "gres:gpu:toy:1")}


def test_small_rules_are_no_jobs(disturbed: Disturbed) -> None:
    rules = {job.what.removeprefix("rule_").partition("_wildcards_")[0] for job in disturbed.jobs}
    learned = {
        "finetune_pseudoword_clip_lr1_000",
        "choose_lr_pseudoword_clip",
        "candidates_pseudoword_clip_000",
        "classify_candidates_pseudoword_clip",
    }
    images = {
        "corpus",
        "embed_corpus",
        "search",
        "retrieve_retrieval_000",
        "generate_simple_prompt_000",
        "generate_pseudoword_clip_000",
    }
    assert rules == {*images, *learned, "classify_000"}


def test_a_finished_study_has_nothing_to_do(disturbed: Disturbed) -> None:
    run = start(disturbed.workspace)
    assert run.ended() == 0 and "Nothing to be done" in run.text


# --- what happens to the node, or to Snakemake: with the finished study, a method's shards being ma


@dataclass
class Unmade:
    """The finished study without a method's shards."""

    node: SlurmNode
    workspace: Workspace
    targets: tuple[str, ...]
    before: int  # number of Slurm's jobs before

    def start(self, site: tuple[str, ...] = WITHOUT_GPUS) -> Run:
        return start(self.workspace, targets=self.targets, site=site)

    def jobs(self) -> list[SlurmJob]:
        """List the jobs since then."""
        return self.node.jobs()[self.before :]

    def working(self) -> dict[Path, int]:
        """Wait until a job has finished some but not all shards; return those."""
        slurm_node.wait_until(
            lambda: len(stored(self.workspace, "simple_prompt")) >= 3, "a job makes shards", PATIENCE
        )
        (job,) = self.jobs()
        assert job.state == "RUNNING"
        return stored(self.workspace, "simple_prompt")


@pytest.fixture
def unmade(node: SlurmNode, disturbed: Disturbed) -> Unmade:
    workspace = disturbed.workspace
    classes = [entry["class_id"] for entry in yaml.safe_load((workspace.folder / "classes.yaml").read_text())]
    targets = [
        workspace.results / f"shards/simple_prompt/selected/{class_id}/{part}.parquet"
        for class_id in classes
        for part in (0, 1)
    ]
    for path in (*stored(workspace, "simple_prompt"), *targets):
        path.unlink(missing_ok=True)
    return Unmade(
        node, workspace, tuple(str(path.relative_to(workspace.folder)) for path in targets), len(node.jobs())
    )


def test_the_profile_as_shipped_needs_no_partition_no_account_and_no_type_of_gpu(unmade: Unmade) -> None:
    run = unmade.start(site=())
    unmade.working()
    (job,) = unmade.jobs()
    assert (job.what, job.partition, job.cpus, job.gpus) == (GENERATE, "everyone", "8", "gres:gpu:1")
    run.process.send_signal(signal.SIGINT)
    assert run.ended() != 0
    slurm_node.wait_until(lambda: unmade.jobs()[0].state == "CANCELLED", "Ctrl-C cancels the jobs", PATIENCE)


@pytest.mark.long
def test_a_job_whose_node_fails_goes_back_to_the_queue(unmade: Unmade) -> None:
    run = unmade.start()
    kept = unmade.working()
    unmade.node.fail_node()
    slurm_node.wait_until(
        lambda: not any(job.state == "RUNNING" for job in unmade.jobs()), "Slurm misses the node", PATIENCE
    )
    unmade.node.start_node()
    assert run.ended() == 0, run.text[-4000:]
    assert unmade.jobs()[-1].state == "COMPLETED" and sum(job.restarts + 1 for job in unmade.jobs()) == 2
    assert stored(unmade.workspace, "simple_prompt").items() >= kept.items()


@pytest.mark.long
def test_a_job_that_is_preempted_goes_back_to_the_queue(unmade: Unmade) -> None:
    run = unmade.start()
    kept = unmade.working()
    unmade.node.submit_urgent()
    assert run.ended() == 0, run.text[-4000:]
    ours, urgent = unmade.jobs()
    assert (ours.state, ours.restarts) == ("COMPLETED", 1) and urgent.state == "COMPLETED"
    assert stored(unmade.workspace, "simple_prompt").items() >= kept.items()


def test_a_job_that_outlives_snakemake_is_named_and_what_it_made_is_kept(unmade: Unmade) -> None:
    first = unmade.start()
    kept = unmade.working()
    stop_scripts(unmade.workspace, "generate")
    first.kill()
    second = unmade.start()
    assert second.ended() != 0 and "jobs of an earlier run are still alive (process " in second.text, (
        second.text[-4000:]
    )
    unmade.node.cancel(unmade.jobs()[0].number)
    slurm_node.wait_until(lambda: unmade.jobs()[0].state == "CANCELLED", "the job is cancelled", PATIENCE)
    third = unmade.start()
    assert third.ended() == 0, third.text[-4000:]
    assert [job.state for job in unmade.jobs()] == ["CANCELLED", "COMPLETED"]
    assert stored(unmade.workspace, "simple_prompt").items() >= kept.items()


def test_a_job_that_waits_in_the_queue_when_snakemake_is_killed_does_not_disturb_the_next_run(
    unmade: Unmade,
) -> None:
    unmade.node.hold_queue()
    try:
        first = unmade.start()
        slurm_node.wait_until(lambda: len(unmade.jobs()) == 1, "a job is queued", PATIENCE)
        first.kill()
        second = unmade.start()
        slurm_node.wait_until(lambda: len(unmade.jobs()) == 2, "the next run's is, too", PATIENCE)
    finally:
        unmade.node.hold_queue(False)
    assert second.ended() == 0, second.text[-4000:]
    orphan, job = unmade.jobs()
    assert (orphan.state, job.state) == ("FAILED", "COMPLETED")
    (log,) = (unmade.workspace.folder / "results/slurm_logs").rglob(f"{orphan.number}.log")
    assert "the run that started this job has been replaced" in log.read_text()
