"""Image files as people have them: which are found, how they are decoded, and what a check says of them."""

from __future__ import annotations

import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import LEAST_STUDY, noise, numbered, write_images
from PIL import Image

from augbench import cli
from augbench.artifacts.store import Store
from augbench.classifier.images import as_tensor
from augbench.commands.check import images as check_images
from augbench.commands.check.study import check_study
from augbench.config.data import ImageFolder
from augbench.config.study import merge, parse_study
from augbench.data import decode as decoding
from augbench.data import walk as walking
from augbench.data.decode import Decoded, decode, middle, open_rgb, square, try_decode
from augbench.data.image_folder import ImageFolderSource
from augbench.data.walk import path_problem, walk
from augbench.errors import UserError, naming_files
from augbench.files import write_json
from augbench.leakage.pictures import Picture
from augbench.models.folders import fingerprint
from augbench.retrieval import embed
from augbench.retrieval.embed import list_folder
from augbench.runtime.job import Job
from augbench.runtime.launcher import cache_folder

CLIP = Path(__file__).resolve().parents[1] / "resources/mini/clip"


# --- which files are found ------------------------------------------------------------------------


@pytest.fixture
def messy(tmp_path: Path) -> Path:
    """A folder with two images, and one of everything else that is found in folders of images."""
    folder = write_images(tmp_path / "messy", ["a.png", "b.JPEG"])
    for name in ("._a.png", "Thumbs.db", "notes.txt", "old.avif", "c.png?w=300", "png"):
        (folder / name).write_bytes(b"x")
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir"):
        write_images(folder / name, ["a.png"])
    (folder / "gone.png").symlink_to("nowhere/gone.png")
    (folder / "circle.png").symlink_to("circle.png")
    os.mkfifo(folder / "pipe.png")
    (folder / os.fsdecode(b"caf\xe9.png")).write_bytes(b"x")
    return folder


LEFT_OUT = {
    ".ipynb_checkpoints": walking.HIDDEN,
    "._a.png": walking.HIDDEN,
    "@eaDir": walking.HIDDEN,
    "Thumbs.db": walking.HIDDEN,
    "__MACOSX": walking.HIDDEN,
    "c.png?w=300": walking.SUFFIX,
    "caf\udce9.png": walking.NOT_UTF8,
    "circle.png": "Too many levels of symbolic links",
    "gone.png": walking.DANGLING,
    "notes.txt": walking.SUFFIX,
    "old.avif": walking.SUFFIX,
    "pipe.png": walking.SPECIAL,
    "png": walking.SUFFIX,
}


def test_what_is_left_out_of_a_folder_is_listed_with_its_reason(messy: Path) -> None:
    found = walk(messy)
    assert found.images == ["a.png", "b.JPEG"]
    assert {one.name: one.reason for one in found.left_out} == LEFT_OUT


def test_a_data_set_leaves_out_what_a_corpus_leaves_out(messy: Path, tmp_path: Path) -> None:
    write_images(messy / "nested", ["a.png"])
    root = tmp_path / "set"
    root.mkdir()
    (root / "cat").symlink_to(messy)
    write_images(root / "dog", ["a.png"])
    write_images(root, ["flat.png"])
    (root / "readme.md").write_text("")
    source = ImageFolderSource(ImageFolder(kind="image_folder", root=str(root)))
    cats, _ = source.scan()
    assert list(cats.pool.image_ids) == ["cat/a.png", "cat/b.JPEG"]
    assert {one.name: one.reason for one in source.left_out} == {
        **{f"cat/{name}": reason for name, reason in LEFT_OUT.items()},
        "cat/nested": walking.NESTED,
        "flat.png": walking.BESIDE,
        "readme.md": walking.SUFFIX,
    }


