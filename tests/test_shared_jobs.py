"""Several jobs share a search or an embedding: config, plan, estimate, and the workflow."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from conftest import PROJECT, SMALL_STUDY, Workspace

from augbench.commands.plan.estimate import estimate_study
from augbench.commands.plan.show import render
from augbench.commands.plan.work import Work
from augbench.config.study import load_study, parse_study
from augbench.errors import UserError
from augbench.plan import recipes
from augbench.plan.jobs import job_file, numbers
from augbench.plan.paths import Plan

SHARED = {"search_jobs": 3, "embed_jobs": 2}


def small(draws: int = 1, **execution: int) -> dict[str, Any]:
    """A study with a row that asks with a text and one that asks with training images."""
    study = copy.deepcopy(SMALL_STUDY)
    retrieval = study["methods"]["retrieval"]
    study["methods"] = {
        "none": {"mechanism": "real"},
        "retrieval": retrieval,
        "by_images": {**retrieval, "query": {"images": "train"}},
    }
    study["dataset"]["draws"] = draws
    study["corpus"] |= {"images": 400, "distractors": 60}
    study["execution"] |= execution
    return study


# --- config and plan ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"), [("search_jobs", 0), ("embed_jobs", -1), ("search_jobs", 1001), ("embed_jobs", "two")]
)
def test_a_number_of_jobs_that_can_not_be_is_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"execution\.{name}: {value!r}; allowed: "):
        parse_study(small(**{name: value}))  # type: ignore[arg-type]


@pytest.mark.parametrize("search", [{"kind": "miniature", "search": "clip_retrieval_index"}, None])
def test_only_an_exact_search_is_shared(search: dict[str, Any] | None) -> None:
    server = {"kind": "clip_retrieval_server", "url": "http://a", "index": "b", "clip": "resources/mini/clip"}
    study = small(search_jobs=2) | {"corpus": search or server}
    with pytest.raises(UserError, match=r"execution\.search_jobs: .*one job; allowed: 1"):
        parse_study(study)


def test_one_job_has_no_further_files_and_recipes_do_not_name_the_number_of_jobs() -> None:
    one, several = (Plan(parse_study(small(**execution)), ("a", "b")) for execution in ({}, SHARED))
    assert one.search_files("retrieval") == {} and one.embedded_in_blocks([0]) == []
    assert one.embed_blocks == one.search_blocks == numbers(1) == []
    assert several.search_files("retrieval")["searched"] == [
        f"results/small/retrieval/retrieval/searched/00{block}.json" for block in range(3)
    ]
    for recipe in (recipes.search_recipe, recipes.retrieve_recipe):
        assert recipe(one.study, "retrieval") == recipe(several.study, "retrieval")
    assert recipes.embed_recipe(one.study) == recipes.embed_recipe(several.study)
    assert recipes.table_recipe(one.study) == recipes.table_recipe(several.study)


def test_a_manifest_is_replayed_by_one_job() -> None:
    study = small(**SHARED)
    study["methods"]["retrieval"]["manifest"] = "manifest.parquet"
    plan = Plan(parse_study(study), ("a", "b"))
    assert plan.searched_in_blocks == ["by_images"] and plan.search_files("retrieval") == {}


def test_the_time_of_a_block_is_its_rows(tmp_path: Path) -> None:
    job = job_file(tmp_path / "search_block/by_images_draw1_002.tsv")
    assert (job.stage, job.method) == ("search_block", "by_images_draw1")


def test_the_workflow_has_the_jobs_that_share_the_work_in_every_draw(workspace: Workspace) -> None:
    workspace.write_study(small(draws=2, **SHARED))
    jobs = workspace.plan()
    # by_images searches in each of the two draws, retrieval once
    assert (jobs["search_queries"], jobs["search_block"], jobs["search"]) == (3, 9, 3)
    assert (jobs["embed_corpus_block"], jobs["embed_corpus"]) == (2, 1)
    assert [jobs[f"embed_pools_0_00{block}"] for block in range(2)] == [1, 1]


# --- estimate -------------------------------------------------------------------------------------


def test_the_plan_of_5_85_billion_vectors_follows_from_its_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = PROJECT / "config"
    estimate = estimate_study(load_study([config / "imagenet10.yaml", config / "overlays/laion_5b.yaml"]))
    (found,) = [step for step in estimate.steps if (step.stage, step.method) == ("search", "retrieval")]
    # 8 blocks, the queries, the merge; 5.85e9 x 768 x 2 bytes at 1 GB/s, and 15 s of start-up per block
    assert found.jobs == 10
    assert found.gpu_hours == pytest.approx((5.85e9 * 768 * 2 / 1e9 + 8 * 15) / 3600)
    (line,) = [line for line in render(estimate).splitlines() if line.startswith("Search of retrieval:")]
    assert "8 jobs share 8.99 TB of vectors, 0.32 h and 32 GB of memory each" in line
    narrow = Work(estimate.plan, estimate.throughput)
    narrow.__dict__["clip_config"] = {"embed_dim": 512}  # as of ViT-B/32
    assert narrow.corpus_bytes == 5.85e9 * 512 * 2
    assert narrow.search_hours("retrieval") == pytest.approx(estimate.search_hours("retrieval") * 512 / 768)


def test_a_search_whose_neighbours_exist_is_done_although_its_other_files_are_deleted(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(workspace.folder)
    study = parse_study(small(**SHARED))
    neighbours = Path(Plan(study, ()).neighbours("retrieval"))

    def jobs() -> tuple[int, int]:
        found = [step for step in estimate_study(study).steps if step.stage == "search"]
        return found[-1].jobs, next(step for step in found if step.method == "retrieval").jobs_done

    assert jobs() == (5, 0)
    neighbours.parent.mkdir(parents=True)
    neighbours.touch()
    assert jobs() == (5, 5)


# --- the workflow ---------------------------------------------------------------------------------


@pytest.mark.full
def test_jobs_that_share_the_work_write_the_neighbours_of_one_job(workspace: Workspace) -> None:
    """The embeddings come from the store; a search that is repeated reads nothing."""
    neighbours = Path("results/small/retrieval/by_images/neighbours.parquet")

    def made(**execution: int) -> Any:
        workspace.write_study(small(**execution))
        workspace.run("--", "--force", str(neighbours))
        return pq.read_table(workspace.folder / neighbours)

    alone = made()
    for kept in (workspace.store / "exact_search").glob("*.npz"):
        kept.unlink()
    assert alone.equals(made(**SHARED))
    searched = workspace.results / "benchmarks/search_block"
    assert {path.stem for path in searched.glob("*.tsv")} == {f"by_images_00{block}" for block in range(3)}
    assert not (workspace.results / "retrieval/by_images/searched").exists(), "deleted after the merge"
