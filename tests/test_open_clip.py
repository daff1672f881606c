"""CLIP models of open_clip: their names, files, and embeddings, which are open_clip's own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import LEAST_STUDY, Workspace, noise, write_images
from open_clip_models import MINI, SIGLIP, SIGLIP_PREPROCESSING, convert_miniature, write_siglip
from PIL import Image

from augbench.artifacts.store import Store
from augbench.commands.check.study import check_study
from augbench.config.clips import architecture_config, clip_name, published, same_clip
from augbench.config.study import Study, parse_study
from augbench.data.classes import ClassInfo, load_class_table
from augbench.errors import UserError
from augbench.files import read_json, write_json
from augbench.leakage.stage import Embedder
from augbench.measures.eyes import Eyes
from augbench.models.clip import clip_width, load_clip
from augbench.models.clip_size import image_operations, parameters
from augbench.models.fetch import needed_files
from augbench.models.folders import fingerprint
from augbench.models.open_clip_files import describe, fingerprint_open_clip
from augbench.models.towers import Clip
from augbench.models.transformers_clip import TransformersClip
from augbench.models.vit_l_14 import is_vit_l_14
from augbench.personalise.cluster import load_features
from augbench.plan import recipes
from augbench.plan.needs import Needs, Site
from augbench.plan.paths import Plan
from augbench.retrieval.embed import build_index, embed, list_folder
from augbench.retrieval.embedding_files import open_embeddings
from augbench.retrieval.exact import ExactBackend
from augbench.retrieval.index import IndexBackend
from augbench.retrieval.search import embed_queries
from augbench.runtime.job import Job

CPU = torch.device("cpu")
COMMIT = "0123456789abcdef0123456789abcdef01234567"
TEXTS = ["a photo of a bag", "Trousers &amp; shirts", "a “curly” quote, a bag and many other words " * 9]


def study_with(model: str, **clip: Any) -> Study:
    return parse_study({**LEAST_STUDY, "clip": {"model": model, **clip}})


def load(folder: Path) -> Clip:
    return load_clip(fingerprint_open_clip(clip_name(f"open_clip:{folder}"), folder), CPU)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert_miniature(tmp_path_factory.mktemp("open_clip") / "converted")


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_siglip(tmp_path_factory.mktemp("open_clip") / "siglip")


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    """Images whose margins are even, which all libraries crop alike."""
    rng = np.random.default_rng(0)
    sides = [(32, 32), (64, 64), (40, 32), (32, 48), (90, 90)]
    return [Image.fromarray(rng.integers(0, 256, (*side, 3), dtype=np.uint8)) for side in sides]


# --- names ---


def test_the_table_of_published_weights_is_that_of_the_installed_open_clip() -> None:
    from augbench.models.open_clip_table import published_by_open_clip

    assert published() == published_by_open_clip()


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("open_clip:ViT-L-14/openai", r"openai was trained with QuickGELU.* allowed: open_clip:ViT-L-14-quickgelu/"),
        ("open_clip:ViT-L-14/opnai", r"'opnai' is no tag of ViT-L-14; allowed: open_clip:ViT-L-14/ and one of .*laion"),
        ("open_clip:ViT-L-14-quickgelu/laion2b_s32b_b82k", r"no tag of .*one of openai, metaclip_400m"),
        ("open_clip:ViT-B-32", r"'nothing' is no tag"),
        ("open_clip:", r"open_clip:ARCHITECTURE/WEIGHTS"),
        ("openai_clip:ViT-L/14", r"not openai_clip:"),
        ("open_clip:ViT-B-16-SigLIP/webli", r"revision: .*timm/ViT-B-16-SigLIP is fetched from"),
    ],
)  # fmt: skip
def test_a_name_that_names_no_model_is_one_clear_error(model: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"^clip\b.*: .*{said}"):
        study_with(model)


def test_names_lead_to_repositories_files_and_folders(tmp_path: Path) -> None:
    hub = study_with("open_clip:ViT-H-14-quickgelu/dfn5b", revision=COMMIT).clip.hub
    assert hub is not None and hub.repository == "apple/DFN5B-CLIP-ViT-H-14"
    assert hub.folder.endswith(f"apple--DFN5B-CLIP-ViT-H-14/{COMMIT}-open_clip")
    assert hub.weights == ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    other = study_with("open_clip:ViTamin-S/datacomp1b", revision=COMMIT).clip.hub
    assert other is not None and other.weights == ("pytorch_model.safetensors", "pytorch_model.bin")
    named = study_with("open_clip:owner/name", revision=COMMIT).clip.hub
    assert named is not None and (named.repository, named.weights) == ("owner/name", hub.weights)
    checkpoint = study_with(f"open_clip:ViT-B-32/{tmp_path}/epoch_9.pt").clip
    assert (checkpoint.hub, checkpoint.folder, checkpoint.named.weights) == (
        None,
        str(tmp_path),
        ("epoch_9.pt",),
    )
    assert study_with(f"open_clip:{tmp_path}").clip.folder == str(tmp_path)
    assert (
        study_with("hf_clip:openai/clip-vit-large-patch14").clip.hub
        == study_with("openai/clip-vit-large-patch14").clip.hub
    )


def test_spellings_of_one_model_are_one_model() -> None:
    assert same_clip("hf_clip:openai/clip-vit-large-patch14", "openai/clip-vit-large-patch14")
    assert same_clip("open_clip:ViT-B-32/laion2b-s34b-b79k", "open_clip:ViT-B-32/laion2b_s34b_b79k")
    assert not same_clip("open_clip:ViT-B-16/laion2b_s34b_b88k", "open_clip:ViT-B-32/laion2b_s34b_b79k")


def test_a_corpus_of_another_open_clip_is_refused() -> None:
    corpus = {"kind": "embeddings", "folder": "e", "clip": "open_clip:ViT-B-32/datacomp_xl_s13b_b90k"}
    config = {
        **LEAST_STUDY,
        "clip": {"model": "open_clip:ViT-B-16/datacomp_xl_s13b_b90k", "revision": COMMIT},
        "corpus": corpus,
        "methods": {"retrieval": {"mechanism": "retrieve", "images_per_class": 1}},
    }
    with pytest.raises(UserError, match=r"corpus\.clip: .*ViT-B-32.*differs from clip\.model"):
        parse_study(config)


def test_a_config_with_open_clip_is_read_without_torch_and_open_clip() -> None:
    code = (
        "import sys; from augbench.config.study import parse_study; from augbench.plan.paths import Plan; "
        f"study = parse_study({{**{LEAST_STUDY!r}, 'clip': {{'model': 'open_clip:ViT-B-16-SigLIP/webli', "
        f"'revision': '{COMMIT}'}}}}); print(study.clip.folder, sorted({{'torch', 'open_clip'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith(f"timm--ViT-B-16-SigLIP/{COMMIT}-open_clip []")


# --- embeddings ---


def test_the_miniature_as_a_model_of_open_clip_embeds_as_with_transformers(
    converted: Path, images: list[Image.Image]
) -> None:
    ours, theirs = load(converted), TransformersClip(MINI, CPU)
    assert torch.allclose(ours.embed_texts(TEXTS), theirs.embed_texts(TEXTS), atol=1e-5)
    one, other = (F.normalize(clip.image_tower()(images), dim=-1) for clip in (ours, theirs))
    assert torch.allclose(one, other, atol=1e-5)
    assert ours.scale == theirs.scale and ours.bias == theirs.bias == 0


def test_a_siglip_embeds_as_open_clip_does(siglip: Path, images: list[Image.Image]) -> None:
    """Its own tokenizer and context length, images squashed to a square, a tower of timm's, and a bias."""
    import open_clip
    from open_clip.tokenizer import get_clean_fn
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from transformers import AutoTokenizer

    ours = load(siglip)
    config = {key: value for key, value in SIGLIP.items() if key != "custom_text"}
    config["vision_cfg"] = {**SIGLIP["vision_cfg"], "timm_model_pretrained": False}
    theirs = open_clip.CustomTextCLIP(**config).eval()
    open_clip.load_checkpoint(theirs, str(siglip / "open_clip_model.safetensors"))
    preprocess = image_transform_v2(PreprocessCfg(size=48, **SIGLIP_PREPROCESSING), is_train=False)
    clean, tokenizer = get_clean_fn("canonicalize"), AutoTokenizer.from_pretrained(siglip)
    tokens = tokenizer(
        [clean(text) for text in TEXTS],
        padding="max_length",
        truncation=True,
        max_length=32,
        return_tensors="pt",
    ).input_ids
    assert tokens.shape == (3, 32) and tokens[0, -1] == 1  # padding that the tower reads
    tower = ours.image_tower()
    pixels = torch.stack([preprocess(image) for image in images])
    assert torch.equal(tower._normalised(tower.prepare(images)), pixels)
    with torch.inference_mode():
        assert torch.allclose(tower(images), theirs.encode_image(pixels), atol=1e-5)
        assert torch.allclose(ours.embed_texts(TEXTS), theirs.encode_text(tokens, normalize=True), atol=1e-5)
    assert ours.bias == -10 and ours.scale == theirs.logit_scale.exp()


