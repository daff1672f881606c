"""The store: finished artifacts survive the loss of their targets and are never made twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import SMALL_STUDY
from safetensors.numpy import save_file

from augbench.artifacts.adopt import adopt
from augbench.artifacts.shards import ShardRow, content_of, is_kept, read_shard, write_shard
from augbench.artifacts.store import Store
from augbench.config.study import parse_study
from augbench.errors import UserError
from augbench.files import atomic_path
from augbench.personalise import stage
from augbench.runtime.job import Job


def test_an_artifact_is_made_once_and_linked_again(tmp_path: Path) -> None:
    store, target = Store(tmp_path / "store"), tmp_path / "out/a.txt"
    assert store.provide("texts", {"n": 1}, target, lambda path: path.write_text("one") and None)
    target.unlink()
    assert not store.provide("texts", {"n": 1}, target, lambda path: pytest.fail("made twice"))
    assert target.read_text() == "one"
    assert (store.tally.made, store.tally.reused) == (1, 1)


def test_another_recipe_is_another_artifact(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for number in (1, 2):
        store.provide(
            "texts",
            {"n": number},
            tmp_path / f"{number}.txt",
            lambda path, n=number: path.write_text(str(n)) and None,
        )
    assert (tmp_path / "1.txt").read_text() != (tmp_path / "2.txt").read_text()


def test_the_order_of_a_recipes_keys_does_not_matter(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert store.path("k", {"a": 1, "b": 2}, ".x") == store.path("k", {"b": 2, "a": 1}, ".x")


def test_an_artifact_that_is_not_whole_is_made_again(tmp_path: Path) -> None:
    store, target = Store(tmp_path / "store"), tmp_path / "a.txt"
    store.provide("texts", {}, target, lambda path: path.write_text("half") and None)
    made = store.provide(
        "texts",
        {},
        target,
        lambda path: path.write_text("whole") and None,
        valid=lambda path: path.read_text() == "whole",
    )
    assert made and target.read_text() == "whole"


def test_a_look_deletes_nothing_so_that_it_cannot_delete_what_another_process_has_just_made(
    tmp_path: Path,
) -> None:
    store, recipe = Store(tmp_path / "store"), {"n": 1}
    kept = store.commit("texts", recipe, ".txt", lambda path: path.write_text("half") and None)

    def valid(path: Path) -> bool:
        whole = path.read_text() == "whole"
        store.commit("texts", recipe, ".txt", lambda path: path.write_text("whole") and None)
        return whole

    assert not store.has("texts", recipe, ".txt", valid) and kept.read_text() == "whole"


def test_what_is_freed_while_it_is_looked_at_is_not_there(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.commit("texts", {}, ".txt", lambda path: path.write_text("x") and None)

    def valid(path: Path) -> bool:
        path.unlink()
        return bool(path.read_text())

    assert not store.has("texts", {}, ".txt", valid)


def test_the_use_of_an_artifact_is_known_before_it_is_in_the_store(tmp_path: Path) -> None:
    store, other = (Store(tmp_path / "store", tmp_path / name) for name in ("mine", "other"))
    seen = []

    def replace(source: Path, target: str | Path) -> Path:
        seen.append(len(other.uses.live(lambda use: use.target == "x.txt")))
        return Path(os.replace(source, target) or target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        store.provide("texts", {}, tmp_path / "mine/x.txt", lambda path: path.write_text("x") and None)
    assert seen == [1]


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def write(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.provide("texts", {}, tmp_path / "a.txt", write)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == [".claims"]


def unused(store: Store) -> int:
    used = store.uses.live()
    return sum(store.name(path) not in used for path in store.artifacts())


def test_a_target_is_a_hard_link_and_without_it_the_artifact_is_unused(tmp_path: Path) -> None:
    store, target = Store(tmp_path / "store"), tmp_path / "a.txt"
    store.provide("texts", {}, target, lambda path: path.write_text("x") and None)
    assert target.stat().st_nlink == 2 and unused(store) == 0
    target.unlink()
    assert unused(store) == 1


def test_where_links_are_not_supported_the_file_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "a.txt"
    Store(tmp_path / "store").provide("texts", {}, target, lambda path: path.write_text("x") and None)
    assert target.read_text() == "x"
    assert unused(Store(tmp_path / "store")) == 0, "uses are recorded, not counted as links"
    target.unlink()
    assert unused(Store(tmp_path / "store")) == 1


def test_two_studies_share_an_artifact_and_each_counts(tmp_path: Path) -> None:
    first, second = (Store(tmp_path / "store", tmp_path / name) for name in ("a", "b"))
    assert first.provide("texts", {"n": 1}, tmp_path / "a/x.txt", lambda path: path.write_text("x") and None)
    assert not second.provide("texts", {"n": 1}, tmp_path / "b/y.txt", lambda _: pytest.fail("made twice"))
    (users,) = first.uses.live().values()
    assert {(Path(use.study).name, use.target) for use in users} == {("a", "x.txt"), ("b", "y.txt")}
    (tmp_path / "a/x.txt").unlink()
    assert unused(first) == 0
    (tmp_path / "b/y.txt").unlink()
    assert unused(first) == 1


def test_a_target_uses_the_newest_artifact_that_it_got(tmp_path: Path) -> None:
    store, target = Store(tmp_path / "store"), tmp_path / "a.txt"
    for number in (1, 2):
        store.provide("texts", {"n": number}, target, lambda path: path.write_text("x") and None)
    assert list(store.uses.live()) == [f"texts/{store.path('texts', {'n': 2}, '.txt').name}"]
    store.uses.compact()
    assert len(list((tmp_path / "store/uses").iterdir())) == 1 and unused(store) == 1


def test_uses_stay_true_when_results_are_moved(tmp_path: Path) -> None:
    results = tmp_path / "results"
    store = Store(results / ".store", results / "s")
    store.provide("texts", {}, results / "s/a.txt", lambda path: path.write_text("x") and None)
    results.rename(tmp_path / "moved")
    assert unused(Store(tmp_path / "moved/.store")) == 0


def test_a_study_that_takes_a_file_does_not_make_it_newer_than_what_others_made_from_it(
    tmp_path: Path,
) -> None:
    stores = {name: Store(tmp_path / "store", tmp_path / name) for name in ("a", "b")}
    index, own = tmp_path / "a/index.txt", tmp_path / "a/own.txt"
    for name, store in stores.items():
        before = tmp_path / name / "prompts.txt"
        before.parent.mkdir()
        before.touch()
        target = tmp_path / name / "x.txt"
        store.provide("texts", {}, target, lambda path: path.write_text("x") and None)
        os.utime(target)  # Snakemake touches a job's outputs
        if name == "a":
            store.provide("texts", {"own": 1}, own, lambda path: path.write_text("x") and None)
            index.touch()
    os.utime(own, (4e9, 4e9))
    assert target.stat().st_mtime > index.stat().st_mtime, "one file with one time stamp"
    for _ in range(2):  # compacting the records keeps their times
        stores["a"].uses.restore_times()
        made = (tmp_path / "a/prompts.txt").stat().st_mtime
        assert made <= target.stat().st_mtime <= index.stat().st_mtime
        stores["b"].uses.restore_times()
        assert (tmp_path / "b/prompts.txt").stat().st_mtime <= target.stat().st_mtime
        stores["a"].uses.compact()
    assert own.stat().st_mtime == 4e9, "of this study alone"


def test_a_link_to_a_target_is_a_use_and_has_a_time_of_its_own(tmp_path: Path) -> None:
    stores = {name: Store(tmp_path / "store", tmp_path / name) for name in ("a", "b")}
    for name, store in stores.items():
        store.provide("texts", {}, tmp_path / name / "x.txt", lambda path: path.write_text("x") and None)
    target, link, history = (tmp_path / "a" / name for name in ("x.txt", "chosen.txt", "history.txt"))
    history.touch()  # an input of the job that links
    os.link(target, link)
    stores["a"].uses.note_links({link: target, tmp_path / "a/index.txt": history})
    stores["a"].uses.restore_times()
    assert link.stat().st_mtime >= history.stat().st_mtime
    target.unlink()
    (tmp_path / "b/x.txt").unlink()
    assert unused(stores["b"]) == 0


def test_what_a_study_needs_without_a_target_is_used_while_its_folder_exists(tmp_path: Path) -> None:
    study = tmp_path / "study"
    study.mkdir()
    store = Store(tmp_path / "store", study)
    for _ in range(2):
        kept = store.keep("vectors", {}, ".txt", lambda path: path.write_text("x") and None)
    assert kept.read_text() == "x" and (store.tally.made, store.tally.reused) == (1, 1) and unused(store) == 0
    study.rmdir()
    assert unused(store) == 1


# --- claims ---

MAKE = """
import sys, time
from pathlib import Path
from augbench.artifacts.store import Store

