"""The paper's studies at full size.

The promises of their configs, rows that draw from other rows' pools, and a run over ImageNet's whole class
table.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import PROJECT, SMALL_STUDY, Workspace
from hostile_server import hostile_server
from PIL import Image
from pydantic_core import PydanticUndefined

from augbench.artifacts.pool import SCHEMA, read_index
from augbench.commands.check.study import check_study
from augbench.commands.plan.estimate import estimate_study
from augbench.config.base import Section
from augbench.config.data import ImageFolder
from augbench.config.methods import DrawMethod, PersonaliseMethod, RealMethod, RetrieveMethod
from augbench.config.problems import ConfigError
from augbench.config.study import Study, load_study, parse_study
from augbench.data.classes import load_class_table
from augbench.data.sources import open_source
from augbench.errors import UserError
from augbench.files import read_json
from augbench.plan.paths import Plan
from augbench.prompts.stage import write_prompts
from augbench.report.protocol import CANDIDATES, IMAGIC_CANDIDATES, paper_results
from augbench.resample import Drawing, draw

STUDIES = ("imagenet10", "imagenet_full", "caltech256")
IDS = [info.class_id for info in load_class_table("imagenet")]


def config_of(name: str) -> Path:
    return PROJECT / f"config/{name}.yaml"


def plan_of(study: Study) -> Plan:
    return Plan(
        study, tuple(info.class_id for info in open_source(study.dataset, study.seed, study.corpus).classes())
    )


# --- what the configs say -------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_missing_here_is_named_in_a_line_each(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    study = load_study([config_of(name)])
    with pytest.raises(ConfigError) as caught:
        check_study(study)
    root = {"caltech256": "data/256_ObjectCategories"}.get(name, "data/imagenet")
    assert [(problem.where, str(problem).partition(", ")[0]) for problem in caught.value.problems] == [
        ("dataset.root", f"dataset.root: '{root}'"),
        ("corpus.folder", "corpus.folder: 'data/laion'"),
    ]


def changed_keys(section: Section, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yield the paths of given keys that differ from the schema's defaults.

    Keys without a default and labels are left out, because they need no explanation.
    """
    for name in section.model_fields_set:
        value, field = getattr(section, name), type(section).model_fields[name]
        if isinstance(value, Section):
            yield from changed_keys(value, (*path, name))
        elif name == "methods":
            for row, method in value.items():
                yield from changed_keys(method, (*path, name, row))
        elif field.default is not PydanticUndefined and value != field.default and name != "label":
            yield (*path, name)


def unexplained(text: str) -> list[str]:
    """Keys that differ from their defaults and have no comment.

    The comment is on the key's line or, for a row of the methods, above its group.
    """
    lines = text.splitlines()
    places: dict[tuple[str, ...], int] = {}

    def walk(node: yaml.Node, path: tuple[str, ...]) -> None:
        for key, value in node.value if isinstance(node, yaml.MappingNode) else ():
            places[(*path, key.value)] = key.start_mark.line
            walk(value, (*path, key.value))

    walk(yaml.compose(text), ())

    def comment(path: tuple[str, ...]) -> str:
        line = places[path]
        if path[0] != "methods":
            return lines[line].partition("#")[2]
        above = [
            number for number in range(places["methods",], line) if lines[number].lstrip().startswith("#")
        ]
        return lines[above[-1]] if above else ""

    keys = changed_keys(parse_study(yaml.safe_load(text)))
    return sorted(
        ".".join(path)
        for path in keys
        if not re.search(r"section \d|Figure \d|(\S+ +){2}\S", comment(path).strip())
    )


@pytest.mark.parametrize("name", STUDIES)
def test_every_key_that_differs_from_its_default_has_the_papers_section_or_a_reason(name: str) -> None:
    assert unexplained(config_of(name).read_text(encoding="utf-8")) == []