def test_texts_of_a_tower_that_reads_padding_do_not_depend_on_their_batch(siglip: Path) -> None:
    clip = load(siglip)
    assert torch.allclose(clip.embed_texts(TEXTS)[:1], clip.embed_texts(TEXTS[:1]), atol=1e-6)


# --- files ---


def test_a_fingerprint_is_of_the_content_and_names_all_that_loading_needs(
    converted: Path, siglip: Path, tmp_path: Path
) -> None:
    found = fingerprint_open_clip(clip_name(f"open_clip:{converted}"), converted)
    moved = Path(shutil.copytree(converted, tmp_path / "moved"))
    assert fingerprint_open_clip(clip_name(f"open_clip:{moved}"), moved)["id"] == found["id"]
    assert set(found["files"]) == {"open_clip_model.safetensors"} and clip_width(found) == 128
    config = json.loads((moved / "open_clip_config.json").read_text())
    config["preprocess_cfg"]["resize_mode"] = "squash"
    (moved / "open_clip_config.json").write_text(json.dumps(config))
    assert fingerprint_open_clip(clip_name(f"open_clip:{moved}"), moved)["id"] != found["id"]
    assert "tokenizer.json" in fingerprint_open_clip(clip_name(f"open_clip:{siglip}"), siglip)["files"]


