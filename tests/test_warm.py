"""The warm process: a script that is handed to it runs as in a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from augbench.runtime import warm

Start = Callable[..., subprocess.Popen[str]]
FOUND = """
import augbench.runtime, os, sys
from augbench.runtime import warm
print(warm.is_fork(), "colorsys" in sys.modules, warm.in_memory("colorsys") is not None)
"""


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until(reached: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 20
    while not reached() and time.monotonic() < deadline:
        time.sleep(0.02)
    return reached()


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a script as Snakemake would, in a run with a warm process."""
    monkeypatch.delenv(warm.ADDRESS, raising=False)
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / ".snakemake/scripts"
    folder.mkdir(parents=True)
    warm.start()
    address = os.environ[warm.ADDRESS]

    def run(text: str, name: str = "job", **environment: str) -> subprocess.Popen[str]:
        script = folder / f"tmp{len(list(folder.iterdir()))}.{name}.py"
        script.write_text(text)
        return subprocess.Popen(
            [sys.executable, str(script), "argument"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, warm.ADDRESS: address, **environment},
        )

    yield run
    os.environ.pop(warm.ADDRESS)
    warm._kept.pop().close()


def test_a_script_has_its_own_surroundings_and_its_status_comes_back(start: Start, tmp_path: Path) -> None:
    text = """
import augbench.runtime, os, sys
from augbench.runtime import warm
print(warm.is_fork(), os.getcwd(), sys.argv[1:], os.environ["COLOUR"], warm.ADDRESS in os.environ, __name__)
print("to the other stream", file=sys.stderr)
sys.exit(3)
"""
    process = start(text, COLOUR="red")
    out, err = process.communicate()
    assert out == f"True {tmp_path} ['argument'] red False __main__\n"
    assert err == "to the other stream\n" and process.returncode == 3
    assert start("import augbench.runtime").wait() == 0
    failed = start("import augbench.runtime\nraise ValueError('no luck')")
    assert "ValueError: no luck" in failed.communicate()[1] and failed.returncode == 1
    stopped = start("import augbench.runtime, sys\nsys.exit('in words')")
    assert stopped.communicate()[1] == "in words\n" and stopped.returncode == 1


def test_what_a_job_has_imported_the_next_one_has_in_memory(start: Start) -> None:
    assert start(FOUND).communicate()[0] == "True False False\n"
    assert start("import augbench.runtime, colorsys").wait() == 0
    assert start(FOUND).communicate()[0] == "True True True\n"


def test_a_job_that_failed_teaches_nothing(start: Start) -> None:
    assert start("import augbench.runtime, colorsys\nraise SystemExit(1)").wait() == 1
    assert start(FOUND).communicate()[0] == "True False False\n"


def test_a_hidden_module_counts_as_imported_when_somebody_imports_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import colorsys

    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    spec = colorsys.__spec__
    warm._hide("colorsys")
    assert "colorsys" not in sys.modules and warm.in_memory("colorsys") is colorsys
    import colorsys as again

    assert again is colorsys and sys.modules["colorsys"] is colorsys and colorsys.__spec__ is spec
    assert warm.in_memory("colorsys") is colorsys and warm.in_memory("no_such_module") is None


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_ends_with_the_process_that_snakemake_has_started(start: Start, how: signal.Signals) -> None:
    waiting = start("import augbench.runtime, os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)")
    assert waiting.stdout is not None
    job = int(waiting.stdout.readline())
    assert job != waiting.pid and alive(job)
    waiting.send_signal(how)
    assert waiting.wait() == -how and wait_until(lambda: not alive(job))


def test_ctrl_c_reaches_the_job_which_cleans_up_before_it_ends(start: Start) -> None:
    text = """
import augbench.runtime, os, time
try:
    print(os.getpid(), flush=True)
    time.sleep(60)
finally:
    time.sleep(0.3)
    print("cleaned up")
"""
    waiting = start(text)
    assert waiting.stdout is not None
    job = int(waiting.stdout.readline())
    for process in (waiting.pid, job):  # a terminal sends it to all processes of the group
        os.kill(process, signal.SIGINT)
    out, err = waiting.communicate()
    assert out == "cleaned up\n" and "KeyboardInterrupt" in err and waiting.returncode == 1


def test_ctrl_c_before_the_job_has_begun_ends_without_a_traceback(
    tmp_path: Path,
) -> None:
    name = f"augbench-test-{os.getpid()}"
    script = tmp_path / ".snakemake/scripts/tmp0.job.py"
    script.parent.mkdir(parents=True)
    script.write_text("import augbench.runtime\nprint('ran')")
    with socket.socket(socket.AF_UNIX) as listener:  # takes the script, and never answers
        listener.bind(f"\0{name}")
        listener.listen(1)
        waiting = subprocess.Popen(
            [sys.executable, str(script)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, warm.ADDRESS: name},
            # a test run in the background ignores SIGINT, and so would its children
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        connection, _ = listener.accept()
        with connection:
            files: list[int] = []
            assert warm._receive(connection, files)["script"] == str(script)
            time.sleep(0.1)
            waiting.send_signal(signal.SIGINT)
            assert waiting.wait() == 130
    for number in files:
        os.close(number)
    assert waiting.communicate() == ("", "")


def test_a_killed_job_fails_with_one_line(start: Start) -> None:
    waiting = start("import augbench.runtime, os, signal\nos.kill(os.getpid(), signal.SIGKILL)")
    assert waiting.communicate()[1] == "augbench: the job's process was killed\n" and waiting.returncode == 1


def test_the_warm_process_ends_with_its_starter_and_scripts_then_run_alone(start: Start) -> None:
    assert start(FOUND).communicate()[0].startswith("True")
    warm._kept[-1].shutdown(2)
    assert wait_until(lambda: start(FOUND).communicate()[0].startswith("False"))


@pytest.mark.parametrize(("name", "address"), [("fetch_model", {}), ("job", {warm.ADDRESS: warm.OFF})])
def test_scripts_that_may_use_the_hub_and_runs_without_it_go_on_where_they_are(
    start: Start, name: str, address: dict[str, str]
) -> None:
    assert start(FOUND, name, **address).communicate()[0] == "False False False\n"