def test_a_key_without_its_comment_would_be_found() -> None:
    text = config_of("imagenet10").read_text(encoding="utf-8")
    bare = re.sub(r" +#.*", "", text)
    assert {
        "augmentation.images_per_class",
        "finetune.dtype",
        "methods.retrieval.min_aesthetics",
        "methods.pseudoword_dm.lr_grid",
    } <= set(unexplained(bare))
    assert unexplained(text.replace("image_format: jpeg ", "image_format: webp #")) == []
    assert unexplained(re.sub(r"(image_format: jpeg) .*", r"\1", text)) == ["augmentation.image_format"]


@pytest.mark.parametrize("name", STUDIES)
def test_the_papers_rows_are_all_there_and_no_other_but_figure_5bs_and_controls(name: str) -> None:
    study = load_study([config_of(name)])
    assert study.report.paper_study == name
    others = {row for row, method in study.methods.items() if row not in paper_results(name)}
    assert set(paper_results(name)) <= set(study.methods)
    assert {study.methods[row].group for row in others} == (
        {"scaling", "control"} if name == "imagenet10" else set()
    )


def test_the_main_study_has_the_cluster_ablation_and_figure_5bs_scaling() -> None:
    study = load_study([config_of("imagenet10")])
    fine_tuned = {name: row for name, row in study.methods.items() if isinstance(row, PersonaliseMethod)}
    assert {
        name: row.clusters
        for name, row in fine_tuned.items()
        if row.learn == "conditioning" and not row.train_unet
    } == {
        "ft_conditioning": 1,
        "ft_cluster_conditioning_k5": 5,
        "ft_cluster_conditioning_k10": 10,
        "ft_cluster_conditioning_k15": 15,
    }
    assert fine_tuned.pop("imagic").candidates == IMAGIC_CANDIDATES and {
        row.candidates for row in fine_tuned.values()
    } == {CANDIDATES}
    added: dict[str, dict[str, float]] = {"pseudoword_dm": {}, "retrieval_2500": {}}
    for name, row in study.methods.items():
        source = row.pool if isinstance(row, DrawMethod) else name
        if source in added:
            added[source][name] = row.added_per_training_image  # type: ignore[union-attr]
    assert [sorted(sizes.values()) for sizes in added.values()] == [[1, 5, 10, 25]] * 2
    largest = study.augmentation.images_per_part
    assert largest is not None and largest == 130 and study.augmentation.images_per_class == 3 * largest
    rows = {name: study.methods[name] for name in added["pseudoword_dm"]}
    assert all(
        row.images_per_class == largest * row.added_per_training_image
        for row in rows.values()
        if isinstance(row, DrawMethod)
    )
    similar = [study.methods[name] for name in added["retrieval_2500"]]
    assert all(
        isinstance(row, RetrieveMethod | DrawMethod) and row.ranked and row.may_fall_short for row in similar
    )


def test_sizes_are_the_papers() -> None:
    ten, full, caltech = (load_study([config_of(name)]) for name in STUDIES)
    assert (
        ten.dataset.train_fraction,
        full.dataset.train_fraction,
        full.dataset.held_out_like,
        caltech.dataset.train_fraction,
    ) == (0.1, 0.9, 0.1, 0.8)
    assert (full.finetune.max_epochs, ten.finetune.max_epochs) == (3, 40)
    assert (
        caltech.classifier.batch_size,
        caltech.classifier.lr,
        ten.classifier.batch_size,
        ten.classifier.lr,
    ) == (1024, 0.003, 256, 0.1)
    assert {study.augmentation.resamples for study in (ten, full, caltech)} == {5}
    assert [len(plan_of(study).class_ids) for study in (ten, full, caltech)] == [1000, 1000, 256]


@pytest.mark.parametrize("name", STUDIES)
def test_what_the_papers_training_does_is_on_and_grids_have_five_rates(name: str) -> None:
    study = load_study([config_of(name)])
    assert (study.classifier.decoded_size, study.classifier.batch_norm_groups) == ("file", 8)
    assert all(len(row.lr_grid) >= 5 for row in study.personalised.values())