def test_recipes_name_open_clip_only_where_it_is_used(converted: Path) -> None:
    assert recipes.model_recipe(study_with("resources/mini/clip").clip) == {
        "version": 1,
        "folder": "resources/mini/clip",
    }
    study = study_with(f"open_clip:{converted}")
    assert recipes.model_recipe(study.clip)["open_clip"][:2] == [None, None]
    assert Plan(study, ("a",)).clip_files == [
        str(converted / name) for name in ("open_clip_model.safetensors", "open_clip_config.json")
    ]


def edit(folder: Path, **model_cfg: Any) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"] |= model_cfg
    (folder / "open_clip_config.json").write_text(json.dumps(config))


def test_what_does_not_fit_is_one_clear_error(converted: Path, siglip: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(converted, tmp_path / "model"))
    name = clip_name(f"open_clip:{folder}")
    roberta = {**json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]["text_cfg"]}
    edit(folder, text_cfg={**roberta, "hf_model_name": "roberta-base"})
    with pytest.raises(UserError, match="its text tower is roberta-base"):
        describe(name, folder)
    edit(folder, text_cfg={**roberta, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP"})
    with pytest.raises(UserError, match=r"has no tokenizer_config\.json; .*timm/ViT-B-16-SigLIP"):
        describe(name, folder)
    edit(folder, text_cfg=roberta, embed_dim=64)
    with pytest.raises(UserError, match=r"open_clip 2\.\S+ can't load it \(.*size mismatch"):
        load(folder)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(
        UserError, match=r"has no open_clip_model\.safetensors or open_clip_pytorch_model\.bin"
    ):
        describe(name, folder)
    (folder / "open_clip_config.json").write_text("{}")
    with pytest.raises(UserError, match="no config of an open_clip model"):
        describe(name, folder)
    (folder / "open_clip_config.json").unlink()
    with pytest.raises(UserError, match=r"has no open_clip_config\.json; allowed"):
        describe(name, folder)
    with pytest.raises(UserError, match="no such folder"):
        describe(name, folder / "none")
    weights = siglip / "open_clip_model.safetensors"
    with pytest.raises(UserError, match="does not say how images are preprocessed"):
        describe(clip_name(f"open_clip:ViT-B-16-SigLIP/{weights}"), siglip)


def test_weights_with_another_activation_than_the_architecture_are_refused(
    converted: Path, tmp_path: Path
) -> None:
    """As weights of a moved repository, whose own config says what they were trained with."""
    name = clip_name("open_clip:ViT-B-32/laion2b_s34b_b79k")
    with pytest.raises(UserError, match=r"ViT-B-32 lacks QuickGELU.* allowed: open_clip:ViT-B-32-quickgelu/"):
        describe(name, converted)
    folder = Path(shutil.copytree(converted, tmp_path / "model"))
    edit(folder, quick_gelu=False)
    assert describe(name, folder)["model_cfg"]["vision_cfg"]["width"] == 768
    with pytest.raises(UserError, match="has QuickGELU, unlike"):
        describe(clip_name("open_clip:ViT-L-14-quickgelu/openai"), folder)


def test_of_a_repository_one_file_of_weights_and_the_settings_are_fetched() -> None:
    names = ["README.md", "open_clip_config.json", "model.safetensors", "open_clip_pytorch_model.bin"]
    names += ["tokenizer.json", "model.safetensors.index.json", "onnx/config.json"]
    wanted = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    settings = ["open_clip_config.json", "tokenizer.json"]
    assert needed_files("clip", names, weights=wanted) == sorted([*settings, wanted[1]])
    assert needed_files("clip", [*names, wanted[0]], weights=wanted) == sorted([*settings, wanted[0]])
    with pytest.raises(UserError, match=r"clip\.model: no open_clip_model\.safetensors or"):
        needed_files("clip", ["model.safetensors"], weights=wanted)


def test_fingerprints_of_transformers_models_are_as_before() -> None:
    assert set(fingerprint(MINI)) == {"id", "folder", "files"}


# --- check and plan ---


def pets_study(clip: str, **changes: Any) -> Study:
    retrieval = {"mechanism": "retrieve", "images_per_class": 1, "may_fall_short": True}
    config: dict[str, Any] = {
        "study": "pets",
        "dataset": {"kind": "image_folder", "root": "pets", "train_fraction": 0.25},
        "corpus": {"kind": "image_folder", "root": "corpus"},
        "diffusion": {"model": str(MINI.parent / "stable-diffusion"), "resolution": 32},
        "clip": {"model": clip},
        "methods": {"none": {"mechanism": "real"}, "retrieval": retrieval},
        "augmentation": {"images_per_class": 6},
        "classifier": {"batch_size": 4},
    }
    return parse_study({**config, **changes})


def test_check_tokenises_and_warns_of_thresholds_for_another_clip(pets: Path, siglip: Path) -> None:
    notes = check_study(pets_study(f"open_clip:{siglip}"), tokenise=True)
    assert f"prompts: tokenised with {siglip}" in notes
    warned = [note.split(":")[1].strip() for note in notes if "was chosen for CLIP ViT-L/14" in note]
    assert warned == ["methods.retrieval.duplicate_threshold", "leakage.clip_threshold"]
    row = {"mechanism": "retrieve", "images_per_class": 1, "may_fall_short": True, "duplicate_threshold": 0.9}
    methods = {"none": {"mechanism": "real"}, "retrieval": row}
    study = pets_study(f"open_clip:{siglip}", methods=methods, leakage={"clip_threshold": 0.8})
    assert not any("was chosen for" in note for note in check_study(study))
    methods["retrieval"] = {**row, "min_aesthetics": 5.0}
    with pytest.raises(
        UserError, match=r"methods\.retrieval\.min_aesthetics: 5 with open_clip:.*allowed: null"
    ):
        check_study(pets_study(f"open_clip:{siglip}", methods=methods))
    with pytest.raises(
        UserError, match=r"clip\.model: 'nowhere', no such folder; allowed: .*open_clip_config"
    ):
        check_study(pets_study("open_clip:nowhere"))


@pytest.mark.parametrize(
    ("model", "vit_l_14"),
    [
        ("open_clip:ViT-L-14-quickgelu/openai", True),
        ("open_clip:ViT-L-14-quickgelu/dfn2b", False),
        ("open_clip:ViT-H-14-quickgelu/dfn5b", False),
        ("openai/clip-vit-large-patch14", True),
        (str(MINI), False),
    ],
)
def test_thresholds_hold_for_openais_vit_l_14(model: str, vit_l_14: bool) -> None:
    revision = None if model == str(MINI) else COMMIT
    assert is_vit_l_14(study_with(model, revision=revision).clip) is vit_l_14


@pytest.mark.parametrize(
    (
        "architecture",
        "gflop",
        "millions",
    ),  # as open_clip's docs/model_profile.csv, half of their multiply-adds
    [("ViT-L-14", 162, 428), ("ViT-B-32", 8.8, 151), ("ViT-SO400M-14-SigLIP-384", 670, 878)],
)
def test_sizes_of_networks_are_those_of_their_layers(
    architecture: str, gflop: float, millions: float
) -> None:
    config = architecture_config(architecture)
    assert image_operations(config) == pytest.approx(gflop * 1e9, rel=0.05)
    assert parameters(config) == pytest.approx(millions * 1e6, rel=0.03)
    assert image_operations(architecture_config("RN50")) is parameters(architecture_config("RN50")) is None


def test_a_larger_model_asks_for_more_memory_and_a_known_one_for_none_more() -> None:
    def memory(model: str) -> int:
        needs = Needs(study_with(model, revision=COMMIT), Site())
        return int(needs.clip_job(1000, 16000, 60)["mem_mb"](None, 1))

    assert memory("openai/clip-vit-large-patch14") == memory("open_clip:ViT-B-32/laion2b_s34b_b79k") == 16000
    assert memory("open_clip:ViT-bigG-14/laion2b_s39b_b160k") == pytest.approx(
        16000 + 8 * (2540 - 428), rel=0.02
    )


# --- stages ---


def job_with(folder: Path, clip: Path) -> Job:
    study = parse_study(
        {**LEAST_STUDY, "clip": {"model": f"open_clip:{clip}"}, "execution": {"device": "cpu"},
         "finetune": {"features": "clip"}}
    )  # fmt: skip
    write_json(folder / "clip.json", fingerprint_open_clip(study.clip.named, clip))
    return Job(study, Store(folder / ".store", folder), 1)


@pytest.mark.full
def test_stages_embed_search_and_look_with_a_model_of_open_clip(tmp_path: Path, siglip: Path) -> None:
    job = job_with(tmp_path, siglip)
    clip, images = read_json(tmp_path / "clip.json"), [noise(seed) for seed in range(6)]
    write_images(tmp_path / "corpus", [f"{number}.png" for number in range(6)])
    embed(job, list_folder(tmp_path / "corpus"), tmp_path / "clip.json", tmp_path / "embeddings")
    vectors = np.load(tmp_path / "embeddings/img_emb/img_emb_00000.npy")
    assert vectors.shape == (6, 64)
    assert np.allclose(Embedder(job, clip).embed(images), vectors, atol=1e-3)
    features = load_features(job.study, tmp_path / "clip.json")
    assert torch.allclose(F.normalize(features(images), dim=-1), torch.from_numpy(vectors).float(), atol=1e-3)
    queries = embed_queries({"a": "a bag", "b": "a dress"}, clip, job.study)
    expected = np.argsort(-(queries @ vectors.T.astype(np.float32)), axis=1)[:, :3]
    build_index(tmp_path / "embeddings", tmp_path / "index", 1)
    exact = ExactBackend(open_embeddings(tmp_path / "embeddings"), job.store, "cpu")
    for backend in (exact, IndexBackend(tmp_path / "index", clip)):
        found = [answer.metadata.column("url").to_pylist() for answer in backend.search(queries, 3)]
        assert found == [[f"{row}.png" for row in rows] for rows in expected]
    classes = [ClassInfo("bag", ("bag",)), ClassInfo("dress", ("dress",))]
    seen = Eyes(clip, None, classes, CPU).look(images, np.zeros(6, int), "images")
    assert np.allclose(seen.embeddings.numpy(), vectors, atol=1e-3) and set(seen.clip) <= {0, 1}


@pytest.mark.full
def test_a_corpus_that_clip_retrieval_has_embedded_has_the_same_neighbours(
    tmp_path: Path, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip
    from clip_retrieval import clip_inference

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    (tmp_path / "configs").mkdir()
    model_cfg = json.loads((converted / "open_clip_config.json").read_text())["model_cfg"]
    (tmp_path / "configs/mini.json").write_text(json.dumps(model_cfg))
    open_clip.add_model_config(tmp_path / "configs")
    rng = np.random.default_rng(0)
    (tmp_path / "corpus").mkdir()
    for number in range(40):
        smooth = Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((48, 48))
        smooth.save(tmp_path / f"corpus/{number:02d}.png")
    clip_inference(
        str(tmp_path / "corpus"),
        str(tmp_path / "theirs"),
        enable_text=False,
        batch_size=20,
        num_prepro_workers=1,
        clip_model=f"open_clip:mini/{converted}/open_clip_model.safetensors",
        use_jit=False,
    )
    job = job_with(tmp_path, converted)
    embed(job, list_folder(tmp_path / "corpus"), tmp_path / "clip.json", tmp_path / "ours")
    queries = embed_queries({"a": "a bag", "b": "a dress"}, read_json(tmp_path / "clip.json"), job.study)
    found = []
    for folder in (tmp_path / "ours", tmp_path / "theirs"):
        answers = ExactBackend(open_embeddings(folder), job.store, "cpu").search(queries, 10)
        found.append([[Path(url).name for url in one.metadata.column("url").to_pylist()] for one in answers])
    assert found[0] == found[1]


@pytest.mark.full
@pytest.mark.long
def test_every_stage_that_uses_clip_runs_with_a_model_of_open_clip(workspace: Workspace) -> None:
    """Corpus, queries by text and images, filters, leakage, clusters and diagnostics, with random weights."""
    write_siglip(workspace.folder / "siglip")
    ids = [info.class_id for info in load_class_table("fashion_mnist")]
    study = workspace.study
    study["clip"] = {"model": "open_clip:siglip"}
    study["corpus"] = {"kind": "miniature", "images": 400, "distractors": 40}
    study["retrieval"] = {"exclude": ids[3:]}
    retrieval = {"mechanism": "retrieve", "images_per_class": 10, "duplicate_threshold": None}
    study["methods"] = {
        "none": {"mechanism": "real"},
        "clip_prompts": {"mechanism": "sample", "prompt": {"templates": "clip"}},
        "kept": {"mechanism": "draw", "pool": "clip_prompts", "keep": {"by": "clip", "share": 0.5}},
        "clusters": {"mechanism": "personalise", "learn": "conditioning", "clusters": 2, "candidates": [1]},
        "text": {**retrieval, "drop_unsafe": False},
        "images": {**retrieval, "drop_unsafe": False, "query": {"images": "train", "text_weight": 0.5}},
    }
    study["finetune"] |= {"max_epochs": 1}
    study["augmentation"] = {"images_per_class": 20, "resamples": 2}
    study["classifier"] |= {"max_epochs": 1}
    study["leakage"] = {"clip_threshold": 0.9, "neighbours": 1, "action": "drop"}
    workspace.write_study(study)
    checked = workspace.augbench("check", "--configfile", "study.yaml")
    assert checked.returncode == 0, checked.stderr
    workspace.run()
    clip = read_json(workspace.results / "models/clip.json")
    assert clip["open_clip"]["weights"] == "open_clip_model.safetensors"
    vectors = np.load(next((workspace.results / "corpus/embeddings/img_emb").glob("*.npy")))
    assert vectors.shape == (440, 64)
    assert (workspace.results / "tables/diagnostics.md").is_file()
    assert "clip" in (workspace.results / "tables/statistics.md").read_text().lower()
