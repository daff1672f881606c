"""Classifiers other than torchvision's ResNet: timm's networks, CLIP's image tower, probes; AdamW and its
rates.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from conftest import PROJECT
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from augbench.artifacts.pool import SCHEMA as SHARD_INDEX
from augbench.artifacts.pool import build_index, read_index
from augbench.artifacts.shards import ShardRow, encode_image, write_shard
from augbench.artifacts.store import Store
from augbench.classifier import train as training
from augbench.classifier.compute import Compute, ProcessGroup, Storage
from augbench.classifier.crops import MEAN, STD
from augbench.classifier.features import Frozen, LabelledFeatures, of_rows, of_split
from augbench.classifier.images import LabelledImages
from augbench.classifier.launch import in_processes
from augbench.classifier.networks import Features, build, build_head, head_of, name_of_head, without_dropout
from augbench.classifier.normalisation import normalise_over
from augbench.classifier.optimiser import new_optimiser, set_rate
from augbench.classifier.replacing import replace_real
from augbench.classifier.schedule import StepSchedule
from augbench.classifier.score import logits_of
from augbench.classifier.stage import train_block
from augbench.classifier.start import Start
from augbench.classifier.state import RunResult
from augbench.classifier.train import train_run
from augbench.commands.check.networks import first_weights_notes, network_problems
from augbench.config.classifier import Classifier
from augbench.config.study import Study, parse_study
from augbench.config.use import Use
from augbench.data.classes import ClassInfo, write_class_table
from augbench.data.splits import Split, write_split
from augbench.errors import UserError
from augbench.files import canonical_hash, read_json, write_json
from augbench.measures.clip import class_embeddings
from augbench.measures.eyes import ZERO_SHOT
from augbench.models.folders import fingerprint
from augbench.models.transformers_clip import TransformersClip
from augbench.plan.inputs import InputPaths
from augbench.plan.recipes import classifier_recipe
from augbench.seeds import classifier_seed, derive_seed

CPU = torch.device("cpu")
ALONE = Compute(CPU)
CLIP = "resources/mini/clip"
SIDES = {"resolution": 32, "evaluation_resize": 32, "min_crop_area": 0.5}
SHORT = {**SIDES, "batch_size": 20, "schedule": "steps", "steps": 24, "validate_every": 6, "keep": "last"}
TRANSFORMER = Classifier(
    arch="timm:test_vit",
    optimiser="adamw",
    lr=1e-3,
    weight_decay=0.05,
    decay="cosine",
    warmup_steps=4,
    **SHORT,
)
CONVOLUTIONS = Classifier(arch="timm:test_convnext", optimiser="adamw", lr=2e-3, decay="cosine", **SHORT)

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:::timm")]


def photo(label: int, i: int) -> Image.Image:
    """A noisy image whose brightness tells its class."""
    rng = np.random.default_rng([label, i])
    return Image.fromarray((rng.normal(80 + 90 * label, 30, (32, 32, 3)).clip(0, 255)).astype(np.uint8))


def labelled(first: int, count: int) -> LabelledImages:
    labels = np.arange(count) % 2

    def load(rows: slice) -> Iterator[Image.Image]:
        return (photo(int(labels[i]), first + i) for i in range(count)[rows])

    return LabelledImages([f"{first + i}" for i in range(count)], labels, load, "images")


def run_tiny(config: Classifier, compute: Compute = ALONE, checkpoint: Path | None = None) -> RunResult:
    return train_run(config, 2, labelled(0, 60), None, labelled(2000, 40), 0, 5, compute, checkpoint)


def assert_learned(result: RunResult, least: float) -> None:
    losses = [point.train_loss for point in result.history]
    assert losses[-1] < 0.75 * losses[0]
    assert result.val_top1 >= least


def pixels(count: int = 3, side: int = 32) -> torch.Tensor:
    """Images with values from 0 to 1."""
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def normalised(images: torch.Tensor, mean: Any, std: Any) -> torch.Tensor:
    return (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def saved(network: nn.Module, path: Path) -> Start:
    """Save weights, for a network that begins with them."""
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, path)
    return Start(fingerprint(path)["id"], str(path))


# --- config ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"arch": "resnet51"}, "classifier.arch: 'resnet51'; allowed: resnet18, .*timm:NAME"),
        ({"arch": "timm:a/b"}, "classifier.arch: 'timm:a/b'; allowed: "),
        ({"arch": "timm:test_vit.r160_in1k"}, "classifier.arch: .*its tag names weights, .*: timm:test_vit$"),
        ({"arch": "clip", "base_width": 32}, "base_width: 32; goes with torchvision's networks"),
        ({"arch": "clip", "pretrained": "x"}, "pretrained: 'x'; goes with arch: timm:NAME"),
        ({"pretrained_on": "ImageNet"}, "pretrained_on: 'ImageNet'; goes with classifier.pretrained"),
        (
            {"arch": "timm:test_vit", "pretrained": "timm/test_vit.r160_in1k", "pretrained_revision": "main"},
            "pretrained_revision: 'main'; allowed: a commit",
        ),
        (
            {"arch": "timm:test_vit", "pretrained": "a.safetensors", "pretrained_revision": "0" * 40},
            "pretrained_revision: '0+'; goes with an id on the Hub",
        ),
        ({"train": "probe"}, "train: 'probe'; probe goes with classifier.pretrained or arch: clip"),
        ({"layer_decay": 0.7}, "layer_decay: 0.7; goes with train: all of arch: timm:NAME or clip"),
        ({"optimiser": "adamw", "momentum": 0.8}, "momentum: 0.8; goes with optimiser: sgd"),
        ({"schedule": "steps", "steps": 5, "warmup_steps": 5}, "warmup_steps: 5; allowed: fewer than steps"),
        ({"warmup_steps": 5}, "warmup_steps: 5; goes with schedule: steps"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(section: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as caught:
        study_of(section)
    assert re.search(said, str(caught.value)), str(caught.value)


def test_a_probe_can_not_mix_images() -> None:
    with pytest.raises(UserError, match=r"methods\.none\.use\.mixup: 0\.2; goes with classifier\.train: all"):
        study_of({"arch": "clip", "train": "probe"}, use={"mixup": 0.2})


def study_of(section: dict[str, Any], use: dict[str, Any] | None = None, **changes: Any) -> Study:
    return parse_study(
        {
            "study": "s",
            "dataset": {"kind": "image_folder", "root": "data"},
            "diffusion": {"model": "none"},
            "clip": {"model": CLIP},
            "methods": {"none": {"mechanism": "real", **({"use": use} if use else {})}},
            "augmentation": {"images_per_class": 20, "resamples": 2},
            "classifier": section,
            "execution": {"device": "cpu"},
            **changes,
        }
    )


def test_the_recipe_has_what_shapes_the_training_and_not_where_the_weights_are() -> None:
    section = {
        "arch": "timm:test_vit",
        "pretrained": "weights.safetensors",
        "pretrained_on": "nothing",
        "optimiser": "adamw",
    }
    recipe = classifier_recipe(study_of(section), "none")["classifier"]
    assert recipe["arch"] == "timm:test_vit" and recipe["optimiser"] == "adamw"
    absent = {"pretrained", "pretrained_on", "layers", "base_width", "stem", "layer_decay", "warmup_steps"}
    assert not absent & set(recipe)
    assert set(classifier_recipe(study_of({}), "none")["classifier"]) >= {"layers", "base_width", "stem"}


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("demo", "ffefb88e6ba22bb5"),
        ("mini", "c0e2ba4f22d10afe"),
        ("imagenet10", "6f9eff0d5c2b8ff2"),
        ("imagenet_full", "e0bf4f005b327ae2"),
        ("caltech256", "5dc35a2774d5cde5"),
    ],
)
def test_the_shipped_studies_keep_the_recipes_of_their_classifiers(name: str, key: str) -> None:
    from augbench.config.study import load_study

    study = load_study([PROJECT / f"config/{name}.yaml"])
    assert canonical_hash([classifier_recipe(study, row) for row in study.methods])[:16] == key


@pytest.mark.parametrize(
    ("section", "seen"),
    [
        ({"arch": "timm:test_vit"}, None),
        ({"arch": "clip"}, "image-text pairs"),
        (
            {"arch": "timm:vit_base_patch16_224.augreg2_in21k_ft_in1k", "pretrained": "w.bin"},
            "ImageNet's (in21k, in1k)",
        ),
        ({"arch": "timm:test_vit", "pretrained": "w.bin"}, "unknown (classifier.pretrained_on)"),
        ({"arch": "timm:test_vit", "pretrained": "w.bin", "pretrained_on": "half of it"}, "half of it"),
        ({"arch": "timm:test_vit", "pretrained": "domain1k.bin"}, "unknown (classifier.pretrained_on)"),
    ],
)
def test_labels_that_weights_have_seen_are_said_or_read_from_their_tag(
    section: Any, seen: str | None
) -> None:
    config = Classifier(**section)
    assert config.labels_seen == seen
    assert config.has_seen_imagenet == (seen is not None and "ImageNet" in seen)
    assert len([*first_weights_notes(study_of(section))]) == (seen is not None)


def test_a_warm_up_rises_to_the_rate_and_a_cosine_follows() -> None:
    config = Classifier(lr=0.8, schedule="steps", steps=12, decay="cosine", warmup_steps=4)
    rates = [StepSchedule().lr_of(step, config) for step in range(12)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert rates[8] == pytest.approx(0.4) and rates[-1] == pytest.approx(0.4 * (1 + np.cos(np.pi * 7 / 8)))


# --- optimiser ------------------------------------------------------------------------------------


def test_each_layer_trains_at_the_rate_of_the_next_one_times_the_factor() -> None:
    config = TRANSFORMER.model_copy(update={"layer_decay": 0.5})
    network = build(config, 2, 0)
    optimiser = new_optimiser(network, config)
    set_rate(optimiser, 0.8)
    rates = {id(value): group["lr"] for group in optimiser.param_groups for value in group["params"]}
    weights = dict(network.named_parameters())
    depth = len(network.blocks)
    assert len(rates) == len(weights)
    assert rates[id(weights["head.weight"])] == 0.8
    for block in range(depth):  # the last norm belongs to the last block
        expected = 0.8 * 0.5 ** (depth - block)
        assert rates[id(weights[f"blocks.{block}.mlp.fc1.weight"])] == pytest.approx(expected), block
    decays = {
        id(value): group["weight_decay"] for group in optimiser.param_groups for value in group["params"]
    }
    assert decays[id(weights["head.weight"])] == 0.05
    assert decays[id(weights["head.bias"])] == decays[id(weights["pos_embed"])] == 0


def test_sgd_keeps_one_group_that_decays_all_weights() -> None:
    config = CONVOLUTIONS.model_copy(update={"optimiser": "sgd", "weight_decay": 0.01})
    (group,) = new_optimiser(build(config, 2, 0), config).param_groups
    assert group["weight_decay"] == 0.01 and group["momentum"] == 0.9 and "lr_scale" not in group


# --- networks -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config",
    [TRANSFORMER, pytest.param(CONVOLUTIONS, marks=pytest.mark.full)],
    ids=lambda config: config.arch,
)
def test_a_network_of_timm_learns(config: Classifier) -> None:
    assert_learned(run_tiny(config), least=0.9)


def test_a_network_of_timm_is_timms_own_with_its_own_colours() -> None:
    ours = build(TRANSFORMER, 3, seed=7).eval()
    torch.manual_seed(7)
    theirs = timm.create_model("test_vit", num_classes=3, img_size=32).eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    settings = theirs.pretrained_cfg
    assert settings["mean"] == (0.5, 0.5, 0.5)
    with torch.no_grad():
        expected = theirs(normalised(pixels(), settings["mean"], settings["std"]))
        assert torch.allclose(ours(normalised(pixels(), MEAN, STD)), expected, atol=1e-5)


def test_first_weights_are_those_of_the_file_except_for_the_last_layer(tmp_path: Path) -> None:
    torch.manual_seed(1)
    theirs = timm.create_model("test_convnext", num_classes=2)
    start = saved(theirs, tmp_path / "weights.safetensors")
    config = Classifier(arch="timm:test_convnext", pretrained=start.place, **SIDES)
    ours, scratch = build(config, 2, 5, start), build(config.model_copy(update={"pretrained": None}), 2, 5)
    for name, value in ours.state_dict().items():
        other = scratch if name.startswith("head.fc.") else theirs
        assert torch.equal(value, other.state_dict()[name]), name
    assert name_of_head(ours) == "head.fc"


def test_positions_are_interpolated_to_another_size(tmp_path: Path) -> None:
    start = saved(timm.create_model("test_vit", num_classes=5, img_size=32), tmp_path / "weights.safetensors")
    config = Classifier(arch="timm:test_vit", pretrained=start.place, resolution=64)
    network = build(config, 2, 0, start)
    kept = load_file(start.place)
    assert network.pos_embed.shape[1] > kept["pos_embed"].shape[1]
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 2)
    assert torch.equal(network.blocks[0].mlp.fc1.weight, kept["blocks.0.mlp.fc1.weight"])


@pytest.mark.parametrize("spoil", ["other network", "text", "empty folder"])
def test_weights_of_another_network_are_refused(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "weights.safetensors"
    if spoil == "other network":
        saved(timm.create_model("test_resnet"), path)
    elif spoil == "text":
        path.write_text("no weights")
    else:
        path.mkdir()
    config = Classifier(arch="timm:test_vit", pretrained=str(path), **SIDES)
    with pytest.raises(
        UserError, match=r"^classifier\.pretrained: .*weights.safetensors.*; allowed: weights"
    ):
        build(config, 2, 0, Start("id", str(path)))


@pytest.mark.full
def test_dropout_and_stochastic_depth_are_off() -> None:
    config = Classifier(arch="timm:swin_tiny_patch4_window7_224", resolution=224)
    with torch.device("meta"):
        network = build(config, 2, 0)
    assert {module.p for module in network.modules() if isinstance(module, nn.Dropout)} == {0.0}
    assert {module.drop_prob for module in network.modules() if type(module).__name__ == "DropPath"} <= {0.0}


def test_dropout_that_is_a_number_or_for_maps_is_off_too() -> None:
    with torch.device("meta"):
        assert timm.create_model("ghostnet_100").drop_rate == 0.2  # of F.dropout before the last layer
        assert build(Classifier(arch="timm:ghostnet_100"), 2, 0).drop_rate == 0.0
    other = nn.Sequential(nn.Dropout2d(0.3), nn.AlphaDropout(0.3))
    without_dropout(other)
    assert [module.p for module in other] == [0.0, 0.0]


@pytest.mark.parametrize("deterministic", [True, False])
def test_attention_is_not_fused_on_a_gpu_if_results_are_to_be_the_same(deterministic: bool) -> None:
    def fused(config: Classifier, device: str) -> bool:
        with training._attention(config, torch.device(device)):
            return torch.backends.cuda.flash_sdp_enabled()

    config = TRANSFORMER.model_copy(update={"deterministic": deterministic})
    assert (fused(config, "cuda"), fused(config, "cpu")) == (not deterministic, True)
    assert fused(Classifier(deterministic=deterministic), "cuda")


def test_batch_normalisation_in_parts_keeps_timms_activations() -> None:
    config = Classifier(arch="timm:test_efficientnet", **SIDES)
    whole, parts = build(config, 2, 0), build(config, 2, 0)
    normalise_over(parts, 2, ProcessGroup(), CPU)
    assert whole.state_dict().keys() == parts.state_dict().keys()
    images = normalised(pixels(8), MEAN, STD)
    expected = torch.cat([whole(images[:4]), build(config, 2, 0)(images[4:])])
    assert torch.allclose(parts(images), expected, atol=1e-5)


def test_a_network_without_batch_normalisation_can_be_cut_into_parts() -> None:
    config = TRANSFORMER.model_copy(update={"batch_norm_groups": 4})
    assert training.Gradients(build(config, 2, 0), config, ALONE).parts == 4
    plain = Classifier(arch="timm:test_resnet", **SIDES)
    assert training.Gradients(build(plain, 2, 0), plain, ALONE).parts == 1


# --- CLIP and probes ------------------------------------------------------------------------------


CLASSES = (ClassInfo("a", ("bag",)), ClassInfo("b", ("ankle boot", "boot")))
CLIP_START = Start("clip", CLIP, CLASSES)


@pytest.mark.parametrize("side", [32, pytest.param(48, marks=pytest.mark.full)])
def test_clip_begins_as_its_zero_shot_classifier(side: int) -> None:
    network = build(Classifier(arch="clip", resolution=side), 2, 0, CLIP_START).eval()
    clip = TransformersClip(CLIP, CPU)
    settings = read_json(f"{CLIP}/preprocessor_config.json")
    with torch.no_grad():
        inputs = normalised(pixels(side=side), settings["image_mean"], settings["image_std"])
        texts = class_embeddings(clip.embed_texts, list(CLASSES), ZERO_SHOT)
        seen = clip.model.get_image_features(inputs, interpolate_pos_encoding=True).pooler_output
        expected = clip.scale * nn.functional.normalize(seen, dim=-1) @ texts.T
        assert torch.allclose(network(normalised(pixels(side=side), MEAN, STD)), expected, atol=1e-3)


def test_the_layers_of_clip_train_at_rates_that_fall_towards_the_image() -> None:
    config = Classifier(arch="clip", layer_decay=0.5, optimiser="adamw", **SIDES)
    network = build(config, 2, 0, CLIP_START)
    optimiser = new_optimiser(network, config)
    set_rate(optimiser, 0.8)
    rates = {id(value): group["lr"] for group in optimiser.param_groups for value in group["params"]}
    weights = dict(network.named_parameters())
    depth = len(network.vision_model.encoder.layers)
    assert len(rates) == len(weights)
    for name, value in weights.items():
        layer = re.search(r"layers\.(\d+)\.", name)
        below = 0 if name.startswith(("head", "visual_projection")) else 1  # layers between it and the last
        if layer:
            below = depth - int(layer[1])
        elif "embedding" in name or "pre_layrnorm" in name:
            below = depth + 1
        assert rates[id(value)] == pytest.approx(0.8 * 0.5**below), name


def test_a_clip_of_open_clip_is_no_classifier() -> None:
    with pytest.raises(
        UserError,
        match=r"classifier\.arch: 'clip'; goes with a CLIP in transformers' layout; clip\.model is 'open_clip:ViT",
    ):
        study_of(
            {"arch": "clip"}, clip={"model": "open_clip:ViT-B-32-quickgelu/openai", "revision": "0" * 40}
        )


def test_positions_of_clip_are_interpolated_once() -> None:
    config = Classifier(arch="clip", resolution=48)
    network = build(config, 2, 0, CLIP_START)
    positions = network.vision_model.embeddings.position_embedding
    assert positions.weight.shape[0] == (48 // 4) ** 2 + 1 and positions.weight.requires_grad
    again = build(config, 2, 0, replace(CLIP_START, classes=()))
    again.load_state_dict(network.state_dict())


@pytest.mark.parametrize("kind", ["clip", "timm"])
def test_the_last_layer_alone_is_that_of_the_network(kind: str, tmp_path: Path) -> None:
    if kind == "clip":
        config, start = Classifier(arch="clip", train="probe", **SIDES), CLIP_START
    else:
        start = saved(timm.create_model("test_vit", img_size=32), tmp_path / "weights.safetensors")
        config = Classifier(arch="timm:test_vit", train="probe", pretrained=start.place, **SIDES)
    expected = head_of(build(config, 2, 3, start)).state_dict()
    found = build_head(config, 2, 3, start).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items()) and len(found) == 2


def probe_of(config: Classifier, store: Path, start: Start) -> tuple[Frozen, list[LabelledImages]]:
    frozen = Frozen(config, start, Store(store))
    return frozen, [of_split(frozen, images, {}) for images in (labelled(0, 60), labelled(2000, 40))]


@pytest.mark.full
def test_a_probe_learns_on_features_that_are_computed_once(tmp_path: Path) -> None:
    config = Classifier(arch="clip", train="probe", optimiser="adamw", lr=0.05, **SHORT)
    frozen, (real, validation) = probe_of(config, tmp_path, CLIP_START)
    result = train_run(config, 2, real, None, validation, 0, 5, ALONE, start=CLIP_START)
    assert_learned(result, least=0.9)
    assert {name: value.shape[0] for name, value in result.state.items()} == {"weight": 2, "bias": 2}
    assert frozen.store.tally.made == 2
    again, (real, validation) = probe_of(config, tmp_path, replace(CLIP_START, classes=()))
    found = logits_of(result.state, config, 2, validation, ALONE, CLIP_START)
    assert again.store.tally.made == 0 and again.store.tally.reused == 1
    whole = build(config.model_copy(update={"train": "all"}), 2, 0, CLIP_START)
    head_of(whole).load_state_dict(result.state)
    expected = logits_of(
        whole.state_dict(),
        config.model_copy(update={"train": "all"}),
        2,
        labelled(2000, 40),
        ALONE,
        CLIP_START,
    )
    assert torch.allclose(found, expected, atol=0.02)  # features are float16


def test_features_are_the_input_of_the_last_layer() -> None:
    network = build(CONVOLUTIONS, 3, 0).eval()
    with torch.no_grad():
        found = Features(network)(pixels())
        assert torch.equal(head_of(network)(found), network(pixels()))


@pytest.mark.full
def test_features_of_added_images_are_kept_by_shard(tmp_path: Path) -> None:
    shards = [tmp_path / f"s/shards/m/{class_id}/0.parquet" for class_id in "ab"]
    for label, path in enumerate(shards):
        rows = [
            ShardRow(encode_image(photo(label, i), "png", 95), label, "ab"[label], i, "p", "model")
            for i in range(5)
        ]
        write_shard(path, rows, {})
    build_index(shards, tmp_path / "s", tmp_path / "s/index.parquet")
    index = read_index(tmp_path / "s/index.parquet")
    config = Classifier(arch="clip", train="probe", **SIDES)
    frozen = Frozen(config, CLIP_START, Store(tmp_path / "store", tmp_path / "s"))
    found = []
    for chosen in ([7, 0, 3], [3, 9]):  # of two sets of a pool
        rows = index.take(chosen)
        images = LabelledImages(
            rows.column("sha256").to_pylist(), rows.column("label").to_numpy(), lambda _: [], "x"
        )
        found.append(of_rows(frozen, images, rows, tmp_path / "s").pool(None, ALONE).features)
    assert frozen.store.tally.made == 2
    assert torch.equal(found[0][2], found[1][0])
    network = Features(build(config.model_copy(update={"train": "all"}), 2, 0, CLIP_START)).eval()
    seen = torch.from_numpy(np.array(photo(1, 2))).permute(2, 0, 1)[None] / 255  # image 2 of class b is row 7
    with torch.no_grad():
        assert torch.allclose(found[0][0], network(normalised(seen, MEAN, STD))[0], atol=1e-3)


def features_of(first: int, count: int) -> LabelledImages:
    """Features of a frozen network, by hand: normal numbers around one mean per class."""
    images = labelled(first, count)
    rng = np.random.default_rng(first)
    values = rng.normal(size=(count, 64)) + images.labels[:, None]
    return LabelledFeatures(images, lambda _: values.astype(np.float16))


def probe(steps: int, **changes: Any) -> Classifier:
    """A probe on features of 64 numbers, trained by SGD on all images in each step."""
    given = {
        **SHORT,
        "batch_size": 100,
        "steps": steps,
        "validate_every": 1,
        "lr": 0.1,
        "lower_at": (),
        **changes,
    }
    return Classifier(arch="timm:test_vit", pretrained="weights", train="probe", **given)


@pytest.mark.parametrize(
    "use",
    [
        {}, {"weight": 0.25}, {"label_smoothing": 0.2}, {"real_at_end": 0.5}, {"replace": 0.5},
        {"weight": 3.0, "label_smoothing": 0.1, "real_at_end": 0.25, "replace": 0.25},
    ],
    ids=lambda use: "_".join(use) or "plain",
)  # fmt: skip
def test_a_probe_uses_its_images_as_its_row_says(use: dict[str, float]) -> None:
    """Steps on all images at once, and the same with torch's own loss and optimiser on some of them."""
    used, config, kept = Use(**use), probe(8), np.ones(30, dtype=bool)
    real, added = features_of(0, 60), features_of(1000, 30)
    stays = None
    if used.replace:
        stays, taken = replace_real(
            real.labels, added.labels, used.replace, class_ids="ab", run=0, study_seed=5
        )
        kept = np.isin(np.arange(30), taken)
    found = train_run(
        config, 2, real, _some(added, kept), features_of(2000, 40), 0, 5, ALONE, use=used, stays=stays
    )

    layer = build_head(config, 2, derive_seed(classifier_seed(5, 0), "weights"))
    optimiser = torch.optim.SGD(layer.parameters(), 0.1, config.momentum, weight_decay=config.weight_decay)
    rows = np.arange(60) if stays is None else stays
    seen = [images.pool(None, ALONE).features[index] for images, index in ((real, rows), (added, kept))]
    labels = [torch.from_numpy(images.labels[index]) for images, index in ((real, rows), (added, kept))]
    for step in range(8):
        parts = 1 if step >= 8 * (1 - used.real_at_end) else 2
        weights = torch.cat([torch.ones(len(labels[0])), torch.full((len(labels[1]),), used.weight)][:parts])
        losses = nn.functional.cross_entropy(
            layer(torch.cat(seen[:parts])), torch.cat(labels[:parts]), reduction="none",
            label_smoothing=used.label_smoothing,
        )  # fmt: skip
        optimiser.zero_grad()
        ((weights * losses).sum() / weights.sum()).backward()
        optimiser.step()
    for name, value in layer.state_dict().items():
        assert torch.allclose(found.state[name], value, atol=2e-6), name