def test_reasons_are_counted_and_name_files_on_one_line(messy: Path) -> None:
    (messy / "two\nlines.txt").write_text("")
    lines = walking.reasons(walk(messy).left_out)
    assert "1 left out, a name that is not UTF-8: caf\\udce9.png" in lines
    assert f"5 left out, {walking.SUFFIX}: c.png?w=300, notes.txt, old.avif, png, two\\nlines.txt" in lines


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("a/b/c.png", None),
        ("a b/é.JPG", None),
        ("../a.png", walking.OUTSIDE),
        ("a/../../a.png", walking.OUTSIDE),
        ("/etc/a.png", walking.OUTSIDE),
        ("", walking.OUTSIDE),
        ("a/.git/b.png", walking.HIDDEN),
        ("__MACOSX/b.png", walking.HIDDEN),
        ("a/passwd", walking.SUFFIX),
    ],
)
def test_a_path_is_refused_if_no_walk_would_list_it(name: str, problem: str | None) -> None:
    assert path_problem(name) == problem


def test_linked_folders_are_searched_once_each(tmp_path: Path) -> None:
    elsewhere = write_images(tmp_path / "disk/more", ["x.png"])
    root = write_images(tmp_path / "corpus", ["a.png"])
    write_images(root / "own", ["b.png"])
    (root / "alias").symlink_to("own")
    (root / "linked").symlink_to(elsewhere)
    (root / "linked_again").symlink_to(elsewhere)
    (root / "own/round").symlink_to("..")
    (root / "upwards").symlink_to(tmp_path)
    (root / "whole_disk").symlink_to("/")
    found = walk(root)
    assert found.images == ["a.png", "linked/x.png", "own/b.png"]
    assert {one.name: one.reason for one in found.left_out} == {
        "alias": walking.TWICE,
        "linked_again": walking.TWICE,
        "own/round": walking.TWICE,
        "upwards": walking.AROUND,
        "whole_disk": walking.AROUND,
    }


def locked(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let the system refuse to list a folder; the tests may run as root, who may list all."""
    scandir = os.scandir

    def refuse(path: Any) -> Any:
        if Path(path) == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)


def test_an_unreadable_folder_of_a_corpus_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "open", ["a.png"])
    write_images(tmp_path / "locked", ["a.png"])
    locked(monkeypatch, tmp_path / "locked")
    found = walk(tmp_path)
    assert found.images == ["open/a.png"]
    assert [(one.name, one.reason) for one in found.left_out] == [("locked", "Permission denied")]


# --- how they are decoded -------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_grey_of_any_depth_in_16_bits_spans_black_to_white(tmp_path: Path, bits: int, suffix: str) -> None:
    most = 2**bits - 1
    path = tmp_path / f"deep.{suffix}"
    Image.fromarray(np.array([[0, most // 2, most]], np.uint16)).save(path)
    assert np.asarray(open_rgb(path))[0, :, 0].tolist() == [0, 127, 255]


@pytest.mark.parametrize("values", [[0, 4_000_000], [-1, 5]])
def test_pixels_of_32_bits_are_refused(tmp_path: Path, values: list[int]) -> None:
    Image.fromarray(np.array([values], np.int32)).save(tmp_path / "a.tif")
    with pytest.raises(UserError, match=r"a\.tif: .*32-bit pixels, whose range is unknown; 8 or 16 bits"):
        open_rgb(tmp_path / "a.tif")


def write_rgb16(path: Path, value: int) -> None:
    """Write a PNG of 8 x 8 pixels with 16 bits per colour, which Pillow can't."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    rows = b"".join(b"\0" + struct.pack(">24H", *[value] * 24) for _ in range(8))
    header = struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_colours_of_less_than_16_bits_in_16_are_refused(tmp_path: Path) -> None:
    for value in (0, 40_000):
        write_rgb16(tmp_path / "fine.png", value)
        assert open_rgb(tmp_path / "fine.png").getpixel((0, 0)) == (value >> 8,) * 3
    write_rgb16(tmp_path / "dark.png", 4095)
    with pytest.raises(UserError, match=r"dark\.png: .*stored in 16; save it with 8 bits per channel"):
        open_rgb(tmp_path / "dark.png")


@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.bmp", "a.gif", "a.tif", "a.webp", "a.ppm"])
def test_a_truncated_file_of_any_format_is_found(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    noise(0, 64).save(path)
    assert isinstance(try_decode(path, most_pixels=0), Decoded)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert str(try_decode(path, most_pixels=0)).startswith(f"{path}: not readable as an image (")


def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = noise(0, 8).resize((640, 320), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees
    image.save(tmp_path / "large.jpg", quality=95, exif=exif)
    whole = open_rgb(tmp_path / "large.jpg")
    monkeypatch.setattr(decoding, "MOST_PIXELS", 160 * 80)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses twice as many
    found = decode(tmp_path / "large.jpg", decoding.MOST_PIXELS)
    assert found.image.size == (80, 160) and (found.width, found.height) == (320, 640)
    close = np.abs(np.asarray(found.image, float) - np.asarray(whole.reduce(4), float))
    assert close.mean() < 3
    assert isinstance(try_decode(tmp_path / "large.jpg", most_pixels=0), Decoded)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "progressive.jpg"])
@pytest.mark.parametrize("pillow", [1000, None])
def test_a_large_image_that_can_only_be_decoded_whole_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, pillow: int | None
) -> None:
    path = tmp_path / name
    noise(0, 100).save(path, **({"progressive": True} if "jpg" in name else {}))
    monkeypatch.setattr(decoding, "MOST_PIXELS", 50 * 50)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", pillow)
    with pytest.raises(UserError, match=r"2,500") as caught:
        open_rgb(path)
    assert "\n" not in str(caught.value)