@pytest.mark.parametrize("name", STUDIES)
def test_models_data_and_pools_are_the_papers(name: str) -> None:
    study = load_study([config_of(name)])
    assert study.diffusion.model == "CompVis/stable-diffusion-v1-4"
    assert study.clip.model == "openai/clip-vit-large-patch14"
    assert study.diffusion.safety_checker == "model"
    if name != "caltech256":
        assert isinstance(study.dataset, ImageFolder)
        assert (study.dataset.classes, study.dataset.test_folder) == ("imagenet", "val")
    made = (study.augmentation.images_per_class, study.augmentation.images_per_training_image)
    assert made == ((390, None) if name == "imagenet10" else (None, 3))
    retrieval = study.retrieved["retrieval"]
    assert retrieval.images_per_class == (130 if name == "imagenet10" else None)
    assert retrieval.min_aesthetics == 5
    assert {row.added_per_training_image for row in study.augmented.values() if row.group != "scaling"} == {1}


SIMPLE, NO_WS = ("simple", "random", "lemmas"), ("simple", "random", "no_whitespace")
WORDS = ("textual_inversion", "random", "no_whitespace")
PAPERS_METHODS: dict[str, dict[str, Any]] = {
    "boomerang": {
        "prompting": ("empty", "random", "no_whitespace"),
        "start": "training_images",
        "noise": 0.2,
        "steps": 100,
        "guidance_scale": 1.0,
    },
    "simple_prompt": {"prompting": SIMPLE, "start": "noise"},
    "simple_prompt_no_ws": {"prompting": NO_WS, "start": "noise"},
    "clip_prompts": {"prompting": ("clip", "random", "no_whitespace"), "start": "noise"},
    "sariyildiz_prompts": {"prompting": ("sariyildiz", "cycle", "lemmas"), "start": "noise"},
    "ft_conditioning": {"prompting": NO_WS, "learn": "conditioning", "train_unet": False},
    "imagic": {"prompting": NO_WS, "learn": "conditioning", "train_unet": True, "clusters": 1},
    "textual_inversion": {"prompting": WORDS, "learn": "pseudoword", "train_unet": False, "clusters": 1},
    "pseudoword_dm": {"prompting": WORDS, "learn": "pseudoword", "train_unet": True, "clusters": 1},
    "retrieval": {"prompting": NO_WS, "ranked": False, "may_fall_short": False, "first_k": 1.4},
}


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_is_the_papers_method(name: str) -> None:
    rows = load_study([config_of(name)]).methods
    wanted = {row: facts for row, facts in PAPERS_METHODS.items() if row in rows}
    assert set(wanted) == {
        row for row in paper_results(name) if rows[row].adds_images and "cluster" not in row
    }
    for row, facts in wanted.items():
        prompting = rows[row].prompting
        assert prompting is not None
        shown = {"prompting": (prompting.templates, prompting.draw, prompting.class_name)}
        assert {key: shown.get(key) or getattr(rows[row], key) for key in facts} == facts, row
    clustered = [row for row in rows if "cluster" in row]
    assert all(
        rows[row].model_copy(update={"clusters": 1, "label": ""})
        == rows["ft_conditioning"].model_copy(update={"label": ""})
        for row in clustered
    )
    assert isinstance(rows["none"], RealMethod) and rows["none"].split == "train"
    if name == "imagenet10":
        assert isinstance(rows["real_20pct"], RealMethod) and rows["real_20pct"].split == "train2x"


