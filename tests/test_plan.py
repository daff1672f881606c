"""The plan: a pure function of config and class ids."""

from __future__ import annotations

import copy
import os
import sys
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT, SMALL_STUDY

from augbench.cli import parser
from augbench.config.study import load_study, parse_study
from augbench.errors import UserError
from augbench.plan import recipes
from augbench.plan.jobs import blocks
from augbench.plan.load import load_plan
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


def test_nothing_is_made_of_listed_classes_and_the_files_of_the_others_stay() -> None:
    ids = tuple("abcdefg")
    data = {**copy.deepcopy(SMALL_STUDY), "retrieval": {"exclude": ["b", "f"]}}
    every, left = (Plan(parse_study(study), ids) for study in (SMALL_STUDY, data))

    def files(plan: Plan) -> set[str]:
        found = {*plan.vectors("imagic_k2", 1.0, plan.folders), *plan.ledgers("retrieval")}
        for method in plan.study.pooled:
            found |= set(plan.shards(method))
        for paths in plan.candidate_shards("pseudoword_clip", plan.folders).values():
            found |= set(paths)
        return found

    gone = files(every) - files(left)
    assert files(left) < files(every)
    assert gone == {path for path in files(every) if {"b", "f"} & {*Path(path).parts, Path(path).stem}}
    assert {class_id for block in left.class_blocks for class_id in block.members} == {*"acdeg"}
    assert left.excluded == ["results/small/retrieval/excluded.json"]


def test_new_keys_are_in_recipes_only_if_they_are_set() -> None:
    study = parse_study(SMALL_STUDY)
    assert "attempts_per_image" not in recipes.generate_recipe(study, "clip_prompts")
    assert "least_images" not in str(recipes.table_recipe(study)) and "exclude" not in recipes.prompts_recipe(
        study, "clip_prompts"
    )
    changed = plan_of(
        augmentation__attempts_per_image=3,
        finetune__excluded_classes="leave_out",
        finetune__lr_counts="own",
    ).study
    assert recipes.generate_recipe(changed, "clip_prompts")["attempts_per_image"] == 3
    learned = {name: recipes.finetune_recipe(changed, name, 1.0)["finetune"] for name in changed.personalised}
    assert all(found["lr_counts"] == "own" for found in learned.values())
    assert learned["imagic_k2"]["excluded_classes"] == "leave_out"
    assert "excluded_classes" not in learned["pseudoword_clip"], "its U-Net is frozen"
    listed = parse_study({**SMALL_STUDY, "retrieval": {"exclude": ["b"]}})
    assert recipes.prompts_recipe(listed, "clip_prompts")["exclude"] == ["b"]


def test_a_class_is_left_out_by_the_name_of_its_folder_or_by_its_id() -> None:
    for named in ("hot dog", "hot~20dog"):
        study = parse_study({**SMALL_STUDY, "retrieval": {"exclude": [named]}})
        assert study.retrieval.listed == {"hot~20dog"}
        assert parse_study(study.model_dump(mode="json")) == study
    literal = parse_study({**SMALL_STUDY, "retrieval": {"exclude": ["100%25", "a~b"]}})
    assert literal.retrieval.listed == {"100~2525", "a~7Eb"}


def test_a_shared_unet_waits_for_retrieval_only_if_it_leaves_classes_out() -> None:
    for plan, waits in (
        (plan_of(), False),
        (plan_of(finetune__excluded_classes="leave_out"), True),
    ):
        assert bool(plan.excluded_from_learning("imagic_k2")) is waits
        assert plan.excluded_from_learning("pseudoword_clip") == []


def test_set_0_is_drawn_from_the_whole_pool_where_images_take_turns() -> None:
    config = copy.deepcopy(SMALL_STUDY)
    config["methods"]["cycle"] = {"mechanism": "sample", "prompt": {"templates": "clip", "draw": "cycle"}}
    study = parse_study(config)
    redrawn = [name for name in study.augmented if "set_0" in recipes.resample_recipe(study, name)]
    assert redrawn == ["boomerang", "cycle"]
    config["augmentation"] = {"images_per_class": 20}  # one part: set 0 is from the whole pool as it is
    assert "set_0" not in recipes.resample_recipe(parse_study(config), "boomerang")


def test_a_listed_class_that_is_not_there_ends_the_parse() -> None:
    config = {**copy.deepcopy(SMALL_STUDY), "retrieval": {"exclude": ["hot dog"]}}
    config["dataset"]["classes"] = "fashion_mnist"
    with pytest.raises(
        SystemExit, match=r"retrieval\.exclude: 'hot dog'; allowed: class_ids of the data set"
    ):
        load_plan(config, PROJECT)


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"least_images": 9}, r"methods\.retrieval\.least_images: 9; allowed: at most .* which is not set"),
        ({"least_images": 9, "images_per_class": 8}, "least_images: 9; allowed: at most images_per_class, 8"),
        (
            {"least_images": 9, "images_per_class": 9, "may_fall_short": True},
            "least_images: 9; allowed only without may_fall_short, which leaves no class out",
        ),
        ({"drop_tagged": "no"}, r"methods\.retrieval\.drop_tagged: 'no'; allowed: true or false"),
    ],
)
def test_limits_of_retrieval_that_can_not_be_are_named(row: dict[str, object], line: str) -> None:
    methods = {"none": {"mechanism": "real"}, "retrieval": {"mechanism": "retrieve", **row}}
    with pytest.raises(UserError, match=line):
        parse_study({**SMALL_STUDY, "methods": methods})


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


