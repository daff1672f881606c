"""The plan: a pure function of config and class ids."""

from __future__ import annotations

import copy

from conftest import SMALL_STUDY

from augbench.config.study import parse_study
from augbench.plan import recipes
from augbench.plan.jobs import blocks
from augbench.plan.paths import Plan

IDS = ("a", "b", "c")


def plan_of(**changes: object) -> Plan:
    data = copy.deepcopy(SMALL_STUDY)
    for path, value in changes.items():
        section, name = path.split("__")
        data[section][name] = value
    return Plan(parse_study(data), IDS)


def test_blocks_cut_in_order() -> None:
    assert [(block.name, block.members) for block in blocks("abcde", 2)] == [
        ("000", ("a", "b")),
        ("001", ("c", "d")),
        ("002", ("e",)),
    ]


def test_shards_do_not_depend_on_blocks() -> None:
    assert plan_of().shards("clip_prompts") == plan_of(execution__classes_per_job=1).shards("clip_prompts")


def test_a_retrieved_pool_is_one_shard_per_class() -> None:
    assert plan_of().shards("retrieval") == [
        f"results/small/shards/retrieval/selected/{class_id}/0.parquet" for class_id in IDS
    ]


def test_parts_cover_the_pool_and_a_larger_pool_only_adds_parts() -> None:
    small = plan_of().study.augmentation
    large = plan_of(augmentation__images_per_class=45).study.augmentation
    assert (small.parts, large.parts) == (2, 5)
    assert [large.part_range(part, 8) for part in range(2)] == [
        small.part_range(part, 8) for part in range(2)
    ]
    assert sum(len(large.part_range(part, 8)) for part in range(5)) == 45


def test_a_pool_in_multiples_of_the_training_images() -> None:
    data = copy.deepcopy(SMALL_STUDY)
    data["augmentation"] = {"images_per_training_image": 3}
    augmentation = parse_study(data).augmentation
    assert augmentation.parts == 3 and augmentation.part_range(2, 80) == range(160, 240)


def test_null_removes_a_method() -> None:
    data = copy.deepcopy(SMALL_STUDY)
    data["methods"]["retrieval"] = None
    assert "retrieval" not in Plan(parse_study(data), IDS).methods


def test_execution_settings_are_in_no_recipe() -> None:
    def everything(plan: Plan) -> list[object]:
        study = plan.study
        per_method = [
            f(study, m) for m in plan.study.sampled for f in (recipes.prompts_recipe, recipes.generate_recipe)
        ]
        per_method += [recipes.retrieve_recipe(study, m) for m in plan.study.retrieved] + [
            recipes.classifier_recipe(study, m) for m in plan.methods
        ]
        per_method += [
            f(study, m)
            for m in plan.study.retrieved
            for f in (recipes.search_recipe, recipes.resample_recipe)
        ]
        return [
            *per_method,
            recipes.splits_recipe(study),
            recipes.corpus_recipe(study),
            recipes.table_recipe(study),
            recipes.shortfall_recipe(study),
        ]

    changed = plan_of(execution__batch_size=3, execution__classes_per_job=1, execution__device="cpu")
    assert everything(plan_of()) == everything(changed)


def test_a_methods_guidance_is_in_its_own_recipe_only() -> None:
    data = copy.deepcopy(SMALL_STUDY)
    data["methods"]["clip_prompts"]["guidance_scale"] = 5.0
    before, after = plan_of().study, parse_study(data)
    assert recipes.generate_recipe(before, "clip_prompts") != recipes.generate_recipe(after, "clip_prompts")
    assert recipes.generate_recipe(before, "simple_prompt") == recipes.generate_recipe(after, "simple_prompt")
