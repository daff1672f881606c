"""Bad inputs: each is reported before anything runs, with key or file, the value and what is allowed."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from augbench.artifacts.shards import ShardRow, encode_image, read_shard, write_shard
from augbench.commands.check.study import check_study
from augbench.config.manual import sections
from augbench.config.study import load_study, merge, parse_study
from augbench.data.classes import load_class_table
from augbench.data.sources import open_source
from augbench.data.splits import make_splits, read_split, write_split
from augbench.errors import UserError

TRAIN_IMAGES, TEST_IMAGES = 40, 2


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for i in range(count):
        Image.new("RGB", (4, 4), (i, i, i)).save(folder / f"{i:02d}.png")


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder without faults: images, a class table, a diffusion model, a CLIP model, one shard."""
    folder = tmp_path_factory.mktemp("pristine")
    for class_id in ("cat", "dog"):
        write_images(folder / "pets/train" / class_id, TRAIN_IMAGES)
        write_images(folder / "pets/test" / class_id, TEST_IMAGES)
    (folder / "pets.yaml").write_text("- {class_id: cat, lemmas: [cat]}\n- {class_id: dog, lemmas: [dog]}\n")
    write_json(folder / "sd/model_index.json", {"_class_name": "StableDiffusionPipeline"})
    for name in (
        "scheduler/scheduler_config.json",
        "tokenizer/tokenizer_config.json",
        "safety_checker/config.json",
        "feature_extractor/preprocessor_config.json",
    ):
        write_json(folder / "sd" / name, {})
    write_json(folder / "sd/unet/config.json", {"cross_attention_dim": 64, "sample_size": 8})
    write_json(folder / "sd/vae/config.json", {"block_out_channels": [32, 64, 64]})
    write_json(folder / "sd/text_encoder/config.json", {"hidden_size": 64})
    write_json(folder / "clip/config.json", {"model_type": "clip", "text_config": {"hidden_size": 64}})
    for name in ("sd/unet", "sd/vae", "clip"):
        (folder / name / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    image = encode_image(
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (32, 32, 3), dtype=np.uint8)), "png", 95
    )
    write_shard(
        folder / "0.parquet",
        [ShardRow(image, 0, "cat", i, "a photo of a cat.", "model") for i in range(3)],
        {"version": 1},
    )
    return folder


@dataclass(frozen=True)
class Workplace:
    """A copy of the pristine folder, in which a test makes a fault."""

    folder: Path

    def config(self, **changes: Any) -> dict[str, Any]:
        good = {
            "study": "pets",
            "dataset": {
                "kind": "image_folder",
                "root": "pets",
                "classes": "pets.yaml",
                "train_folder": "train",
                "test_folder": "test",
                "train_fraction": 0.25,
            },
            "diffusion": {"model": "sd", "resolution": 32},
            "clip": {"model": "clip"},
            "methods": {
                "real": {"mechanism": "real"},
                "simple": {"mechanism": "sample"},
            },
            "augmentation": {"images_per_class": 30, "images_per_part": 10},
            "classifier": {"batch_size": 16},
        }
        return merge(good, changes)

    def check(self, verify_images: bool = False, **changes: Any) -> list[str]:
        return check_study(parse_study(self.config(**changes)), verify_images=verify_images)

    def load(self, text: str) -> None:
        (self.folder / "study.yaml").write_text(text)
        load_study([self.folder / "study.yaml"])

    def splits(self, **changes: Any) -> Any:
        study = parse_study(self.config(**changes))
        source = open_source(study.dataset, study.seed, study.corpus)
        return make_splits(source.classes(), source.scan(), study.dataset, study.seed, set())


