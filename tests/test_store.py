"""The store: finished artifacts survive the loss of their targets and are never made twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from augbench.artifacts.store import Store
from augbench.errors import UserError
from augbench.files import atomic_path


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


def test_a_failed_write_leaves_nothing_behind(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def write(path: Path) -> None:
        path.write_text("half")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        store.provide("texts", {}, tmp_path / "a.txt", write)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_target_is_a_hard_link_and_unused_artifacts_are_found(tmp_path: Path) -> None:
    store, target = Store(tmp_path / "store"), tmp_path / "a.txt"
    store.provide("texts", {}, target, lambda path: path.write_text("x") and None)
    assert target.stat().st_nlink == 2 and store.unused() == []
    target.unlink()
    assert len(store.unused()) == 1


def test_where_links_are_not_supported_the_file_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    target = tmp_path / "a.txt"
    Store(tmp_path / "store").provide("texts", {}, target, lambda path: path.write_text("x") and None)
    assert target.read_text() == "x"


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