def _some(images: LabelledImages, kept: np.ndarray) -> LabelledImages:
    features = images.pool(None, ALONE).features[kept].numpy()
    ids = [name for name, there in zip(images.ids, kept, strict=True) if there]
    return LabelledFeatures(
        LabelledImages(ids, images.labels[kept], images.load, "some"), lambda _: features.astype(np.float16)
    )


def test_a_probe_trains_with_a_set_that_has_no_image(tmp_path: Path) -> None:
    start = saved(timm.create_model("test_vit", img_size=32), tmp_path / "weights.safetensors")
    frozen = Frozen(probe(4), start, Store(tmp_path / "store"))
    rows = SHARD_INDEX.empty_table()
    empty = of_rows(frozen, LabelledImages([], [], lambda _: [], "none"), rows, tmp_path)
    assert empty.pool(None, ALONE).features.shape == (0, 64)
    found, plain = (
        train_run(probe(4), 2, features_of(0, 60), added, features_of(2000, 40), 0, 5, ALONE)
        for added in (empty, None)
    )
    assert all(torch.equal(found.state[name], value) for name, value in plain.state.items())


def test_only_the_last_layer_of_a_frozen_network_trains(tmp_path: Path) -> None:
    start = saved(timm.create_model("test_vit", img_size=32), tmp_path / "weights.safetensors")
    config = TRANSFORMER.model_copy(update={"pretrained": start.place, "train": "head", "steps": 6})
    result = train_run(config, 2, labelled(0, 60), None, labelled(2000, 40), 0, 5, ALONE, start=start)
    before, kept = build(config, 2, 0, start).state_dict(), load_file(start.place)
    changed = {name for name, value in result.state.items() if not torch.equal(value, before[name])}
    assert changed == {"head.weight", "head.bias"} and set(kept) == set(before)


