"""The terminal during a run: a line per finished step, an estimate; the end of the log if a step fails."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from snakemake_interface_logger_plugins.common import LogEvent

from augbench.progress import Progress, clock, track
from snakemake_logger_plugin_augbench import LogHandler, _Run, weight_of


def send(handler: LogHandler, event: Any, level: int = logging.INFO, text: str = "", **fields: Any) -> None:
    record = logging.LogRecord("snakemake", level, "", 0, text, None, None)
    record.__dict__.update(event=event, **fields)
    handler.emit(record)


@pytest.fixture
def handler(capsys: pytest.CaptureFixture[str]) -> LogHandler:
    made = LogHandler(None, None)  # type: ignore[arg-type]
    send(made, LogEvent.RUN_INFO, stats={"generate_000": 4, "resample": 1, "all": 1, "total": 6})
    assert capsys.readouterr().err == "5 steps to do\n", "the target's rule is no step"
    return made


def test_a_finished_step_is_one_line_with_count_and_estimate(
    handler: LogHandler, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        send(
            handler,
            LogEvent.JOB_INFO,
            jobid=number,
            rule_name="generate_000",
            rule_msg="generate images of clip_prompts",
            log=[],
        )
        send(handler, LogEvent.JOB_FINISHED, job_id=number)
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == [f"[{number}/5] 0:00 generate images of clip_prompts (0 s)" for number in (1, 2)]
    assert lines[2].startswith("[3/5] 0:00 generate images of clip_prompts (0 s), about ")
    assert lines[2].endswith(" left") and len(lines) == 3
    send(handler, LogEvent.JOB_INFO, jobid=9, rule_name="all", rule_msg=None, log=[])
    send(handler, LogEvent.JOB_FINISHED, job_id=9)
    assert capsys.readouterr().err == ""


def test_estimates_weigh_steps_by_their_kind_until_one_of_it_has_finished() -> None:
    assert weight_of("generate_017") > 10 * weight_of("resample")
    assert weight_of("candidates_003") == weight_of("generate_017")
    run = _Run(Counter(generate=10, classify=10, resample=1))
    run.finish("resample_none", 4.0)
    run.finish("generate_017", 10.0)
    assert run.left(7.0) is None, "two steps tell too little"
    run.finish("generate_018", 20.0)
    assert run.left(17.0) == pytest.approx((8 * 15 + 10 * 40 * 30 / 80) / 2), "two steps run side by side"


def test_light_steps_alone_give_no_estimate_of_heavy_ones() -> None:
    run = _Run(Counter(prompts=4, generate=2, report=1))
    for _ in range(4):
        run.finish("prompts", 15.0)
    assert run.left(60.0) is None, "8 of 90 of the weights"
    run.finish("generate_000", 20.0)
    assert run.left(80.0) == pytest.approx(20 + 2 * 20 / 40)


def test_steps_that_take_no_time_divide_by_nothing() -> None:
    run = _Run(Counter(resample=4))
    for _ in range(3):
        run.finish("resample_none", 0.0)
    assert run.left(0.0) is None


def test_a_failed_step_shows_the_end_of_its_log(
    handler: LogHandler, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    log = tmp_path / "job.log"
    log.write_text("starting\n" * 50 + "ERROR dataset.root: no such folder; give one\n")
    send(handler, LogEvent.JOB_INFO, jobid=1, rule_name="splits", rule_msg="splits", log=[str(log)])
    send(handler, None, logging.ERROR, "RuleException:\nCalledProcessError in file x")
    send(handler, LogEvent.JOB_ERROR, jobid=1)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "FAILED: splits"
    assert "ERROR dataset.root: no such folder; give one" in lines[-2] and str(log) in lines[-1]
    assert len(lines) < 10


def end_badly(handler: LogHandler, folder: Path, said: str) -> None:
    """Let a step with this log start and fail."""
    log = folder / "job.log"
    log.write_text(said)
    send(handler, LogEvent.JOB_INFO, jobid=1, rule_name="splits", rule_msg="splits", log=[str(log)])
    send(handler, LogEvent.JOB_ERROR, jobid=1)


def test_a_step_that_was_killed_says_so_for_its_log_cannot(
    handler: LogHandler, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    end_badly(handler, tmp_path, "starting\n")
    assert (
        "its log names no error: it was killed or ran out of memory"
        in capsys.readouterr().err.splitlines()[-2]
    )


def test_a_step_that_ctrl_c_stopped_is_one_line(
    handler: LogHandler, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    end_badly(handler, tmp_path, "starting\nTraceback (most recent call last):\nKeyboardInterrupt\n")
    assert capsys.readouterr().err == "stopped by Ctrl-C: splits\n"


def test_other_errors_are_shown_whole(handler: LogHandler, capsys: pytest.CaptureFixture[str]) -> None:
    send(handler, None, logging.ERROR, "MissingInputException in rule splits:\nMissing input files")
    assert "Missing input files" in capsys.readouterr().err


def test_long_work_logs_rate_and_estimate(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    progress = Progress("images", 10, "image", interval=0)
    progress.update(4, note="1 flagged")
    assert "images: 4/10 images" in caplog.text and "ETA" in caplog.text and "1 flagged" in caplog.text
    assert list(track("ab", "letters", unit="letter")) == ["a", "b"]
    assert "letters: 2/2 letters" in caplog.text


def test_times_are_readable() -> None:
    assert [clock(seconds) for seconds in (5, 65, 3605)] == ["0:05", "1:05", "1:00:05"]