store, (name, seconds) = Store(Path("store"), Path(sys.argv[1])), sys.argv[1:3]

def write(path):
    print("making", flush=True)
    time.sleep(float(seconds))
    path.write_text("made by " + name)

store.provide("texts", {"n": 1}, Path(name) / "x.txt", write)
print("done", flush=True)
"""


def make(folder: Path, name: str, seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", MAKE, name, str(seconds)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1] / "src")}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> list[str]:
    return process.communicate()[0].split()


def test_what_another_process_is_making_is_waited_for_and_not_made_twice(tmp_path: Path) -> None:
    first = make(tmp_path, "a", 1.5)
    assert first.stdout is not None and first.stdout.readline() == "making\n"
    second = make(tmp_path, "b", 0)
    assert said(second) == ["done"] and said(first) == ["done"]
    assert (tmp_path / "b/x.txt").read_text() == "made by a"


def test_what_a_killed_process_was_making_is_made_by_the_next(tmp_path: Path) -> None:
    first = make(tmp_path, "a", 60)
    assert first.stdout is not None and first.stdout.readline() == "making\n"
    second = make(tmp_path, "b", 0)
    first.kill()
    assert said(second) == ["making", "done"]
    assert (tmp_path / "b/x.txt").read_text() == "made by b"
    first.communicate()


def test_items_that_nobody_makes_come_first_and_the_others_only_if_they_are_left_unmade(
    tmp_path: Path,
) -> None:
    first = make(tmp_path, "a", 1.0)
    assert first.stdout is not None and first.stdout.readline() == "making\n"
    store = Store(tmp_path / "store")

    def is_there(number: int) -> bool:
        return store.has("texts", {"n": number}, ".txt")

    groups = list(store.in_turn("texts", [1, 2, 3], lambda number: {"n": number}, is_there))
    assert groups == [[2, 3]] and is_there(1) and store.tally.reused == 1
    first.communicate()


def test_small_groups_let_several_processes_share_the_work(tmp_path: Path) -> None:
    store, made = Store(tmp_path / "store"), {2}
    groups = store.in_turn("texts", [1, 2, 3, 4], lambda number: {"n": number}, made.__contains__, at_once=1)
    assert next(groups) == [1]
    made.update((1, 3))  # another process makes the third meanwhile
    assert list(groups) == [[4]] and store.tally.reused == 2


# --- learned vectors ---


def test_what_vanishes_from_the_store_between_look_and_link_is_learned_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, store, target = parse_study(SMALL_STUDY), Store(tmp_path / "store"), tmp_path / "bag.safetensors"
    has, learned = Store.has, []

    def learn(job: Job, recipes: Mapping[str, Any], **_: object) -> None:
        learned.append([*recipes])
        vectors = {"1": np.zeros((1, 1), np.float32)}
        job.store.commit("finetune", recipes["bag"], ".safetensors", lambda path: save_file(vectors, path))

    def has_and_loses(self: Store, *asked: Any) -> bool:
        there = has(self, *asked)
        monkeypatch.setattr(Store, "has", has)
        self.path(*asked[:3]).unlink()
        return there

    bag = SimpleNamespace(info=SimpleNamespace(class_id="bag"))
    monkeypatch.setattr(stage, "class_tasks", lambda *_: [bag])
    monkeypatch.setattr(stage, "group_recipes", lambda *_: {"bag": {"group": 1}})
    monkeypatch.setattr(stage, "_model_hash", lambda *_: "")
    monkeypatch.setattr(stage, "_learn", learn)
    for change in (None, has_and_loses):
        if change is not None:
            monkeypatch.setattr(Store, "has", change)
        stage.finetune_classes(
            Job(study, store, 1), "pseudoword_clip", 1.0, "", "", "", "", None, [str(target)], {}
        )
        assert target.exists()
    assert learned == [["bag"], ["bag"]]


def test_classes_that_share_weights_are_linked_together_and_learned_again_if_a_shared_file_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, learned = Job(parse_study(SMALL_STUDY), Store(tmp_path / "store"), 1), []
    row = job.study.personalised["imagic_k2"]

    def learn(job: Job, recipes: Mapping[str, Any], groups: Mapping[str, Any], **_: object) -> None:
        learned.append([*recipes])
        vectors, epochs = {"1": np.zeros((1, 1), np.float32)}, {"epochs": '{"1": 1, "2": 2}'}
        for recipe in recipes.values():
            job.store.commit(
                "finetune", recipe, ".safetensors", lambda path: save_file(vectors, path, epochs)
            )
        for epoch in (1, 2):
            shared = stage._shared_recipe(row, groups["bag"], epoch)
            job.store.commit("finetune", shared, ".json", lambda path: path.write_text("{}") and None)
            job.store.commit("finetune", shared, ".safetensors", lambda path: save_file(vectors, path))

    classes = [SimpleNamespace(info=SimpleNamespace(class_id=name)) for name in ("bag", "coat")]
    monkeypatch.setattr(stage, "class_tasks", lambda *_: classes)
    monkeypatch.setattr(stage, "group_recipes", lambda *_: {"bag": {"group": 1}, "coat": {"group": 1}})
    monkeypatch.setattr(stage, "_model_hash", lambda *_: "")
    monkeypatch.setattr(stage, "_learn", learn)
    vectors = [str(tmp_path / f"{name}.safetensors") for name in ("bag", "coat")]
    shared = {name: str(tmp_path / "unet" / name) for name in ("1", "2")}
    for times in (1, 1, 2):
        stage.finetune_classes(job, "imagic_k2", 1.0, "", "", "", "", None, vectors, shared)
        assert len(learned) == times and all(Path(path).exists() for path in vectors)
        assert len([*(tmp_path / "unet").rglob("*.*")]) == 4, "config and weights of two candidates"
        shutil.rmtree(tmp_path / "unet")
        if times == 1 and job.store.tally.reused:
            job.store.path("finetune", {"group": 1, "unet_epoch": 2}, ".json").unlink()
    assert job.store.tally.reused == 2


# --- stores of version 0.1 ---


def earlier_store(study: Path) -> Store:
    """The own store of a study of version 0.1, which had neither records of use nor claims."""
    return Store(study / ".store", study)


def as_in_version_0_1(*stores: Store) -> None:
    for store in stores:
        shutil.rmtree(store.root / "uses")
        (store.root / ".claims").unlink()


def test_an_earlier_store_of_a_study_is_adopted_and_its_shards_lose_the_rows_name(tmp_path: Path) -> None:
    study = tmp_path / "results/s"
    earlier, store = earlier_store(study), Store(tmp_path / "results/.store", study)
    rows = [ShardRow(b"\x89PNG", 0, "bag", 0, "a bag", "model")]
    recipe = {"version": 1, "method": "clip_prompts", "class_id": "bag"}
    target = study / "shards/clip_prompts/selected/bag/0.parquet"
    earlier.provide("shards", recipe, target, lambda path: write_shard(path, rows, recipe))
    earlier.provide(
        "classifiers", {"run": 0}, study / "history.json", lambda path: path.write_text("{}") and None
    )
    as_in_version_0_1(earlier)
    (earlier.root / "classifiers/.x.tmp").touch()  # of a killed process
    content, inode = target.read_bytes(), target.stat().st_ino
    for number in (2, 0):
        assert adopt(store) == number
    assert not (study / ".store").exists()
    assert target.read_bytes() == content and target.stat().st_ino == inode
    assert store.has("classifiers", {"run": 0}, ".json") and unused(store) == 0
    other = Store(store.root, tmp_path / "results/other")
    again = tmp_path / "results/other/shards/prompts/selected/bag/0.parquet"
    assert other.take("shards", content_of({**recipe, "method": "prompts"}), again, is_kept)
    assert "method" not in read_shard(again).column_names


def test_stores_of_all_studies_beside_it_are_adopted_into_the_default_store_only(tmp_path: Path) -> None:
    results = tmp_path / "results"
    for name in ("a", "b"):
        earlier = earlier_store(results / name)
        recipe = {"by": name}
        earlier.provide("texts", recipe, results / name / "x.txt", lambda path: path.write_text("x") and None)
        as_in_version_0_1(earlier)
    assert adopt(Store(tmp_path / "elsewhere", results / "a")) == 1
    store = Store(results / ".store", results / "c")
    assert adopt(store) == 1 and store.has("texts", {"by": "b"}, ".txt") and unused(store) == 0


def test_a_store_that_a_study_names_is_not_adopted(tmp_path: Path) -> None:
    results = tmp_path / "results"
    mine = Store(results / "a/.store", results / "a")
    mine.enter()
    assert adopt(Store(results / ".store", results / "b")) == 0 and (mine.root / ".claims").exists()
    mine.provide("texts", {}, results / "a/x.txt", lambda path: path.write_text("x") and None)
    assert adopt(Store(results / ".store", results / "b")) == 0
    assert mine.has("texts", {}, ".txt") and unused(mine) == 0


def test_a_damaged_shard_is_not_adopted(tmp_path: Path) -> None:
    study = tmp_path / "results/s"
    damaged = study / ".store/shards/0.parquet"
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes(b"half")
    assert adopt(Store(tmp_path / "results/.store", study)) == 0 and damaged.exists()


def test_artifacts_from_before_keys_named_the_data_set_are_taken_over_by_their_own_study_only(
    tmp_path: Path,
) -> None:
    mine, other = (tmp_path / "results" / name for name in ("mine", "other"))
    earlier = earlier_store(mine)
    earlier.provide("classifiers", {"run": 0}, mine / "x.json", lambda path: path.write_text("{}") and None)
    as_in_version_0_1(earlier)
    store = Store(tmp_path / "results/.store", mine)
    adopt(store)
    recipe = {"run": 0, "dataset": {"kind": "image_folder", "root": "data"}}
    assert not Store(store.root, other).has("classifiers", recipe, ".json")
    assert store.has("classifiers", recipe, ".json")


def test_a_store_that_is_not_writable_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=r"store: Read-only file system; free space or make it writable"):
        Store(tmp_path / "store", tmp_path).enter()


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match=r"texts: No space left on device; free space"):
        Store(tmp_path).provide("texts", {}, tmp_path / "a.txt", write)


def test_an_atomic_file_replaces_the_old_one_or_leaves_it(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert path.read_text() == "old" and len(list(tmp_path.iterdir())) == 1