@pytest.fixture
def work(pristine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    folder = tmp_path / "work"
    shutil.copytree(pristine, folder)
    monkeypatch.chdir(folder)
    return Workplace(folder)


def test_a_good_study_passes_every_check(work: Workplace) -> None:
    assert work.check(verify_images=True) == [
        "dataset: 2 classes with 10 training, 10 validation and 2 test images each"
    ]


# --- what is spoilt -------------------------------------------------------------------------------


def without_required_key(work: Workplace) -> None:
    config = work.config()
    del config["augmentation"]
    parse_study(config)


def both_sizes(work: Workplace) -> None:
    work.check(augmentation={"images_per_training_image": 3})


def table(text: str) -> Callable[[Workplace], None]:
    def act(work: Workplace) -> None:
        (work.folder / "pets.yaml").write_text(text)
        load_class_table("pets.yaml")

    return act


def empty_class(work: Workplace) -> None:
    shutil.rmtree("pets/train/dog")
    Path("pets/train/dog").mkdir()
    work.check()


def folder_missing(name: str) -> Callable[[Workplace], None]:
    def act(work: Workplace) -> None:
        shutil.rmtree(name)
        work.check()

    return act


def unknown_folder(work: Workplace) -> None:
    write_images(Path("pets/train/bird"), 1)
    work.check()


def dogs_folder(name: str) -> Callable[[Workplace], None]:
    def act(work: Workplace) -> None:
        Path("pets/train/dog").rename(f"pets/train/{name}")
        work.check(dataset={"classes": None})

    return act


def classes_by_case(work: Workplace) -> None:
    shutil.copytree("pets/train/cat", "pets/train/CAT")
    Path("pets/test/CAT").mkdir()
    Image.new("RGB", (4, 4), "red").save("pets/test/CAT/00.png")  # no copy of a training image
    methods = {"word": {"mechanism": "personalise", "learn": "pseudoword"}}
    work.check(dataset={"classes": None}, methods=methods)


def same_to_the_eye(work: Workplace) -> None:
    write_images(Path("pets/train/caf\u00e9"), 1)
    dogs_folder("cafe\u0301")(work)


def caltech_parent(work: Workplace) -> None:
    write_images(Path("caltech/256_ObjectCategories/001.ak47"), 1)
    config = work.config()
    config["dataset"] = {"kind": "caltech256", "root": "caltech"}
    check_study(parse_study(config))


def small_class(count: int, **changes: Any) -> Callable[[Workplace], None]:
    def act(work: Workplace) -> None:
        for path in sorted(Path("pets/train/dog").iterdir())[count:]:
            path.unlink()
        work.check(**changes)

    return act


def corrupt_image(work: Workplace, name: str = "pets/train/cat/07.png") -> None:
    Path(name).write_bytes(Path(name).read_bytes()[:40])


def load_corrupt_image(work: Workplace) -> None:
    corrupt_image(work)
    list(open_source(parse_study(work.config()).dataset, 0).load(["train/cat/06.png", "train/cat/07.png"]))


def verify_corrupt_image(work: Workplace) -> None:
    corrupt_image(work)
    work.check(verify_images=True)


def image_removed_after_the_split(work: Workplace) -> None:
    split = work.splits()["test"]
    (Path("pets") / split.sources[0]).unlink()
    list(open_source(parse_study(work.config()).dataset, 0).load(split.sources))


def damaged_shard(change: Callable[[bytes], bytes]) -> Callable[[Workplace], None]:
    def act(work: Workplace) -> None:
        Path("0.parquet").write_bytes(change(Path("0.parquet").read_bytes()))
        read_shard("0.parquet")

    return act


def flipped(data: bytes) -> bytes:
    place = data.index(b"IDAT") + 100
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


def foreign_shard(work: Workplace) -> None:
    pq.write_table(pa.table({"image": [b"x"]}), "0.parquet")
    read_shard("0.parquet")


def truncated_split(work: Workplace) -> None:
    write_split(work.splits()["train"], "train.parquet")
    Path("train.parquet").write_bytes(Path("train.parquet").read_bytes()[:300])
    read_split("train.parquet")


def edited(path: str, **values: Any) -> Callable[[Workplace], None]:
    def act(work: Workplace) -> None:
        write_json(Path(path), {**json.loads(Path(path).read_text()), **values})
        work.check()

    return act


def lfs_pointer(work: Workplace) -> None:
    Path("sd/unet/model.safetensors").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    )
    work.check()


def fashion(work: Workplace, **dataset: Any) -> None:
    config = work.config()
    config["dataset"] = {"kind": "fashion_mnist", "downloads": "downloads", **dataset}
    config["augmentation"] = {"images_per_training_image": 1}
    check_study(parse_study(config))


def damaged_download(work: Workplace) -> None:
    Path("downloads").mkdir()
    Path("downloads/t10k-labels-idx1-ubyte.gz").write_bytes(b"half a file")
    fashion(work)


def fashion_table(work: Workplace) -> None:
    fashion(work, classes="pets.yaml")