# --- a block of runs ------------------------------------------------------------------------------


def make_block(root: Path, section: dict[str, Any]) -> tuple[Study, Store, list[Path]]:
    """Make an image folder of two classes with splits, and train two runs of a baseline."""
    for name, first in (("train", 0), ("val", 100), ("test", 200)):
        rows = [(f"{'ab'[label]}/{first + i}.png", label) for label in (0, 1) for i in range(20)]
        for source, label in rows:
            path = root / "data" / source
            path.parent.mkdir(parents=True, exist_ok=True)
            photo(label, int(path.stem)).save(path)
        ids = [source for source, _ in rows]
        labels = np.array([label for _, label in rows], dtype=np.int32)
        write_split(Split(ids, [source[0] for source in ids], labels, ids), root / f"{name}.parquet")
    write_class_table(list(CLASSES), root / "classes.parquet")
    dataset = {"kind": "image_folder", "root": str(root / "data")}
    study, store = study_of(section, dataset=dataset), Store(root / "results/.store")
    place = CLIP if study.classifier.arch == "clip" else str(study.classifier_weights)
    write_json(root / "first.json", fingerprint(place))
    folders = [root / f"results/classifiers/none/{run}" for run in (0, 1)]
    paths = [root / f"{name}.parquet" for name in ("train", "val", "test")]
    table, first = root / "classes.parquet", root / "first.json"
    train_block(study, store, "none", *paths, table, [], folders, first_weights=first)
    return study, store, folders


