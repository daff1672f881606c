"""The miniature corpus: disjoint from the target, shifted and contaminated as configured, reproducible."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from conftest import LEAST_STUDY
from PIL import Image
from transformers import CLIPImageProcessorPil

from augbench.artifacts.store import Store
from augbench.config.corpus import MiniatureCorpus
from augbench.config.stages import Execution
from augbench.config.study import parse_study
from augbench.data import fashion_mnist
from augbench.data.classes import load_class_table
from augbench.errors import UserError
from augbench.files import read_json, write_json
from augbench.miniature.corpus import attributes, style
from augbench.miniature.corpus import stage as corpus
from augbench.miniature.corpus.captions import CAPTION_KINDS, caption_for, class_name_variants
from augbench.miniature.corpus.distractors import KINDS, distractor
from augbench.miniature.corpus.style import clean_images, web_style
from augbench.miniature.pretrain import told
from augbench.models.folders import fingerprint
from augbench.models.transformers_clip import TransformersClip
from augbench.prompts.templates import load_scenes
from augbench.retrieval import embed
from augbench.retrieval.embed import list_folder, list_miniature
from augbench.runtime.job import Job
from augbench.seeds import derive_seed

CLASSES = load_class_table("fashion_mnist")
FIRST_CAPTION = "red dress, worn once"  # as in version 0.1
CLIP = Path(__file__).resolve().parents[1] / "resources/mini/clip"


@pytest.fixture(scope="module")
def garments(garment_files: Path) -> tuple[np.ndarray, np.ndarray]:
    return fashion_mnist.load(garment_files, "train")


def test_level_none_leaves_images_as_the_target_shows_them(garments: tuple[np.ndarray, np.ndarray]) -> None:
    images = garments[0][:8]
    assert np.array_equal(web_style(images, np.arange(8), "none", 0), clean_images(images))


def test_levels_differ_in_how_far_they_shift(garments: tuple[np.ndarray, np.ndarray]) -> None:
    images = garments[0][:200]
    clean = clean_images(images).float()
    distance = {
        level: (web_style(images, np.arange(200), level, 0).float() - clean).abs().mean().item()
        for level in ("mild", "strong")
    }
    assert 10 < distance["mild"] < distance["strong"]


def test_an_images_look_depends_on_seed_and_index_only(garments: tuple[np.ndarray, np.ndarray]) -> None:
    images = garments[0][:20]
    together = web_style(images, np.arange(20), "mild", 0)
    alone = web_style(images[7:8], np.array([7]), "mild", 0)
    assert np.abs(together[7].numpy().astype(int) - alone[0].numpy().astype(int)).max() <= 1
    assert not np.array_equal(together, web_style(images, np.arange(20), "mild", 1))


@pytest.mark.parametrize("kind", CAPTION_KINDS)
def test_captions_name_the_class_unless_they_are_unnamed_ones(kind: str) -> None:
    rng = np.random.default_rng(0)
    info = CLASSES[9]
    names = [variant.lower().replace(" ", "") for variant in class_name_variants(info)]
    captions = [caption_for(info, kind, rng) for _ in range(50)]
    named = [any(name in caption.lower().replace(" ", "") for name in names) for caption in captions]
    assert all(named) if kind != "unnamed" else not any(named)
    assert len(set(captions)) > 5


def test_a_batch_is_styled_as_its_pieces_are(
    garments: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, indices = garments[0][:48], np.arange(48)
    whole = web_style(images, indices, "mild", 0)
    monkeypatch.setattr(style, "AT_ONCE", 16)
    assert np.array_equal(web_style(images, indices, "mild", 0), whole)


def test_kinds_of_captions_are_drawn_as_numpys_choice_draws_them() -> None:
    config = MiniatureCorpus(kind="miniature", wrong_captions=0.0)
    kinds, shares = zip(*config.captions.items(), strict=True)
    for index in range(200):
        rng = np.random.default_rng(derive_seed(3, "caption", index))
        rng.random()  # draws whether the caption is wrong
        expected = kinds[int(rng.choice(len(kinds), p=np.array(shares) / sum(shares)))]
        row = corpus.garment_row(index, 0, 4, CLASSES, config, 3)
        assert (row.caption_kind, row.caption) == (expected, caption_for(CLASSES[4], expected, rng))


def test_distractors_come_in_equal_numbers_and_repeat() -> None:
    made = [distractor(index, 0) for index in range(10)]
    assert Counter(kind for _, _, kind in made) == dict.fromkeys(KINDS, 2)
    assert all(image.shape == (3, 32, 32) and image.dtype == np.uint8 for image, _, _ in made)
    assert np.array_equal(made[3][0], distractor(3, 0)[0])


def test_the_corpus_holds_what_the_config_says(
    tmp_path: Path, garment_files: Path, garments: tuple[np.ndarray, np.ndarray]
) -> None:
    config = MiniatureCorpus(kind="miniature", images=2000, distractors=200, wrong_captions=0.1)
    corpus.build(garment_files, CLASSES, config, 0, tmp_path)
    images, table = corpus.load_images(tmp_path)
    truth = np.array(table.column("true_label").to_pylist())
    assert images.shape == (2200, 3, 32, 32) and (truth < 0).sum() == 200
    assert table.column("id").to_pylist() == list(range(2200))
    kinds = Counter(kind.split()[0] for kind in table.column("caption_kind").to_pylist())
    assert 0.07 < kinds["wrong"] / 2000 < 0.13
    assert abs(kinds["template"] / 2000 - 0.55 * 0.9) < 0.04
    assert sum(mark == "NSFW" for mark in table.column("NSFW").to_pylist()) == 40
    sources = {index for index in table.column("source_index").to_pylist() if index >= 0}
    _, target = fashion_mnist.split_corpus_and_target(garments[1], 2000, 0)
    assert len(sources) == 2000 and not sources & set(target.tolist())


def test_embeddings_and_similarities_are_those_of_each_image_and_its_own_caption(
    tmp_path: Path, garment_files: Path
) -> None:
    corpus.build(
        garment_files, CLASSES, MiniatureCorpus(kind="miniature", images=120, distractors=60), 0, tmp_path
    )
    (part,) = corpus.part_paths(tmp_path)
    write_json(tmp_path / "clip.json", fingerprint(CLIP))
    study = parse_study({**LEAST_STUDY, "execution": {"device": "cpu"}})
    job = Job(study, Store(tmp_path / ".store"), 1)
    embed.embed(job, list_miniature([part]), tmp_path / "clip.json", tmp_path / "embeddings")
    vectors, metadata = (
        tmp_path / f"embeddings/{name}"
        for name in ("img_emb/img_emb_00000.npy", "metadata/metadata_00000.parquet")
    )

    images, table = corpus.load_images(tmp_path)
    captions = table.column("caption").to_pylist()
    assert len(set(captions)) < len(captions)  # some repeat
    network = TransformersClip(CLIP, torch.device("cpu"))
    model, tokenizer = network.model, network.tokenizer
    processor = CLIPImageProcessorPil.from_pretrained(CLIP, local_files_only=True)
    rows = (0, 1, 77, 150, 179)
    with torch.inference_mode():
        for row in rows:
            pixels = processor(images[row], return_tensors="pt").pixel_values
            image = F.normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)[0]
            tokens = tokenizer([captions[row]], return_tensors="pt")
            text = F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)[0]
            assert np.load(vectors)[row] == pytest.approx(image.numpy(), abs=1e-3)
            assert pq.read_table(metadata).column("similarity")[row].as_py() == pytest.approx(
                float(image @ text), abs=1e-5
            )


def test_a_folder_of_images_is_embedded_with_their_paths_and_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "ROWS_PER_FILE", 2)
    colours = {"b/red.png": (255, 0, 0), "a/blue.jpg": (0, 0, 255), "green.webp": (0, 255, 0)}
    for name, colour in colours.items():
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 50), colour).save(tmp_path / "pictures" / name)
    (tmp_path / "pictures/notes.txt").write_text("no image")
    write_json(tmp_path / "clip.json", fingerprint(CLIP))
    study = parse_study({**LEAST_STUDY, "execution": {"device": "cpu"}})
    job = Job(study, Store(tmp_path / ".store"), 1)
    embed.embed(job, list_folder(tmp_path / "pictures"), tmp_path / "clip.json", tmp_path / "out")
    rows = [
        row
        for path in sorted((tmp_path / "out/metadata").glob("*.parquet"))
        for row in pq.read_table(path).to_pylist()
    ]
    assert [(row["id"], row["width"], row["height"]) for row in rows] == [
        (name, 40, 50) for name in sorted(colours)
    ]
    vectors = np.concatenate([np.load(path) for path in sorted((tmp_path / "out/img_emb").glob("*.npy"))])
    tower = TransformersClip(CLIP, torch.device("cpu")).image_tower()
    for row, name in enumerate(sorted(colours)):
        with Image.open(tmp_path / "pictures" / name) as image:
            assert vectors[row] == pytest.approx(
                F.normalize(tower([image.convert("RGB")]), dim=-1)[0].numpy(), abs=1e-3
            )
    made = job.store.tally.made
    embed.embed(job, list_folder(tmp_path / "pictures"), tmp_path / "clip.json", tmp_path / "again")
    assert job.store.tally.made == made, "what is embedded is taken from the store"
    monkeypatch.setattr("augbench.models.clip.load_clip", None)  # nobody needs a model
    two = study.model_copy(update={"execution": Execution(embed_jobs=2)})
    listing, clip = list_folder(tmp_path / "pictures"), tmp_path / "clip.json"
    for block, images in enumerate((2, 1)):
        embed.embed_block(Job(two, job.store, 1), listing, clip, block, tmp_path / "block.json")
        assert read_json(tmp_path / "block.json") == {"parts": 1, "images": images}
    with pytest.raises(UserError, match=r"corpus\.root: no image in"):
        embed.embed(job, list_folder(tmp_path / "out"), tmp_path / "clip.json", tmp_path / "none")


# --- attributes -----------------------------------------------------------------------------------

WITH_ATTRIBUTES = MiniatureCorpus(
    kind="miniature", images=2000, distractors=20, attributes=0.6, stated_attributes=0.8
)


@pytest.mark.parametrize(
    ("template", "look"),
    [
        ("a black and white photo of the {}.", "black and white"),
        ("a low resolution photo of a {}.", "pixelated"),
        ("art of the {}.", "painting"),
        ("a doodle of a {}.", "drawing"),
        ("the toy {}.", "plastic"),
        ("multiple different {}, {hypernyms}", "many"),
        ("itap of a {}.", None),
        ("a photo of the cool {}.", None),
    ],
)
def test_templates_state_looks(template: str, look: str | None) -> None:
    assert attributes.look_of(template) == look


def test_scenes_belong_to_one_kind_each() -> None:
    kinds = {scene: attributes.kind_of_scene(scene) for scene in load_scenes()}
    examples = {"ski slope": "snow", "canyon": "desert", "bar": "night", "kitchen": "inside", "pond": "water"}
    assert {scene: kinds[scene] for scene in examples} == examples
    assert set(kinds.values()) == {kind.name for kind in attributes.SCENES}
    assert sum(len(attributes.scenes_of(kind.name)) for kind in attributes.SCENES) == len(kinds)


def test_attributes_are_shown_and_stated_at_the_rates_of_the_config(
    tmp_path: Path, garment_files: Path
) -> None:
    corpus.build(garment_files, CLASSES, WITH_ATTRIBUTES, 0, tmp_path)
    images, table = corpus.load_images(tmp_path)
    rows = [row | {"image": images[row["id"]]} for row in table.to_pylist() if row["true_label"] >= 0]
    shown = [row for row in rows if row["attribute"]]
    expected = 0.6 * 0.9  # a tenth of the attributes is held out for the class
    assert abs(len(shown) / len(rows) - expected) < 0.04
    assert abs(sum(row["attribute_stated"] for row in shown) / len(shown) - 0.8) < 0.04
    assert not any(row["attribute_stated"] for row in rows if not row["attribute"])
    names = list(attributes.ATTRIBUTES)
    assert all(row["true_label"] != 7 * names.index(row["attribute"]) % 10 for row in shown)
    assert {row["attribute"] for row in shown} == set(names)
    # captions state what is shown, and nothing else
    words = {word: look.name for look in attributes.LOOKS for word in look.words}
    for row in rows:
        text = f" {row['caption'].lower()} ".replace(",", " ").replace(".", " ")
        named = {words[word] for word in words if f" {word} " in text}
        assert named <= ({row["attribute"]} if row["attribute_stated"] else set()), row["caption"]
        if row["attribute_stated"] and attributes.ATTRIBUTES[row["attribute"]].kind == "scene":
            assert row["caption"].rpartition(" inside ")[2] in attributes.scenes_of(row["attribute"])
    dark, others = (
        np.mean([row["image"].mean() for row in rows if (row["attribute"] == "dark") == wanted])
        for wanted in (True, False)
    )
    assert dark < 0.5 * others


def test_an_attribute_changes_the_image_and_nothing_beside_it(
    garments: tuple[np.ndarray, np.ndarray],
) -> None:
    images, indices = garments[0][:4], np.arange(4)
    plain = web_style(images, indices, "mild", 0)
    for name in attributes.ATTRIBUTES:
        styled = web_style(images, indices, "mild", 0, [None, name, None, name])
        assert torch.equal(styled[[0, 2]], plain[[0, 2]]), name
        assert (styled[[1, 3]].float() - plain[[1, 3]].float()).abs().mean() > 2, name
        alone = web_style(images[3:], indices[3:], "mild", 0, [name])
        assert (alone[0].int() - styled[3].int()).abs().max() <= 1, name


def test_without_attributes_a_corpus_is_as_before(tmp_path: Path, garment_files: Path) -> None:
    corpus.build(
        garment_files, CLASSES, MiniatureCorpus(kind="miniature", images=500, distractors=0), 0, tmp_path
    )
    _, table = corpus.load_images(tmp_path)
    assert "attribute" not in table.column_names
    assert table.column("caption")[0].as_py() == FIRST_CAPTION


# --- whether models know attributes ---------------------------------------------------------------


def test_clip_is_asked_for_the_attribute_of_each_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CLIP whose texts and images are unit vectors of their attribute tells all that it was shown."""
    names = list(attributes.ATTRIBUTES)
    asked = [name for _ in CLASSES for name in names]
    labels = np.repeat(np.arange(10), len(names))
    seen = torch.eye(len(names))[[names.index(name) for name in asked]]
    seen[labels == 3] = torch.eye(len(names))[0]  # of class 3 it sees the first attribute in every image
    stating = {text: name for info in CLASSES for name in names for text in told.prompts_stating(info, name)}
    monkeypatch.setattr(told, "embed_images", lambda _, images: seen[images[:, 0, 0, 0].long()])
    monkeypatch.setattr(
        told,
        "embed_texts",
        lambda _, __, texts: torch.eye(len(names))[[names.index(stating[text]) for text in texts]],
    )
    images = torch.arange(len(asked))[:, None, None, None].expand(-1, 3, 32, 32)
    measured = told.told(None, None, CLASSES, images, labels, asked)
    assert measured["of"][names[0]] == 1.0 and measured["of"][names[1]] == 0.9
    held_out_3 = [name for number, name in enumerate(names) if 7 * number % 10 == 3]
    wrong_held_out = len([name for name in held_out_3 if name != names[0]])
    assert measured["held_out"] == pytest.approx(1 - wrong_held_out / len(names))
    assert measured["told"] == pytest.approx(1 - (len(names) - 1 - wrong_held_out) / (9 * len(names)))