def test_every_jpeg_fits_at_an_eighth() -> None:
    assert (65535 // 8 + 1) ** 2 <= decoding.MOST_PIXELS


@pytest.mark.parametrize("size", [(1, 5000), (20000, 2), (3, 1000), (1001, 8)])
def test_the_middle_of_a_long_image_gives_the_square_of_the_whole(size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)
    image = Image.fromarray(values)
    cut = middle(image)
    assert max(cut.size) <= decoding.LONGEST * min(cut.size) + 1
    from torchvision.transforms import v2

    whole = v2.functional.center_crop(v2.functional.resize(image, [8], v2.InterpolationMode.BICUBIC), [8, 8])
    assert np.abs(np.asarray(square(image, 8), int) - np.asarray(whole, int)).max() <= 1


def test_an_image_of_ordinary_shape_is_not_cut() -> None:
    image = Image.new("RGB", (3200, 100))
    assert middle(image) is image


def test_no_stage_makes_a_long_image_longer_than_its_output_needs() -> None:
    image = Image.new("RGB", (20000, 2))
    assert as_tensor(image, 256).shape == (3, 2, 64)
    assert Picture(image).search_size == (48 * 32, 48)


# --- what a check says ----------------------------------------------------------------------------


def check(decode_images: bool = True, **changes: Any) -> list[str]:
    """Check a study of these folders; return its lines."""
    study = {
        "study": "pets",
        "dataset": {"kind": "image_folder", "root": "pets", "train_fraction": 0.25},
        "corpus": {} if "kind" in changes.get("corpus", {}) else {"kind": "image_folder", "root": "corpus"},
        "diffusion": {"model": "none", "resolution": 32},
        "clip": {"model": "none"},
        "methods": {
            "none": {"mechanism": "real"},
            "retrieval": {"mechanism": "retrieve", "images_per_class": 8},
        },
        "augmentation": {"images_per_class": 16},
        "classifier": {"batch_size": 4},
    }
    parsed = parse_study(merge(study, changes))
    return check_study(parsed, models=False, verify_images=decode_images)


def problems(**changes: Any) -> list[str]:
    with pytest.raises(UserError) as caught:
        check(**changes)
    return str(caught.value).splitlines()


def test_good_files_give_one_line_each_for_data_set_and_corpus(pets: Path) -> None:
    assert check()[1:] == ["corpus: 12 images in corpus"]


def test_what_is_left_out_is_named(pets: Path) -> None:
    (pets / "pets/cat/new.avif").write_bytes(b"x")
    (pets / "corpus/x/._000.png").write_bytes(b"x")
    (pets / "corpus/x/gone.png").symlink_to("nowhere")
    assert check(decode_images=False)[1:] == [
        "dataset: 1 left out, no suffix of an image: cat/new.avif",
        "corpus: 12 images in corpus",
        "corpus: 1 left out, a link to nothing: x/gone.png",
        "corpus: 1 left out, hidden, or left by another program: x/._000.png",
    ]


def test_a_class_folder_that_can_not_be_followed_is_a_problem(pets: Path) -> None:
    (pets / "pets/owl").symlink_to("/nowhere/owl")
    assert problems() == [
        "dataset.root: 'pets': 1 left out, a link to nothing: owl; each may be a class: repair or remove it"
    ]


def test_an_unreadable_class_folder_is_a_problem(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked(monkeypatch, Path("pets/cat"))
    assert problems() == ["pets/cat: Permission denied; a folder that you may read is needed"]


def test_a_class_without_images_says_what_is_there_instead(pets: Path) -> None:
    for path in (pets / "pets/cat").iterdir():
        path.rename(f"{path}?w=300")
    (line,) = problems()
    assert line.startswith("pets/cat: 0 images; 12 left out, no suffix of an image: 000.png?w=300, ")


def test_a_file_in_order_is_read_once(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check()
    read: list[str] = []

    def reading(path: Path, most_pixels: int, content: bytes | None) -> Decoded | UserError:
        read.append(path.as_posix())
        return try_decode(path, most_pixels, content)

    monkeypatch.setattr(check_images, "try_decode", reading)
    check()
    assert read == []
    changed = pets / "pets/cat/003.png"
    changed.write_bytes(changed.read_bytes()[:50])
    for _ in range(2):  # damage is reported until it is repaired
        (line,) = problems()
        assert line.startswith("pets/cat/003.png: not readable as an image")
    assert read == ["pets/cat/003.png"] * 2


def test_a_check_works_where_nothing_can_be_remembered(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_images, "KNOWN", Path("pets/cat/000.png/known.sqlite"))
    assert len(check()) == 2


def test_a_bad_file_of_the_corpus_is_a_line_and_no_problem(pets: Path) -> None:
    (pets / "corpus/x/page.jpg").write_text("<html>404</html>")
    assert check()[1:] == [
        "corpus: 12 images in corpus",
        "corpus: 1 left out, undecodable: x/page.jpg",
    ]


def empty(corpus: Path) -> None:
    shutil.rmtree(corpus)
    corpus.mkdir()


def all_broken(corpus: Path) -> None:
    for path in (corpus / "x").iterdir():
        path.write_bytes(b"")


def too_few(corpus: Path) -> None:
    for path in sorted((corpus / "x").iterdir())[6:]:
        path.unlink()
    (corpus / "x/broken.png").write_bytes(b"")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (shutil.rmtree, "corpus.root: 'corpus', no such folder; allowed: a folder with images (bmp "),
        (empty, "corpus.root: no image in 'corpus'; allowed: a folder with images (bmp "),
        (all_broken, "corpus.root: none of the 12 images in 'corpus' can be decoded (not readable as"),
        (
            too_few,
            "methods.retrieval.images_per_class: 8; allowed: at most 6, the images of the corpus; "
            "1 left out, undecodable: x/broken.png",
        ),
    ],
)
def test_a_corpus_that_can_not_serve_is_a_problem(
    pets: Path, spoil: Callable[[Path], None], expected: str
) -> None:
    spoil(pets / "corpus")
    (line,) = problems()
    assert line.startswith(expected)


def test_an_unreadable_corpus_is_a_problem(pets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locked(monkeypatch, Path("corpus"))
    (line,) = problems()
    assert line.startswith("corpus.root: 'corpus', Permission denied; allowed: a folder with images")


def test_a_folder_without_embeddings_is_a_problem(pets: Path) -> None:
    (pets / "vectors").mkdir()
    (line,) = problems(corpus={"kind": "embeddings", "folder": "vectors", "clip": "none"})
    assert line.startswith("vectors: no embeddings; allowed: img_emb/*.npy")


# --- images in two places -------------------------------------------------------------------------


def corpus_equal(folder: Path) -> str:
    return "pets"


def corpus_inside(folder: Path) -> str:
    return "pets/cat"


def corpus_around(folder: Path) -> str:
    return "."


def corpus_linked(folder: Path) -> str:
    (folder / "corpus/more").symlink_to(folder / "pets/dog")
    return "corpus"


def corpus_of_links(folder: Path) -> str:
    for path in (folder / "pets/dog").iterdir():
        (folder / "corpus" / path.name).symlink_to(path)
    return "corpus"


@pytest.mark.parametrize(
    "place", [corpus_equal, corpus_inside, corpus_around, corpus_linked, corpus_of_links]
)
def test_a_corpus_with_files_of_the_data_set_is_a_problem(pets: Path, place: Callable[[Path], str]) -> None:
    root = place(pets)
    (line,) = problems(decode_images=False, corpus={"root": root})
    assert line.startswith(f"corpus.root: '{root}': ")
    assert " images are files of the training images: " in line
    assert line.endswith("; allowed: none; retrieval would find them")


def test_a_data_set_of_links_into_the_corpus_is_a_problem(pets: Path) -> None:
    for path in (pets / "pets/cat").iterdir():
        path.rename(pets / "corpus" / path.name)
        path.symlink_to(pets / "corpus" / path.name)
    (line,) = problems(decode_images=False)
    assert "12 of 24 images are files of the training images: 000.png = cat/000.png" in line


def test_a_folder_beside_training_and_test_images_may_be_the_corpus(pets: Path) -> None:
    (pets / "pets").rename(pets / "train")
    (pets / "pets").mkdir()
    (pets / "train").rename(pets / "pets/train")
    write_images(pets / "pets/unlabelled", numbered(12), 2000)
    assert len(check(dataset={"train_folder": "train"}, corpus={"root": "pets/unlabelled"})) == 2


def test_a_corpus_of_copies_is_a_warning(pets: Path) -> None:
    shutil.copytree(pets / "pets/cat", pets / "corpus/renamed")
    (warning,) = (line for line in check() if line.startswith("warning: "))
    assert warning.startswith(
        "warning: corpus.root: 'corpus': 12 of 24 images are copies of training images: "
    )


def with_test_folder(folder: Path, copied: int, rename: bool) -> dict[str, Any]:
    """Give the data set a test folder, in which some images of each class are training images."""
    for number, name in enumerate(("cat", "dog")):
        train = (folder / "pets" / name).rename(folder / name)
        write_images(
            folder / "pets/test" / name, [f"t{i}.png" for i in range(12 - copied)], 5000 + 100 * number
        )
        for path in sorted(train.iterdir())[:copied]:
            shutil.copy(path, folder / "pets/test" / name / (f"copy_{path.name}" if rename else path.name))
        (folder / "pets/train").mkdir(exist_ok=True)
        train.rename(folder / "pets/train" / name)
    return {"dataset": {"train_folder": "train", "test_folder": "test"}}


@pytest.mark.parametrize(("decode_images", "rename"), [(False, False), (True, False), (True, True)])
def test_a_test_folder_that_copies_training_images_is_a_problem(
    pets: Path, decode_images: bool, rename: bool
) -> None:
    changes = with_test_folder(pets, 6, rename)
    (line,) = problems(decode_images=decode_images, **changes)
    assert line.startswith(f"dataset.test_folder: 12 of {24 if decode_images else 12} test images are copies")
    assert line.endswith(" and 9 more; allowed: few; each split needs its own")


def test_a_test_folder_with_few_copies_is_none(pets: Path) -> None:
    assert len(check(**with_test_folder(pets, 2, rename=True))) == 2


def test_class_folders_of_two_splits_may_not_be_one_folder(pets: Path) -> None:
    changes = with_test_folder(pets, 0, rename=False)
    shutil.rmtree(pets / "pets/test/cat")
    (pets / "pets/test/cat").symlink_to("../train/cat")
    (line,) = problems(decode_images=False, **changes)
    assert line.startswith("dataset.test_folder: 12 of 24 test images are files of the training images")


# --- a corpus is embedded -------------------------------------------------------------------------


def embedded(tmp_path: Path, corpus: Path) -> list[dict[str, Any]]:
    """Embed a folder; return the rows of ``left_out.parquet``."""
    write_json(tmp_path / "clip.json", fingerprint(CLIP))
    study = {**LEAST_STUDY, "execution": {"device": "cpu"}}
    job = Job(parse_study(study), Store(tmp_path / ".store"), 1)
    embed.embed(job, list_folder(corpus), tmp_path / "clip.json", tmp_path / "out")
    rows: list[dict[str, Any]] = pq.read_table(tmp_path / "out/left_out.parquet").to_pylist()
    return rows


def test_a_bad_file_is_a_row_and_not_the_end_of_embedding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "ROWS_PER_FILE", 2)
    corpus = write_images(tmp_path / "corpus", ["a.png", "b.png", "e.png", "f.png"])
    for name in ("b.png", "c.jpg", "d.png"):  # c and d are a part of their own
        (corpus / name).write_bytes(b"<html>")
    (corpus / "._a.png").write_bytes(b"x")
    (corpus / "linked.png").symlink_to("a.png")
    rows = embedded(tmp_path, corpus)
    assert rows == [
        {"id": "._a.png", "fate": walking.HIDDEN},
        {"id": "b.png", "fate": "undecodable"},
        {"id": "c.jpg", "fate": "undecodable"},
        {"id": "d.png", "fate": "undecodable"},
    ]
    ids, vectors = [], 0
    for path in sorted((tmp_path / "out/metadata").iterdir()):
        ids += pq.read_table(path).column("id").to_pylist()
        vectors += len(
            np.load(
                tmp_path
                / "out/img_emb"
                / path.name.replace("metadata", "img_emb").replace(".parquet", ".npy")
            )
        )
    assert ids == ["a.png", "e.png", "f.png", "linked.png"] and vectors == 4
    assert embedded(tmp_path, corpus) == rows, "the same from the store"


def test_a_corpus_of_which_nothing_can_be_decoded_is_one_error(tmp_path: Path) -> None:
    corpus = write_images(tmp_path / "corpus", [])
    (corpus / "a.png").write_bytes(b"<html>")
    with pytest.raises(
        UserError, match=r"^corpus\.root: none of the 1 images in '.*' can be decoded; allowed:"
    ):
        embedded(tmp_path, corpus)


# --- the operating system refuses -----------------------------------------------------------------


def test_a_refused_file_ends_a_command_with_one_line(
    pets: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(paths: Any) -> None:
        raise PermissionError(13, "Permission denied", "secret/study.yaml")

    monkeypatch.setattr(cli, "load_study", refuse)
    assert cli.main(["check"]) == 1
    assert capsys.readouterr().err == (
        "augbench: secret/study.yaml: Permission denied; a file or folder that exists and that you may use is"
        " needed\n"
    )


def test_an_error_that_names_no_file_stays_a_defect() -> None:
    with pytest.raises(BrokenPipeError), naming_files():
        raise BrokenPipeError(32, "Broken pipe")


def test_snakemake_gets_a_cache_folder_if_home_can_not_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == {}
    monkeypatch.setenv("HOME", "/proc/no_home")
    assert cache_folder() == {"XDG_CACHE_HOME": str(tmp_path / "results/.cache")}


def test_a_large_jpeg_is_decoded_from_bytes_as_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.jpg"
    Image.new("RGB", (64, 32), "red").save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    found = [decode(path), decode("train.parquet:0", content=path.read_bytes())]
    assert [(one.width, one.height) for one in found] == [(64, 32)] * 2