# --- the plan's size ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "jobs", "files"),
    [("imagenet10", 1500, 81_000), ("imagenet_full", 900, 11_000), ("caltech256", 111, 3000)],
)
def test_a_full_study_stays_a_plan_of_few_jobs_and_files(
    name: str, jobs: int, files: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = estimate_study(load_study([config_of(name)])).steps
    # test_estimate.py compares the jobs with Snakemake's
    assert 0.8 * jobs < sum(step.jobs for step in steps) <= jobs
    assert 0.8 * files < sum(step.files for step in steps) <= files
    assert not any(step.jobs_done for step in steps)


@pytest.mark.full
def test_the_dry_run_of_the_main_study_needs_no_data_and_has_the_jobs_that_augbench_plan_says(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = sum(workspace.plan(configfiles=["config/imagenet10.yaml"]).values())
    monkeypatch.chdir(workspace.folder)
    assert (
        planned
        == sum(step.jobs for step in estimate_study(load_study([config_of("imagenet10")])).steps)
        <= 1500
    )


# --- rows that draw from another row's pool -------------------------------------------------------


def study_that_draws(pool: str = "clip_prompts", **row: Any) -> Study:
    study = copy.deepcopy(SMALL_STUDY)
    study["dataset"]["classes"] = "fashion_mnist"
    study["methods"]["larger"] = {"mechanism": "draw", "pool": pool, **row}
    return parse_study(study)


def test_shards_are_counted_by_the_images_that_are_drawn_from() -> None:
    augmentation = parse_study(
        {**SMALL_STUDY, "augmentation": {"images_per_class": 25, "images_per_part": 10}}
    ).augmentation
    # 10, 10 and 5 images; after them, whole parts of 10 begin at image 25
    assert [augmentation.parts_for(images, 1) for images in (None, 1, 10, 11, 25, 26, 35, 36)] == [
        3,
        1,
        1,
        2,
        3,
        4,
        4,
        5,
    ]
    assert [augmentation.part_range(part, 7) for part in range(5)] == [
        range(10),
        range(10, 20),
        range(20, 25),
        range(25, 35),
        range(35, 45),
    ]
    per_image = parse_study({**SMALL_STUDY, "augmentation": {"images_per_training_image": 3}}).augmentation
    assert [per_image.parts_for(None, added) for added in (0.5, 1, 2.5, 25)] == [1, 1, 3, 25]
    assert per_image.part_range(4, 7) == range(28, 35)


def test_a_larger_set_takes_its_rows_pool_and_parts_beyond_it() -> None:
    study = study_that_draws(added_per_training_image=4, images_per_class=40)
    plan = Plan(study, ("a", "b"))
    assert plan.shards("clip_prompts") == [
        f"results/small/shards/clip_prompts/selected/{name}/{part}.parquet"
        for name in "ab"
        for part in (0, 1)
    ]
    assert plan.shards("larger") == [
        f"results/small/shards/clip_prompts/selected/{name}/{part}.parquet"
        for name in "ab"
        for part in range(4)
    ]
    assert [(block.name, block.parts) for block in plan.generate_blocks("clip_prompts")] == [
        ("000", ("0", "1")),
        ("000_part2", ("2", "3")),
    ]
    assert [(block.name, block.parts) for block in plan.generate_blocks("simple_prompt")] == [
        ("000", ("0", "1"))
    ]
    assert "larger" in plan.study.augmented and "larger" not in plan.study.pooled


def test_the_pool_goes_on_with_new_prompts_and_keeps_those_that_it_has(tmp_path: Path) -> None:
    classes = load_class_table("fashion_mnist")
    images = {info.class_id: [str(i) for i in range(8)] for info in classes}
    prompts = []
    for pool in ("simple_prompt", "clip_prompts"):
        write_prompts(
            study_that_draws(pool, images_per_class=40),
            "clip_prompts",
            classes,
            images,
            tmp_path / f"{pool}.parquet",
        )
        prompts.append(
            {
                (row["class_id"], row["part"], row["index"]): row
                for row in pq.read_table(tmp_path / f"{pool}.parquet").to_pylist()
            }
        )
    alone, larger = prompts
    assert (len(alone), len(larger)) == (10 * 20, 10 * 40)
    assert all(larger[place] == row for place, row in alone.items())


def pool_of(images: int, per_part: int) -> pa.Table:
    rows = [
        {
            "class_id": "a",
            "label": 0,
            "index": i,
            "path": f"a/{i // per_part}.parquet",
            "row": i % per_part,
            "sha256": str(i),
            "similarity": None,
        }
        for i in range(images)
    ]
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def test_set_0_of_an_ordinary_row_comes_from_part_0_and_that_of_a_row_that_draws_from_its_whole_pool() -> (
    None
):
    study = study_that_draws(added_per_training_image=4, images_per_class=40)
    own, larger = Drawing.of(study, "clip_prompts"), Drawing.of(study, "larger")
    pool = pool_of(40, 10)
    assert max(draw(pool, {"a": 7}, 0, 0, drawing=own).column("index").to_pylist()) < 10
    drawn = draw(pool, {"a": 7}, 0, 0, drawing=larger).column("index").to_pylist()
    assert len(drawn) == 28 and max(drawn) >= 30
    with pytest.raises(UserError, match=r"too few images for 1 class\(es\): a 10 of 11"):
        draw(pool, {"a": 11}, 0, 0, drawing=own)


def test_a_row_that_draws_from_a_retrieval_takes_its_most_similar_ones() -> None:
    study = study_that_draws("retrieval", added_per_training_image=0.5, ranked=True, may_fall_short=True)
    assert Plan(study, ("a",)).shards("larger") == ["results/small/shards/retrieval/selected/a/0.parquet"]
    sets = [
        draw(pool_of(10, 10), {"a": 9}, run, 0, drawing=Drawing.of(study, "larger"))
        .column("index")
        .to_pylist()
        for run in range(3)
    ]
    assert sets == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"pool": "none"},
            r"methods\.larger\.pool: 'none'; allowed: a row that makes or retrieves images: simple_prompt, ",
        ),
        ({"pool": "larger"}, r"methods\.larger\.pool: 'larger'; allowed: "),
        ({"pool": "nothing"}, r"methods\.larger\.pool: 'nothing'; allowed: "),
        (
            {"pool": "retrieval", "images_per_class": 9},
            r"methods\.larger\.images_per_class: 9; methods\.retrieval\.images_per_class says how many",
        ),
        (
            {"ranked": True},
            r"methods\.larger\.ranked: true; goes with a row that retrieves; "
            r"clip_prompts generates its images",
        ),
        ({"may_fall_short": True}, r"methods\.larger\.may_fall_short: true; goes with a row that retrieves"),
        ({"added_per_training_image": 0}, r"methods\.larger\.added_per_training_image"),
    ],
)
def test_a_row_that_cannot_draw_is_refused(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study_that_draws(**{"pool": "clip_prompts", **row})


def test_images_per_class_of_a_draw_need_pools_measured_in_images() -> None:
    study: dict[str, Any] = copy.deepcopy(SMALL_STUDY)
    study["augmentation"] = {"images_per_training_image": 3}
    study["methods"]["larger"] = {"mechanism": "draw", "pool": "clip_prompts", "images_per_class": 40}
    with pytest.raises(
        ConfigError,
        match=r"methods\.larger\.images_per_class: 40; goes with augmentation\.images_per_class only",
    ):
        parse_study(study)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"added_per_training_image": 3},
            r"methods\.larger\.images_per_class: 20; allowed: at least 24; "
            r"class .* has 8 training images, and a resample adds 3 times",
        ),
        (
            {"pool": "retrieval", "added_per_training_image": 3},
            r"methods\.retrieval\.images_per_class: 10; allowed: at least 24, because larger draws from it",
        ),
    ],
)
def test_a_pool_too_small_for_a_row_that_draws_is_found_before_the_run(
    row: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(PROJECT)
    study: dict[str, Any] = copy.deepcopy(SMALL_STUDY)
    study["dataset"] |= {"classes": "fashion_mnist", "train_fraction": 0.0014}
    study["methods"]["larger"] = {"mechanism": "draw", "pool": "clip_prompts", **row}
    with pytest.raises(ConfigError, match=message):
        check_study(parse_study(study))
    study["methods"]["larger"] |= {"may_fall_short": True} if row.get("pool") else {"images_per_class": 24}
    check_study(parse_study(study))


# --- ImageNet's whole class table, in miniature ---------------------------------------------------

# sizes, models and links; training images per class: ceil(0.3 x 6) = 2
OVERLAY: dict[str, Any] = {
    "dataset": {"train_fraction": 0.3},
    "corpus": {"clip": "resources/mini/clip"},
    "diffusion": {
        "model": "resources/mini/stable-diffusion",
        "resolution": 32,
        "steps": 2,
        "dtype": "float32",
    },
    "clip": {"model": "resources/mini/clip"},
    "finetune": {"batch_size": 50, "features": "clip", "max_epochs": 1, "dtype": "float32"},
    "augmentation": {"images_per_class": 3, "images_per_part": 2, "resamples": 2},
    "retrieval": {
        "aesthetics_weights": None,
        "download": {"allow_private": ["127.0.0.1/32"], "timeout": 20.0},
    },
    "classifier": {
        "arch": "resnet18",
        "layers": [1, 1, 1, 1],
        "base_width": 8,
        "stem": "small",
        "resolution": 32,
        "evaluation_resize": 32,
        "max_epochs": 1,
    },
    "execution": {"classes_per_job": 250, "finetune_classes_per_job": 500, "batch_size": 100},
}
FIVE = IDS[:5]


def overlay() -> dict[str, Any]:
    """:data:`OVERLAY`, and the rows at its sizes."""
    rows: dict[str, dict[str, Any]] = {"boomerang": {"steps": 5}}
    for name, row in load_study([config_of("imagenet10")]).methods.items():
        if isinstance(row, PersonaliseMethod):
            rows[name] = {"lr_grid": [1.0], "candidates": [1], "clusters": min(row.clusters, 2)}
        if isinstance(row, DrawMethod) and row.images_per_class is not None:
            rows[name] = {"images_per_class": round(2 * row.added_per_training_image)}
    rows["retrieval"] = {"images_per_class": 3, "least_images": None}
    rows["retrieval_2500"] = {"added_per_training_image": 3}
    return {**OVERLAY, "methods": rows}


def write_imagenet(root: Path) -> None:
    """Write ImageNet's layout and oddities: 6 training images and one test image of every synset."""
    rng = np.random.default_rng(0)
    for number, class_id in enumerate(IDS):
        for folder, count in (("train", 6), ("val", 1)):
            (root / folder / class_id).mkdir(parents=True)
            for i in range(count):
                width, height = rng.integers(24, 41, size=2)
                colour = ((number * 37) % 256, (number * 101) % 256, (i * 40) % 256)
                image = Image.new("RGB", (int(width), int(height)), colour)
                image.paste((255, 255, 255), (int(rng.integers(16)), 4, 20, 20))
                odd = (number * 6 + i) % 50 if folder == "train" else -1
                exif = Image.Exif()
                exif[0x0112] = 6  # rotated by 90 degrees
                stream = BytesIO()
                mode = {0: "CMYK", 1: "L"}.get(odd, "RGB")
                image.convert(mode).save(
                    stream, "PNG" if odd == 2 else "JPEG", **({"exif": exif} if odd == 3 else {})
                )
                (root / folder / class_id / f"{class_id}_{i}.JPEG").write_bytes(stream.getvalue())


def write_corpus(folder: Path, urls: list[str]) -> None:
    """Write random vectors with LAION-5B's public columns; a sixth are below the minimum aesthetics score."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(len(urls), 128)).astype(np.float32)
    scores = rng.uniform(4.8, 6.0, size=len(urls))
    folder.mkdir(parents=True)
    columns = {
        "url": urls,
        "caption": [f"image {i}" for i in range(len(urls))],
        "NSFW": ["UNLIKELY"] * len(urls),
        "aesthetic": scores,
    }
    pq.write_table(pa.table({**columns, "vector": pa.array(list(vectors))}), folder / "part.parquet")


@pytest.mark.full
def test_a_tree_in_imagenets_layout_goes_through_the_main_study(workspace: Workspace) -> None:
    data = workspace.folder / "data"
    write_imagenet(data / "imagenet")
    (workspace.folder / "sizes.yaml").write_text(yaml.safe_dump(overlay()))
    configs = ("config/imagenet10.yaml", "sizes.yaml")
    study = load_study([workspace.folder / name for name in configs])
    plan = plan_of(study)
    (first, *_) = plan.folders
    candidates = [
        plan.candidate_folder(name, "epoch1", first)
        for name in ("pseudoword_dm", "ft_cluster_conditioning_k5")
    ]
    targets = [
        *plan.run_files("retrieval", "1"),
        plan.resample("retrieval_100", "0"),
        plan.shard("clip_prompts", IDS[0], "0"),
        plan.shard("boomerang", IDS[0], "0"),
        plan.path("prompts/sariyildiz_prompts.parquet"),
        *candidates,
    ]
    kinds = ["jpeg", "png", "webp", "gif", "cmyk", "redirect", "404", "html", "truncated_jpeg"]
    with hostile_server(1500, seed=3, kinds=kinds) as web:
        write_corpus(data / "laion", web.urls())
        done = workspace.augbench(
            "run",
            "--cores",
            "2",
            *(word for target in targets for word in ("--target", target)),
            "--configfile",
            *configs,
        )
    assert done.returncode == 0, done.stderr[-4000:]
    root = workspace.folder / "results/imagenet10"
    made = {path: workspace.folder / path for path in targets}
    assert all(path.exists() for path in made.values())

    splits = {
        name: pq.read_table(root / f"splits/{name}.parquet") for name in ("train", "train2x", "val", "test")
    }
    assert {name: table.num_rows for name, table in splits.items()} == {
        "train": 2000,
        "train2x": 4000,
        "val": 2000,
        "test": 1000,
    }
    for method in ("clip_prompts", "boomerang"):
        for class_id in FIVE:
            shards = [
                pq.read_table(root / f"shards/{method}/selected/{class_id}/{part}.parquet")
                for part in range(2)
            ]
            assert [shard.num_rows for shard in shards] == [2, 1] and {
                row["class_id"] for shard in shards for row in shard.to_pylist()
            } == {class_id}
    for folder in candidates:
        assert {path.parent.name for path in (workspace.folder / folder).glob("*/0.parquet")} == set(FIVE)
    prompts = pq.read_table(
        root / "prompts/sariyildiz_prompts.parquet", filters=[("class_id", "=", IDS[1])]
    ).to_pylist()
    assert any("goldfish, Carassius auratus" in row["prompt"] for row in prompts), (
        "names are WordNet's lemmas"
    )

    found = read_index(root / "resamples/retrieval/selected/1.parquet")
    ledger = [
        row
        for class_id in FIVE
        for row in pq.read_table(root / f"retrieval/retrieval/ledgers/{class_id}.parquet").to_pylist()
    ]
    fates = Counter(row["fate"] for row in ledger)
    assert (
        fates["kept"] == 3 * len(FIVE)
        and fates["aesthetics"]
        and any(fate.startswith("dead") for fate in fates)
    )
    excluded = read_json(root / "retrieval/excluded.json")
    assert found.num_rows == 2 * (1000 - len(excluded["excluded"])) and len(excluded["excluded"]) < 100
    result = read_json(made[plan.run_files("retrieval", "1")[0]])
    predictions = pq.read_table(root / "classifiers/retrieval/selected/1/predictions.parquet")
    assert (
        predictions.num_rows == result["n_test"] == 1000 - len(excluded["excluded"])
        and result["n_added"] == found.num_rows
    )