def results_is_a_file(work: Workplace) -> None:
    Path("results").write_text("")
    work.check()


CORPUS = {"kind": "miniature", "images": 1000, "distractors": 0}
BAD: dict[str, tuple[Callable[[Workplace], Any], list[str]]] = {
    # the file
    "missing file": (
        lambda work: load_study(["nowhere.yaml"]),
        ["nowhere.yaml: no such file; a mapping of config keys is needed"],
    ),
    "invalid YAML": (
        lambda work: work.load("study: [pets"),
        ["study.yaml", "not readable as YAML", "fix the file"],
    ),
    "YAML that is a list": (
        lambda work: work.load("- study: pets"),
        ["study.yaml", "list", "a mapping of config keys is needed"],
    ),
    # keys and kinds of values
    "missing required key": (without_required_key, ["augmentation: missing", "required"]),
    "unknown key": (
        lambda work: work.check(classifier={"lrs": 0.1}),
        ["classifier.lrs: unknown key", "did you mean 'lr'?", "momentum"],
    ),
    "unknown key of a method named as its mechanism": (
        lambda work: work.check(methods={"sample": {"mechanism": "sample", "guidance": 2}}),
        ["methods.sample.guidance: unknown key", "did you mean 'guidance_scale'?"],
    ),
    "wrong type": (lambda work: work.check(study=3), ["study: 3; allowed: text"]),
    "number in quotes": (
        lambda work: work.check(classifier={"lr": "0.1"}),
        ["classifier.lr: '0.1'; allowed: a number without quotes"],
    ),
    "number that YAML reads as text": (
        lambda work: work.check(classifier=yaml.safe_load("lr: 1e-3")),
        ["classifier.lr: '1e-3'; allowed: a number", "write 1.0e-3"],
    ),
    "true for a number": (lambda work: work.check(seed=True), ["seed: true; allowed: a whole number"]),
    "fraction for a whole number": (
        lambda work: work.check(classifier={"batch_size": 2.5}),
        ["classifier.batch_size: 2.5; allowed: a whole number"],
    ),
    "infinite number": (
        lambda work: work.check(diffusion={"guidance_scale": float("inf")}),
        ["diffusion.guidance_scale: inf; allowed: a finite number"],
    ),
    "infinite number in a list": (
        lambda work: work.check(diffusion={"guidance_interval": [0.1, float("inf")]}),
        ["diffusion.guidance_interval.1: inf; allowed: a finite number"],
    ),
    "infinite number in a mapping": (
        lambda work: work.check(corpus={**CORPUS, "captions": {"template": float("inf")}}),
        ["corpus.captions.template: inf; allowed: a finite number"],
    ),
    "number too large for a float": (
        lambda work: work.check(classifier=yaml.safe_load("weight_decay: 1.0e+400")),
        ["classifier.weight_decay: inf; allowed: a finite number"],
    ),
    "not a number": (
        lambda work: work.check(methods={"simple": {"added_per_training_image": float("nan")}}),
        ["methods.simple.added_per_training_image: nan; allowed: a finite number"],
    ),
    "evaluation below the crop": (
        lambda work: work.check(classifier={"resolution": 64, "evaluation_resize": 32}),
        ["classifier.evaluation_resize: 32; allowed: at least classifier.resolution (64)"],
    ),
    "very long study name": (
        lambda work: work.check(study="x" * 300),
        ["study: 'xxx", "allowed: at most 200 characters"],
    ),
    "very long method name": (
        lambda work: work.check(methods={"x" * 300: {"mechanism": "real"}}),
        ["; allowed: a name of at most 200 characters"],
    ),
    "number for a mapping": (lambda work: work.check(methods=3), ["methods: 3; allowed: a mapping"]),
    "list too short": (
        lambda work: work.check(classifier={"layers": [1, 2]}),
        ["classifier.layers: [1, 2]; allowed: a list of 4 values"],
    ),
    "list too long": (
        lambda work: work.check(classifier={"layers": [1] * 5}),
        ["classifier.layers: [1, 1, 1, 1, 1]; allowed: a list of 4 values"],
    ),
    "unknown name in a mapping": (
        lambda work: work.check(corpus={**CORPUS, "captions": {"poem": 1}}),
        ["corpus.captions.poem: 'poem'; allowed: 'template', 'wordnet'"],
    ),
    "bad study name": (
        lambda work: work.check(study="My study"),
        ["study: 'My study'; allowed: text that matches ^[a-z0-9]"],
    ),
    "bad method name": (
        lambda work: work.check(methods={"no.dots": {"mechanism": "real"}}),
        ["methods.no.dots:", "a-z, 0-9 and _ only"],
    ),
    "no methods": (
        lambda work: work.check(methods={"real": None, "simple": None}),
        ["methods: {}; allowed: at least 1"],
    ),
    "unknown mechanism": (
        lambda work: work.check(methods={"x": {"mechanism": "dream"}}),
        ["methods.x.mechanism: 'dream'; allowed:", "'real'", "'sample'", "'retrieve'"],
    ),
    "missing mechanism": (
        lambda work: work.check(methods={"x": {"label": "x"}}),
        ["methods.x.mechanism: missing; allowed:", "'real'"],
    ),
    "unknown template set": (
        lambda work: work.check(methods={"x": {"mechanism": "sample", "prompt": {"templates": "poems"}}}),
        ["methods.x.prompt.templates: 'poems'; allowed:", "'simple'", "'clip'"],
    ),
    "retrieval without corpus": (
        lambda work: work.check(methods={"x": {"mechanism": "retrieve"}}),
        ["methods.x:", "retrieval needs a corpus section"],
    ),
    # fractions
    "fraction 0": (
        lambda work: work.check(dataset={"train_fraction": 0}),
        ["dataset.train_fraction: 0; allowed: greater than 0"],
    ),
    "fraction over 1": (
        lambda work: work.check(dataset={"train_fraction": 1.5}),
        ["dataset.train_fraction: 1.5; allowed: less than 1"],
    ),
    "fractions over 1": (
        lambda work: work.check(dataset={"train_fraction": 0.6, "validation_fraction": 0.6}),
        ["dataset:", "sum to 1.2", "at most 1 is possible"],
    ),
    "no room for validation": (
        lambda work: work.check(dataset={"train_fraction": 0.6}),
        ["dataset.validation_fraction: 0.6 beside train_fraction 0.6; allowed: at most 0.4"],
    ),
    "train2x impossible": (
        lambda work: work.check(
            dataset={"train_fraction": 0.4}, methods={"twice": {"mechanism": "real", "split": "train2x"}}
        ),
        ["methods.twice.split: 'train2x'", "0.4 leaves no room"],
    ),
    "train2x without room in one class": (
        small_class(2, methods={"twice": {"mechanism": "real", "split": "train2x"}}),
        ["dataset: class 'dog' has 2 images; 3 are enough for train, val, train2x"],
    ),
    "class too small": (small_class(1), ["dataset: class 'dog' has 1 image", "2 are enough for train, val"]),
    "pseudo-words that differ by case only": (
        classes_by_case,
        ["methods.word.learn: 'pseudoword' for CAT, cat; allowed: conditioning, or class_ids that differ"],
    ),
    # class tables
    "class table that is not there": (
        lambda work: load_class_table("birds.yaml"),
        ["dataset.classes: 'birds.yaml'; allowed:", "a YAML file"],
    ),
    "class table with a duplicate id": (
        table("- {class_id: cat}\n- {class_id: cat}\n"),
        ["pets.yaml: class_id given twice: ['cat']; each class_id may appear once"],
    ),
    "class table with an unknown key": (
        table("- {class_id: cat, name: Tom}\n"),
        ["pets.yaml[0]: unknown keys ['name']; allowed:", "lemmas"],
    ),
    "class table with an unsafe id": (
        table("- {class_id: ../cat}\n"),
        ["pets.yaml[0].class_id: '../cat'; allowed:"],
    ),
    "class table of another size than Fashion-MNIST's": (
        fashion_table,
        ["dataset.classes: 'pets.yaml' has 2 classes; allowed: Fashion-MNIST's 10"],
    ),
    # folders and images
    "missing root folder": (
        lambda work: work.check(dataset={"root": "nowhere"}),
        ["dataset.root: 'nowhere', no such folder; allowed: a folder with one folder"],
    ),
    "missing test folder": (
        folder_missing("pets/test"),
        ["dataset.test_folder: 'pets/test', no such folder; allowed:"],
    ),
    "test folder that is the training folder": (
        lambda work: work.check(dataset={"test_folder": "train"}),
        ["dataset.test_folder: 'train'; allowed: another folder than train_folder"],
    ),
    "class folder without images": (empty_class, ["pets/train/dog: 0 images; a class needs images", "png"]),
    "table class without folder": (
        folder_missing("pets/train/dog"),
        ["dataset.train_folder: 'pets/train' has no folder for 1 of 2 classes: dog; each class_id needs"],
    ),
    "test folder without a class": (
        folder_missing("pets/test/dog"),
        ["dataset.test_folder: 'pets/test' has no folder for 1 of 2 classes: dog; each class_id needs"],
    ),
    "folder not in the table": (
        unknown_folder,
        ["dataset.train_folder: 'pets/train' has 1 folders that are no class: bird; allowed:", "cat, dog"],
    ),
    "class folder that is not UTF-8": (
        dogs_folder("caf\udce9"),
        ["dataset.train_folder: 'pets/train': 1 left out, a name that is not UTF-8: caf\\udce9; each may be"],
    ),
    "class folder with a control character": (
        dogs_folder("dog\x07"),
        ["dataset.train_folder: the folder 'dog\\x07'; allowed: a folder's name in UTF-8, not hidden"],
    ),
    "class folder whose id is no file name": (
        dogs_folder("d" * 250),
        [
            "dataset.train_folder: the folder 'ddd",
            "allowed: at most 240 characters, of which this name takes 250",
        ],
    ),
    "class folders with composed and decomposed accents": (
        same_to_the_eye,
        [
            "dataset.train_folder: the folders 'cafe\\u0301' and 'caf\\xe9', whose names look the same; "
            "allowed: one"
        ],
    ),
    "table with a class_id that is no file name": (
        table(f"- {{class_id: {'d' * 250}}}\n- {{class_id: cat}}\n"),
        ["pets.yaml[0].class_id: 'ddd", "allowed: at most 240 characters, of which this name takes 250"],
    ),
    "excluded class that no folder can be": (
        lambda work: work.check(retrieval={"exclude": ["../cat"]}),
        ["retrieval.exclude: ['../cat']; allowed: a folder's name in UTF-8"],
    ),
    "excluded class that is not there": (
        lambda work: work.check(retrieval={"exclude": ["hot dog"]}),
        ["retrieval.exclude: 'hot dog'; allowed: class_ids of the data set, cat, dog"],
    ),
    "too many excluded classes": (
        lambda work: work.check(retrieval={"exclude": ["cat"]}),
        ["retrieval.exclude: 1 of 2 classes; at least 2 must stay"],
    ),
    "train_folder not given": (
        lambda work: work.check(dataset={"train_folder": None, "test_folder": None, "classes": None}),
        [
            "pets/test: 0 images",
            "pets/train: 0 images",
            "are train_folder and test_folder set?",
            "dataset.root to 'pets/train'",
        ],
    ),
    "Caltech256's parent folder": (
        caltech_parent,
        ["dataset.root: 'caltech'", "256_ObjectCategories; allowed: folders such as 001.ak47"],
    ),
    "corrupt image, when loaded": (
        load_corrupt_image,
        ["pets/train/cat/07.png: not readable as an image", "replace or remove the file"],
    ),
    "corrupt image, when checked": (
        verify_corrupt_image,
        ["pets/train/cat/07.png: not readable as an image", "replace or remove the file"],
    ),
    "image removed after the split": (
        image_removed_after_the_split,
        ["pets/test/cat/00.png: missing; put it back"],
    ),
    "damaged download": (
        damaged_download,
        ["downloads/t10k-labels-idx1-ubyte.gz: its MD5 is", "bb300cfdad3c16e7a12a480ee83cd310", "delete it"],
    ),
    # shards and manifests
    "truncated shard": (
        damaged_shard(lambda data: data[:-50]),
        ["0.parquet: not a whole Parquet file", "delete it and run again"],
    ),
    "bit-flipped shard": (
        damaged_shard(flipped),
        ["0.parquet: its content does not match its checksum; delete it and run again"],
    ),
    "foreign parquet file": (
        foreign_shard,
        ["0.parquet: a Parquet file that is not a shard; delete it"],
    ),
    "truncated split": (
        truncated_split,
        ["train.parquet: not a whole Parquet file", "delete it and run again"],
    ),
    # how much is added
    "both sizes": (
        both_sizes,
        [
            "augmentation:",
            "'images_per_training_image': 3",
            "exactly one of images_per_class and images_per_training_image",
        ],
    ),
    "images_per_part too small": (
        lambda work: work.check(augmentation={"images_per_part": 5}),
        ["augmentation.images_per_part: 5; allowed: at least 10; class 'cat' has 10 training images"],
    ),
    "images_per_class too small": (
        lambda work: work.check(augmentation={"images_per_class": 9, "images_per_part": None}),
        ["augmentation.images_per_class: 9; allowed: at least 10; class 'cat' has 10 training images"],
    ),
    "too few retrieved images": (
        lambda work: work.check(
            corpus=CORPUS, methods={"x": {"mechanism": "retrieve", "images_per_class": 9}}
        ),
        ["methods.x.images_per_class: 9; allowed: at least 10"],
    ),
    "a share of the corpus through an index": (
        lambda work: work.check(
            corpus={**CORPUS, "search": "clip_retrieval_index"},
            methods={"x": {"mechanism": "retrieve", "images_per_class": 9, "corpus_share": 0.1}},
        ),
        ["methods.x.corpus_share: 0.1; a server or an index searches all of its corpus; allowed: 1"],
    ),
    "a share of the corpus of a server": (
        lambda work: work.check(
            corpus={
                "kind": "clip_retrieval_server",
                "url": "http://localhost:1234",
                "index": "laion",
                "clip": "openai/clip-vit-large-patch14",
            },
            clip={"model": "openai/clip-vit-large-patch14"},
            methods={"x": {"mechanism": "retrieve", "images_per_class": 9, "corpus_share": 0.1}},
        ),
        ["methods.x.corpus_share: 0.1; a server or an index searches all of its corpus; allowed: 1"],
    ),
    "more retrieved images than the corpus has": (
        lambda work: work.check(
            corpus=CORPUS, methods={"x": {"mechanism": "retrieve", "images_per_class": 800}}
        ),
        ["methods.x.images_per_class: 800; allowed: at most 714", "the corpus has 1000 images"],
    ),
    # models
    "missing model folder": (
        lambda work: work.check(diffusion={"model": "sd2"}),
        ["diffusion.model: 'sd2', no such folder; allowed: a folder in diffusers'"],
    ),
    "folder without a model": (
        lambda work: work.check(diffusion={"model": "pets"}),
        ["diffusion.model: 'pets' has no model_index.json; allowed:"],
    ),
    "another pipeline": (
        edited("sd/model_index.json", _class_name="StableVideoDiffusionPipeline"),
        ["diffusion.model: 'sd' is a StableVideoDiffusionPipeline; allowed: a StableDiffusionPipeline"],
    ),
    "half a pipeline": (
        folder_missing("sd/safety_checker"),
        ["diffusion.model: 'sd' has no safety_checker/config.json", "download the model again"],
    ),
    "weights not pulled": (lfs_pointer, ["sd/unet/model.safetensors: a git-lfs pointer", "git lfs pull"]),
    "wrong CLIP width": (
        edited("clip/config.json", text_config={"hidden_size": 96}),
        ["clip.model: 'clip' has text states of width 96; allowed: 64"],
    ),
    "no CLIP": (
        edited("clip/config.json", model_type="siglip"),
        ["clip.model: 'clip' is a model of type 'siglip'; allowed: 'clip'"],
    ),
    "another resolution than the model's": (
        lambda work: work.check(diffusion={"resolution": 64}),
        ["diffusion.resolution: 64; allowed: 32, the model's own"],
    ),
    # results
    "results that are a file": (results_is_a_file, ["results: a file; a folder for results is needed"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_error(work: Workplace, name: str) -> None:
    act, said = BAD[name]
    with pytest.raises(UserError) as caught:
        act(work)
    lines = str(caught.value).splitlines()
    assert all(text in str(caught.value) for text in said), str(caught.value)
    assert len(lines) == (2 if name == "train_folder not given" else 1), lines
    assert all(re.fullmatch(r"\S.*: .+; .+", line) for line in lines), lines


def test_all_problems_are_named_at_once_a_line_each(work: Workplace) -> None:
    with pytest.raises(UserError) as caught:
        work.check(dataset={"root": "nowhere"}, diffusion={"model": "sd2"}, clip={"model": "pets"})
    assert [line.split(":")[0] for line in str(caught.value).splitlines()] == [
        "dataset.root",
        "diffusion.model",
        "clip.model",
    ]


def test_many_corrupt_images_are_counted_after_the_first_ten(work: Workplace) -> None:
    for i in range(12):
        corrupt_image(work, f"pets/train/cat/{i:02d}.png")
    with pytest.raises(UserError) as caught:
        work.check(verify_images=True)
    lines = str(caught.value).splitlines()
    assert len(lines) == 11
    assert (
        lines[-1]
        == f"dataset: 12 corrupt images of {2 * (TRAIN_IMAGES + TEST_IMAGES)}; the first 10 are named above"
    )


def test_models_that_are_about_to_be_made_are_not_asked_for(work: Workplace) -> None:
    shutil.rmtree("sd")
    assert check_study(parse_study(work.config()), models=False)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"classifier": {"lr": "0.1"}}, "classifier.lr: '0.1'; allowed: a number without quotes"),
        ({"dataset": {"root": "nowhere"}}, "dataset.root: 'nowhere', no such folder"),
        ({"clip": {"model": "nowhere"}}, "clip.model: 'nowhere', no such folder"),
    ],
)
def test_the_command_line_prints_one_line_and_no_traceback(
    work: Workplace, changes: dict[str, Any], said: str
) -> None:
    Path("study.yaml").write_text(yaml.safe_dump(work.config(**changes)))
    command = [sys.executable, "-m", "augbench.cli", "check", "--configfile", "study.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)})
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_study_without_baseline_and_with_a_batch_of_more_than_all_images_is_told_so(
    work: Workplace,
) -> None:
    assert work.check(methods={"real": {"split": "train2x"}}, classifier={"batch_size": 64})[1:] == [
        "note: classifier.batch_size: 64 is more than the 40 images of row real, which then has one smaller"
        " batch per epoch",
        "note: methods: no row {mechanism: real}, so there is no baseline: no forest plot, no figure 5A,"
        " no difference from training without added images",
    ]


HOME_KEYS = {
    "dataset.classes": {"dataset": {"classes": "~/pets.yaml"}},
    "dataset.root": {"dataset": {"root": "~/pets"}},
    "diffusion.model": {"diffusion": {"model": "~/sd"}},
    "clip.model": {"clip": {"model": "~/clip"}},
    "methods.simple.prompt.templates": {"methods": {"simple": {"prompt": {"templates": "~/prompts.txt"}}}},
    "corpus.root": {
        "corpus": {"kind": "image_folder", "root": "~/corpus"},
        "methods": {"retrieval": {"mechanism": "retrieve", "images_per_class": 1, "may_fall_short": True}},
        "retrieval": {"aesthetics_weights": "~/weights.pth"},
    },
}


@pytest.mark.parametrize("key", HOME_KEYS)
def test_a_path_may_begin_with_the_home_folder(
    work: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str
) -> None:
    (work.folder / "prompts.txt").write_text("a {}\n")
    monkeypatch.setenv("HOME", str(work.folder))
    (tmp_path / "elsewhere").mkdir()
    write_images(work.folder / "corpus", 1)
    changes = merge(
        {
            "dataset": {"root": str(work.folder / "pets"), "classes": str(work.folder / "pets.yaml")},
            "diffusion": {"model": str(work.folder / "sd")},
            "clip": {"model": str(work.folder / "clip")},
        },
        HOME_KEYS[key],
    )
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert work.check(**changes)


def test_every_key_that_names_a_file_or_folder_knows_the_home_folder() -> None:
    """A key's description says what it is; keys with rules of their own are listed here."""
    own = {"dataset.root", "execution.scratch", "execution.store"}
    inside = {
        *("dataset.train_folder", "dataset.validation_folder", "dataset.test_folder"),
        "dataset.test_labels",
    }
    forgotten = {
        f"{section}.{name}"
        for section, fields in sections()
        for name, field in fields.model_fields.items()
        if re.match(
            "(Folder|Path|File (?!format)|Class table|Manifest|Prompt templates|Places)",
            field.description or "",
        )
        and "expanduser" not in f"{field.annotation}{field.metadata}"
    }
    assert forgotten == own | inside