def test_a_pool_has_a_target_for_the_parts_that_the_same_rows_draw_from() -> None:
    draw = {"mechanism": "draw", "pool": "clip_prompts"}
    rows = {name: {**draw, "images_per_class": images} for name, images in (("a", 10), ("b", 30), ("c", 600))}
    ids, study = tuple("abcdefg"), copy.deepcopy(SMALL_STUDY)
    study["methods"] |= rows
    study["execution"]["classes_per_job"] = 20
    plan = Plan(parse_study(study), ids)
    assert plan.spans("simple_prompt") == [range(2)]
    assert plan.spans("clip_prompts") == [range(1), range(1, 2), range(2, 3), range(3, 28), range(28, 53),
                                          range(53, 60)], "a list has at most 25 parts"  # fmt: skip
    lists = "results/small/shards/simple_prompt/lists/0-1"
    assert plan.pool_targets("simple_prompt", 2) == [f"{lists}/000.json", f"{lists}/001.json"]
    assert plan.pool_targets("clip_prompts", 1) == [plan.shard("clip_prompts", name, "0") for name in ids]
    jobs = {block.name: block for block in plan.generate_blocks("clip_prompts")}
    assert (jobs["000"].parts, len(jobs["000"].members)) == (("0", "1"), 7)
    assert (len(jobs["000_part3"].parts), len(jobs["000_part3"].members)) == (25, 5), "fewer classes in a job"
    targets = {path: shards for block in jobs.values() for path, shards in block.targets.items()}
    assert len({shard for shards in targets.values() for shard in shards}) == 60 * len(ids)
    for name, row in rows.items():
        drawn = plan.pool_targets("clip_prompts", row["images_per_class"] // 10)
        assert sorted(shard for path in drawn for shard in targets[path]) == sorted(plan.shards(name))


def test_one_part_per_class_has_the_files_of_earlier_versions() -> None:
    plan = plan_of(augmentation__images_per_part=None, execution__classes_per_job=2)
    blocks = plan.generate_blocks("clip_prompts")
    assert [block.members for block in blocks] == [block.members for block in plan.class_blocks]
    assert [[*block.targets] for block in blocks] == [
        [plan.shard("clip_prompts", class_id, "0") for class_id in block.members] for block in blocks
    ]
    assert not any(block.lists for block in blocks)


def test_rows_without_added_images_are_trained_as_often_as_the_others() -> None:
    plan = plan_of(augmentation__resamples=5)
    runs = {name: [path for path in plan.results() if f"/{name}/" in path] for name in plan.methods}
    assert {len(paths) for paths in runs.values()} == {5} and {"none", "real_20pct"} < set(runs)


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


# --- what Snakemake has merged before the plan sees it ----------------------------------------------

REPEATS = {
    "section": ("classifier: {lr: 0.1}\n", "'classifier' is given twice, first in line "),
    "method": ("  simple_prompt: {mechanism: sample}\n", "'simple_prompt' is given twice, first in line "),
    "key": ("  scheduler: ddim\n", "'scheduler' is given twice, first in line "),
}


def repeated(folder: Path, kind: str) -> Path:
    """A copy of the small study that gives a section, a method or a key again."""
    text, (line, _) = yaml.safe_dump(SMALL_STUDY, sort_keys=False), REPEATS[kind]
    place = {"section": 0, "method": text.index("methods:\n") + 9, "key": text.index("diffusion:\n") + 11}[
        kind
    ]
    path = folder / "study.yaml"
    path.write_text(text[:place] + line + text[place:])
    return path


@pytest.mark.parametrize("kind", REPEATS)
def test_a_section_method_or_key_given_twice_is_an_error(tmp_path: Path, kind: str) -> None:
    path = repeated(tmp_path, kind)
    with pytest.raises(UserError) as raised:
        load_study([path])
    assert f"{path}, line " in str(raised.value) and REPEATS[kind][1] in str(raised.value)
    # Snakemake has merged the file already
    with pytest.raises(SystemExit) as ended:
        load_plan(yaml.safe_load(path.read_text()), PROJECT, [path])
    assert str(ended.value) == f"augbench: {raised.value}"


def test_a_config_from_a_pipe_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    os.mkfifo(tmp_path / "pipe")
    config = {**copy.deepcopy(SMALL_STUDY), "dataset": {"kind": "fashion_mnist"}}
    assert load_plan(config, PROJECT, [tmp_path / "pipe"]).study.study == "small"


def test_augbench_reads_the_files_of_every_configfile_option() -> None:
    arguments = ["check", "--configfile", "a", "b", "--configfile", "c"]
    assert parser().parse_args(arguments).configfile == ["a", "b", "c"]


@pytest.mark.parametrize(
    "options", [["--configfile", "a", "--configfile", "b"], ["--configfile=a", "--configfiles", "b"]]
)
def test_snakemake_may_not_be_given_configfile_twice_because_it_drops_the_first(
    monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/env/snakemake/__main__.py", "-n", *options])
    with pytest.raises(
        SystemExit, match=r"augbench: --configfile: given 2 times, .*; allowed: once, with all files"
    ):
        load_plan({}, PROJECT)
