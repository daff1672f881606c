"""Selection: only validation accuracy decides, and files that others use are not dropped."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from augbench.artifacts.shards import ShardRow, encode_image, write_shard
from augbench.artifacts.store import Store
from augbench.errors import UserError
from augbench.files import write_json
from augbench.personalise.select import drop_from_store, select


def results(folder: Path, **accuracies: float) -> dict[str, Path]:
    paths = {}
    for candidate, val_top1 in accuracies.items():
        paths[candidate] = folder / candidate / "result.json"
        write_json(paths[candidate], {"val_top1": val_top1, "n_val": 100, "test_top1": None})
    return paths


def test_the_best_validation_accuracy_wins_and_all_are_recorded(tmp_path: Path) -> None:
    assert (
        select("m", results(tmp_path, train_loss=0.4, val_loss=0.6, epoch1=0.5), tmp_path / "m.json")
        == "val_loss"
    )
    written = json.loads((tmp_path / "m.json").read_text())
    assert written["selected"] == "val_loss"
    assert [(row["candidate"], row["val_top1"]) for row in written["candidates"]] == [
        ("train_loss", 0.4),
        ("val_loss", 0.6),
        ("epoch1", 0.5),
    ]


def test_candidates_say_how_their_training_ended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    paths = results(tmp_path, val_loss=0.6, epoch1=0.5)
    for path, rising in zip(paths.values(), (True, False), strict=True):
        ending = {"steps": 120, "stopped": "max_epochs", "rising": rising}
        write_json(path, {**json.loads(path.read_text()), **ending})
    with caplog.at_level("INFO"):
        select("m", paths, tmp_path / "m.json")
    written = json.loads((tmp_path / "m.json").read_text())["candidates"]
    assert [(row["steps"], row["stopped"], row["rising"]) for row in written] == [
        (120, "max_epochs", True),
        (120, "max_epochs", False),
    ]
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1 and warnings[0].startswith("m, candidate val_loss: training was cut while")


def test_the_first_of_equals_wins(tmp_path: Path) -> None:
    assert select("m", results(tmp_path, val_loss=0.6, epoch1=0.6), tmp_path / "m.json") == "val_loss"


def test_a_candidate_that_saw_the_test_split_is_refused(tmp_path: Path) -> None:
    paths = results(tmp_path, val_loss=0.6, epoch1=0.5)
    write_json(paths["epoch1"], {"val_top1": 0.5, "n_val": 100, "test_top1": 0.9})
    with pytest.raises(UserError, match=r"epoch1/result\.json: scored on the test split"):
        select("m", paths, tmp_path / "m.json")
    assert not (tmp_path / "m.json").exists()


def test_dropping_the_losers_spares_what_is_the_winners_too(tmp_path: Path) -> None:
    store = Store(tmp_path / ".store")
    rows = [ShardRow(encode_image(Image.new("RGB", (4, 4)), "png", 95), 0, "bag", 0, "a bag", "model")]
    paths = {}
    for name, recipe in (("winner", {"learned": 1}), ("same", {"learned": 1}), ("loser", {"learned": 2})):
        paths[name] = tmp_path / name / "bag/0.parquet"
        store.provide(
            "shards", recipe, paths[name], lambda path, recipe=recipe: write_shard(path, rows, recipe)
        )
    assert drop_from_store(store, [paths["winner"]], [paths["same"], paths["loser"]]) == 1
    assert store.has("shards", {"learned": 1}, ".parquet") and not store.has(
        "shards", {"learned": 2}, ".parquet"
    )


def test_dropping_the_losers_spares_what_another_study_uses(tmp_path: Path) -> None:
    rows = [ShardRow(encode_image(Image.new("RGB", (4, 4)), "png", 95), 0, "bag", 0, "a bag", "model")]
    stores = {name: Store(tmp_path / ".store", tmp_path / name) for name in ("mine", "other")}
    paths = {name: tmp_path / name / "loser/bag/0.parquet" for name in stores}
    recipe = {"learned": 1}
    for name, store in stores.items():
        store.provide("shards", recipe, paths[name], lambda path: write_shard(path, rows, recipe))
    winner = tmp_path / "mine/winner/bag/0.parquet"
    stores["mine"].provide("shards", {}, winner, lambda path: write_shard(path, rows, {}))
    assert drop_from_store(stores["mine"], [winner], [paths["mine"]]) == 0
    paths["other"].unlink()  # Snakemake deletes a job's outputs before it runs
    assert drop_from_store(stores["mine"], [winner], [paths["mine"]]) == 0
    (tmp_path / "other/tables").mkdir()
    (tmp_path / "other/tables/table1.csv").touch()
    assert drop_from_store(stores["mine"], [winner], [paths["mine"]]) == 1


def test_of_two_unfinished_studies_the_last_that_selects_drops_the_losers(tmp_path: Path) -> None:
    rows = [ShardRow(encode_image(Image.new("RGB", (4, 4)), "png", 95), 0, "bag", 0, "a bag", "model")]
    dropped = []
    for name in ("a", "b"):
        for part, recipe in (("winner", {}), ("loser", {"learned": 1})):
            write = partial(write_shard, rows=rows, recipe=recipe)
            target = tmp_path / name / part / "bag/0.parquet"
            Store(tmp_path / ".store", tmp_path / name).provide("shards", recipe, target, write)
    for name in ("a", "b"):
        store, folder = Store(tmp_path / ".store", tmp_path / name), tmp_path / name
        losers = [folder / "loser/bag/0.parquet"]
        dropped.append(drop_from_store(store, [folder / "winner/bag/0.parquet"], losers))
        losers[0].unlink()
    assert dropped == [0, 1]
