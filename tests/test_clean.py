"""`augbench clean`: what no study uses is shown, and freed on request only."""

from __future__ import annotations

import errno
import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from augbench.artifacts import claims
from augbench.artifacts.store import Store, open_store
from augbench.commands.clean import clean
from augbench.config.study import Study, parse_study
from augbench.errors import UserError


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    """A finished study in the working directory."""
    monkeypatch.chdir(tmp_path)
    made = parse_study(
        {
            "study": "mine",
            "dataset": {"kind": "fashion_mnist"},
            "diffusion": {"model": "none"},
            "clip": {"model": "none"},
            "methods": {"none": {"mechanism": "real"}},
            "augmentation": {"images_per_class": 1},
        }
    )
    (tmp_path / "results/mine/tables").mkdir(parents=True)
    (tmp_path / "results/mine/tables/table1.csv").touch()
    return made


def fill(store: Store, *numbers: int) -> None:
    for number in numbers:
        target = store.study / f"{number}.txt"
        store.provide("texts", {"n": number}, target, lambda path: path.write_bytes(bytes(10**6)) and None)


def texts() -> int:
    return len(list(Path("results/.store/texts").iterdir()))


def test_unused_files_are_shown_by_kind_and_deleted_only_on_request(study: Study) -> None:
    store = open_store(study)
    fill(store, 1, 2, 3)
    (store.study / "2.txt").unlink()
    shown = clean(study)
    assert [line.split() for line in shown.splitlines()[1:3]] == [
        ["texts", "2", "2.0", "1", "1.0"],
        ["all", "2", "2.0", "1", "1.0"],
    ]
    assert "`augbench clean --delete` deletes the unused files" in shown and texts() == 3
    assert "1 unused files deleted" in clean(study, delete=True)
    assert texts() == 2 and "delete" not in clean(study)


def test_what_another_study_or_an_unfinished_one_uses_stays(study: Study) -> None:
    store, other = open_store(study), Store(Path("results/.store"), Path("results/other"))
    fill(store, 1)
    fill(other, 1, 2)
    shutil.rmtree("results/mine")
    (other.study / "2.txt").unlink()
    clean(study, delete=True)
    assert texts() == 2, "the other study has no table yet"
    (other.study / "tables").mkdir()
    (other.study / "tables/table1.csv").touch()
    clean(study, delete=True)
    assert texts() == 1


def test_what_only_an_unfinished_study_needs_is_freed_once_it_is_finished(study: Study) -> None:
    store = open_store(study)
    for number in (1, 2):
        store.commit("latents", {"n": number}, ".npy", lambda path: path.write_bytes(b"1") and None)
    store.note_passing_uses("latents", [{"n": 1}, {"n": 2}], ".npy")
    table = Path("results/mine/tables/table1.csv")
    table.unlink()
    assert "0 unused files deleted" in clean(study, delete=True)
    table.touch()
    assert "2 unused files deleted" in clean(study, delete=True)


ENTER = """
import sys
from pathlib import Path
from augbench.artifacts.store import Store

Store(Path("results/.store"), Path("results/other")).enter()
print("entered", flush=True)
sys.stdin.read()
"""


def test_nothing_is_deleted_while_a_run_uses_the_store(study: Study) -> None:
    fill(open_store(study), 1)
    (open_store(study).study / "1.txt").unlink()
    run = subprocess.Popen(
        [sys.executable, "-c", ENTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdout is not None and run.stdout.readline() == "entered\n"
    with pytest.raises(UserError, match=r"results/\.store: a run is using this store; wait for it to end"):
        clean(study, delete=True)
    assert texts() == 1
    run.communicate()
    clean(study, delete=True)
    assert texts() == 0


def test_what_a_run_is_writing_is_not_listed_and_what_vanishes_does_no_harm(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_store(study), 1, 2)
    (temporary := Path("results/.store/texts/.x.txt.0.tmp")).touch()
    found = [line.split()[:4:3] for line in clean(study).splitlines()[1:2]]
    assert found == [["texts", "0"]]
    gone, artifacts = Path("results/.store/texts/gone.txt"), Store.artifacts
    with monkeypatch.context() as patch:
        patch.setattr(Store, "artifacts", lambda *asked, **how: [*artifacts(*asked, **how), gone])
        assert clean(study).splitlines()[1].split()[:2] == ["texts", "2"]
    clean(study, delete=True)
    assert not temporary.exists() and texts() == 2, "of a killed process"


def test_nothing_is_deleted_where_no_locks_tell_whether_a_run_uses_the_store(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(open_store(study), 1)
    (open_store(study).study / "1.txt").unlink()

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(claims, "_without_locks", set())
    monkeypatch.setattr(fcntl, "lockf", refuse)
    with pytest.raises(
        UserError, match=r"results/\.store: its file system has no locks.*; nothing is deleted"
    ):
        clean(study, delete=True)
    assert texts() == 1 and "1.0" in clean(study)


def test_an_empty_store_is_one_line(study: Study) -> None:
    assert clean(study) == "results/.store: empty"