@pytest.mark.full
def test_a_block_of_probes_reports_the_accuracy_before_training(tmp_path: Path) -> None:
    section = {"arch": "clip", "train": "probe", "lr": 0.1, **SHORT, "steps": 12}
    _, store, folders = make_block(tmp_path, section)
    results = [read_json(folder / "result.json") for folder in folders]
    network = build(Classifier(arch="clip", **SIDES), 2, 0, CLIP_START)
    test = LabelledImages(
        [""] * 40,
        np.repeat([0, 1], 20),
        lambda _: (photo(label, 200 + i) for label in (0, 1) for i in range(20)),
        "t",
    )
    logits = logits_of(network.state_dict(), Classifier(arch="clip", **SIDES), 2, test, ALONE, CLIP_START)
    expected = float((logits.argmax(1).numpy() == test.labels).mean())
    assert [result["zero_shot_top1"] for result in results] == [expected, expected]
    assert len([*(store.root / "features").glob("*.npy")]) == 3  # train, val, test


@pytest.mark.full
def test_other_first_weights_are_another_recipe(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", img_size=32)
    section = {
        "arch": "timm:test_vit",
        "pretrained": str(tmp_path / "w.safetensors"),
        "train": "probe",
        **SHORT,
    }
    for _ in range(2):
        saved(network, tmp_path / "w.safetensors")
        _, store, folders = make_block(tmp_path, {**section, "steps": 6})
        assert "zero_shot_top1" not in read_json(folders[0] / "result.json")
        network.blocks[0].mlp.fc1.weight.data.add_(0.1)
    assert len([*(store.root / "classifiers").glob("*.safetensors")]) == 4


# --- plan and check -------------------------------------------------------------------------------


def test_first_weights_have_their_files_and_fingerprint_in_the_plan() -> None:
    revision = "0123456789abcdef" * 2 + "01234567"
    hub = study_of(
        {"arch": "timm:test_vit", "pretrained": "timm/test_vit.r160_in1k", "pretrained_revision": revision}
    )
    plan = InputPaths(hub, ("a",))
    assert plan.hub_models["classifier"].hub.revision == revision
    assert plan.classifier_weights == [
        f"results/downloads/models/timm--test_vit.r160_in1k/{revision}/fetched.json"
    ]
    assert plan.first_weights == ["results/s/models/classifier.json"]
    assert InputPaths(study_of({"arch": "clip"}), ("a",)).first_weights == ["results/s/models/clip.json"]
    assert InputPaths(study_of({}), ("a",)).first_weights == []


@pytest.mark.parametrize(
    ("section", "said"),
    [
        (
            {"arch": "timm:convnext_tinny"},
            "classifier.arch: timm:convnext_tinny, which timm .* such as convnext_tiny",
        ),
        (
            {"arch": "timm:test_vit.nothing", "pretrained": "w.bin"},
            "classifier.arch: timm:test_vit.nothing; allowed: a known tag",
        ),
        (
            {"arch": "timm:test_vit", "resolution": 30},
            "classifier.resolution: 30; allowed: a size that timm:test_vit",
        ),
        ({"arch": "clip", "resolution": 30}, "classifier.resolution: 30; allowed: a multiple of 4"),
        (
            {"arch": "timm:test_vit", "pretrained": "gone.bin"},
            "classifier.pretrained: 'gone.bin', which does not",
        ),
        (
            {"arch": "timm:test_vit", "pretrained": "timm/gone"},
            "classifier.pretrained: 'timm/gone', .*revision",
        ),
    ],
)
def test_networks_that_can_not_serve_are_found_before_a_run(section: dict[str, Any], said: str) -> None:
    (problem,) = network_problems(study_of(section))
    assert re.search(said, str(problem)) and "\n" not in str(problem), str(problem)


def test_first_weights_that_do_not_fit_are_found_before_a_run(tmp_path: Path) -> None:
    section = {"arch": "timm:test_vit", "pretrained": str(tmp_path / "w"), "resolution": 32}
    folder = tmp_path / "w"
    folder.mkdir()
    saved(timm.create_model("test_vit", img_size=32), folder / "a.safetensors")
    assert [*network_problems(study_of(section))] == []
    (folder / "config.json").write_text('{"mean": [0.5, 0.5]}')
    (problem,) = network_problems(study_of(section))
    assert re.search(r"config\.json: mean: \[0\.5, 0\.5\]; allowed: mean and std", str(problem))
    (folder / "config.json").unlink()
    saved(timm.create_model("test_resnet"), folder / "b.safetensors")
    (problem,) = network_problems(study_of(section))
    assert "has several files of weights (a.safetensors, b.safetensors)" in str(problem)
    (folder / "a.safetensors").unlink()
    (problem,) = network_problems(study_of(section))
    assert "lacks" in str(problem) and "weights of the network" in str(problem)


@pytest.mark.parametrize(("class_ids", "warned"), [(["n01440764"], True), (["bag"], False)])
def test_weights_that_have_seen_the_studys_classes_are_told(class_ids: list[str], warned: bool) -> None:
    section = {"arch": "timm:test_vit.r160_in1k", "pretrained": "w.bin"}
    notes = [*first_weights_notes(study_of(section), class_ids)]
    assert [note.startswith("warning: ") for note in notes] == [False, True][: 1 + warned]


@pytest.mark.parametrize("arch", ["timm:test_vit", "timm:test_convnext", "clip", "resnet50"])
def test_networks_that_can_serve_have_no_problem(arch: str) -> None:
    assert [*network_problems(study_of({"arch": arch, "resolution": 64}))] == []


# --- interruptions and processes ------------------------------------------------------------------


class Stop(Exception):
    """Stops training."""


def stop_and_resume(
    train: Callable[[Path | None], RunResult], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> RunResult:
    """Stop before the third validation, after the one before it was saved; resume."""
    accuracy, calls = training._accuracy, []

    def counted(*given: Any) -> float:
        calls.append(1)
        if len(calls) > 2:
            raise Stop
        return accuracy(*given)

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
        patch.setattr(training, "_accuracy", counted)
        train(checkpoint)
    assert checkpoint.is_file()
    return train(checkpoint)


@pytest.mark.parametrize(
    "trained", ["probe", *(pytest.param(name, marks=pytest.mark.full) for name in ("all", "head"))]
)
def test_an_interrupted_run_ends_with_the_same_bits(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"keep": "best", "steps": 16, "validate_every": 4}

    def train(checkpoint: Path | None) -> RunResult:
        if trained == "all":
            return run_tiny(
                TRANSFORMER.model_copy(update={"layer_decay": 0.75, **changes}), checkpoint=checkpoint
            )
        if trained == "head":
            return head_run(tmp_path, ALONE, checkpoint, **changes)
        config = probe(**{**changes, "batch_size": 16})
        sets, use = (features_of(0, 60), features_of(1000, 30), features_of(2000, 40)), Use(real_at_end=0.4)
        return train_run(config, 2, *sets, 0, 5, ALONE, checkpoint, use=use)

    saved(timm.create_model("test_vit", img_size=32), tmp_path / "weights.safetensors")
    expected, found = train(None), stop_and_resume(train, tmp_path / "run.pt", monkeypatch)
    assert found.history == expected.history
    assert all(torch.equal(found.state[name], value) for name, value in expected.state.items())


ROUNDING = TRANSFORMER.model_copy(
    update={"optimiser": "sgd", "lr": 0.02, "layer_decay": 0.75, "steps": 6, "validate_every": 3}
)


def in_a_group(group: ProcessGroup, folder: Path) -> list[RunResult]:
    compute = Compute(CPU, group, Storage("memory", folder))
    return [run_tiny(ROUNDING, compute), head_run(folder, compute)]


def head_run(folder: Path, compute: Compute, checkpoint: Path | None = None, **changes: Any) -> RunResult:
    """Train the last layer on a frozen network."""
    path = folder / "weights.safetensors"
    start = Start("id", str(path))
    config = ROUNDING.model_copy(
        update={"pretrained": str(path), "train": "head", "layer_decay": 1.0, **changes}
    )
    sets = labelled(0, 60), None, labelled(2000, 40)
    return train_run(config, 2, *sets, 0, 5, compute, checkpoint, start=start)


@pytest.mark.full
def test_two_processes_train_a_network_without_batch_normalisation_as_one_does(tmp_path: Path) -> None:
    saved(timm.create_model("test_vit", img_size=32), tmp_path / "weights.safetensors")
    expected = [run_tiny(ROUNDING), head_run(tmp_path, ALONE)]
    for ours, theirs in zip(in_processes(2, CPU, in_a_group, tmp_path), expected, strict=True):
        for one, other in zip(ours.history, theirs.history, strict=True):
            assert one.train_loss == pytest.approx(other.train_loss, rel=1e-4)
        for name, value in theirs.state.items():
            assert torch.allclose(ours.state[name], value, rtol=0, atol=1e-4), name
