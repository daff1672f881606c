"""Data sources: three layouts of a user's data, configured in YAML, and all common kinds of images."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter

from augbench.config.data import Dataset
from augbench.config.problems import ConfigError
from augbench.data.classes import class_id_of
from augbench.data.decode import in_order, open_rgb
from augbench.data.source import ImageSource
from augbench.data.sources import open_source
from augbench.errors import UserError

RED, BLUE, WHITE = (254, 0, 0), (0, 0, 254), (255, 255, 255)


def write_images(folder: Path, names: Iterable[str], colour: tuple[int, int, int] = RED) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        Image.new("RGB", (12, 8), colour).save(folder / name)


def source(text: str) -> ImageSource:
    """Open the source of a ``dataset`` section, written as a user writes it."""
    return open_source(TypeAdapter(Dataset).validate_python(yaml.safe_load(text)), seed=0)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ilsvrc2012")
    for wnid in ("n01440764", "n01443537"):
        write_images(root / "train" / wnid, [f"{wnid}_{i}.JPEG" for i in (10, 9, 11)])
        write_images(root / "val" / wnid, [f"ILSVRC2012_val_0000000{i}.JPEG" for i in range(2)], BLUE)
    (root / "train" / "n01440764" / "README.txt").write_text("no image")
    (root / "train" / ".cache").mkdir()
    write_images(root / "train" / "n01440764" / "nested", ["not_followed.png"])
    return root


@pytest.fixture(scope="module")
def caltech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("caltech") / "256_ObjectCategories"
    for folder in ("001.ak47", "002.american-flag", "251.airplanes-101", "257.clutter"):
        write_images(root / folder, [f"{folder[:3]}_{i:04d}.jpg" for i in (1, 2)])
    (root / "001.ak47" / "RENAME2").write_text("as in the published archive")
    write_images(root / "001.ak47" / "greg", ["also_there.jpg"])
    return root


# --- layouts --------------------------------------------------------------------------------------


def test_imagenet_layout_has_training_and_test_images_by_wnid(imagenet: Path) -> None:
    data = source(f"{{kind: image_folder, root: '{imagenet}', train_folder: train, test_folder: val}}")
    assert [info.class_id for info in data.classes()] == ["n01440764", "n01443537"]
    first, _ = data.scan()
    assert first.class_id == "n01440764"
    assert first.pool.image_ids == [f"train/n01440764/n01440764_{i}.JPEG" for i in (10, 11, 9)]
    assert first.validation is None
    assert first.test is not None
    assert first.test.sources == [f"val/n01440764/ILSVRC2012_val_0000000{i}.JPEG" for i in range(2)]


def test_a_class_table_sets_order_and_names(imagenet: Path, tmp_path: Path) -> None:
    table = tmp_path / "fishes.yaml"
    table.write_text(
        "- {class_id: n01443537, lemmas: [goldfish, Carassius auratus]}\n"
        "- {class_id: n01440764, lemmas: [tench]}\n"
    )
    data = source(f"{{kind: image_folder, root: '{imagenet}', train_folder: train, classes: '{table}'}}")
    assert [info.name for info in data.classes()] == ["goldfish, Carassius auratus", "tench"]
    assert [found.class_id for found in data.scan()] == ["n01443537", "n01440764"]


def test_a_plain_folder_has_one_class_per_folder_with_readable_names(tmp_path: Path) -> None:
    write_images(
        tmp_path / "tabby_cat", ["b.png", "a.WEBP", "c.bmp", "d.gif", "e.tiff", "f.ppm", ".hidden.png"]
    )
    write_images(tmp_path / "dog", ["a.jpg"])
    write_images(tmp_path / "test" / "dog", ["t.jpg"])
    write_images(tmp_path / "test" / "tabby_cat", ["t.jpg"])
    data = source(f"{{kind: image_folder, root: '{tmp_path}', test_folder: test}}")
    assert [(info.class_id, info.name) for info in data.classes()] == [
        ("dog", "dog"),
        ("tabby_cat", "tabby cat"),
    ]
    _, cats = data.scan()
    assert cats.pool.image_ids == [
        f"tabby_cat/{name}" for name in ("a.WEBP", "b.png", "c.bmp", "d.gif", "e.tiff", "f.ppm")
    ]
    assert cats.test is not None
    assert cats.test.image_ids == ["test/tabby_cat/t.jpg"]


def test_class_folders_may_have_any_name(tmp_path: Path) -> None:
    names = ["Entr\u00e9e d'\u00e9t\u00e9", "hot dog", "\u732b"]
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (4, 4)).save(tmp_path / name / "a b.png")
    data = source(f"{{kind: image_folder, root: '{tmp_path}'}}")
    assert [info.name for info in data.classes()] == names
    assert [found.class_id for found in data.scan()] == [class_id_of(name) for name in names]
    assert [found.pool.image_ids for found in data.scan()] == [[f"{name}/a b.png"] for name in names]
    assert len(list(data.load([found.pool.sources[0] for found in data.scan()]))) == 3


def test_a_table_and_folders_meet_across_the_forms_of_an_accent(tmp_path: Path) -> None:
    (tmp_path / "t.yaml").write_text("- {class_id: caf\u00e9}\n- {class_id: tea}\n", encoding="utf-8")
    for name in ("cafe\u0301", "tea"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "data" / name / "0.png")
    data = source(f"{{kind: image_folder, root: '{tmp_path}/data', classes: '{tmp_path}/t.yaml'}}")
    assert [found.pool.image_ids for found in data.scan()] == [["cafe\u0301/0.png"], ["tea/0.png"]]


def test_caltech256_leaves_clutter_out_and_takes_names_from_folders(caltech: Path) -> None:
    data = source(f"{{kind: caltech256, root: '{caltech}'}}")
    assert [(info.class_id, info.name) for info in data.classes()] == [
        ("001.ak47", "ak47"),
        ("002.american-flag", "american flag"),
        ("251.airplanes-101", "airplanes"),
    ]
    first = data.scan()[0]
    assert first.pool.image_ids == ["001.ak47/001_0001.jpg", "001.ak47/001_0002.jpg"]
    assert (first.validation, first.test) == (None, None)


def test_images_come_in_the_order_asked_for(imagenet: Path) -> None:
    data = source(f"{{kind: image_folder, root: '{imagenet}', train_folder: train, test_folder: val}}")
    train, test = (getattr(data.scan()[0], part).sources for part in ("pool", "test"))
    colours = [image.getpixel((4, 4)) for image in data.load([test[0], train[0], test[1], train[1]])]
    assert colours == [BLUE, RED, BLUE, RED]


def test_classes_of_a_shipped_table_need_no_data_and_import_nothing_heavy() -> None:
    import subprocess

    code = (
        "import sys; from augbench.config.study import FashionMnist; "
        "from augbench.data.sources import open_source;"
        "print(len(open_source(FashionMnist(kind='fashion_mnist', downloads='/nowhere'), 0).classes()));"
        "print({'numpy', 'PIL', 'pyarrow', 'torch', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}
    )
    assert done.stdout.split("\n")[:2] == ["10", "set()"], done.stderr


# --- what does not fit ----------------------------------------------------------------------------


def test_missing_and_unknown_class_folders_are_named_together(imagenet: Path, tmp_path: Path) -> None:
    table = tmp_path / "classes.yaml"
    table.write_text("- {class_id: n01440764}\n- {class_id: n01484850}\n")
    data = source(
        f"{{kind: image_folder, root: '{imagenet}', train_folder: train, test_folder: val, "
        f"classes: '{table}'}}"
    )
    with pytest.raises(ConfigError) as caught:
        data.scan()
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0] for line in lines] == ["dataset.train_folder"] * 2 + [
        "dataset.test_folder"
    ] * 2
    assert "no folder for 1 of 2 classes: n01484850" in lines[0]
    assert "1 folders that are no class: n01443537" in lines[1]


def test_a_flat_test_folder_is_asked_to_be_sorted(imagenet: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "train" / "n01440764", ["a.png"])
    write_images(tmp_path / "train" / "n01443537", ["a.png"])
    write_images(tmp_path / "val", ["ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(ConfigError, match="sort the images into class folders"):
        source(f"{{kind: image_folder, root: '{tmp_path}', train_folder: train, test_folder: val}}").scan()


def test_training_and_test_images_may_not_be_the_same_folder(imagenet: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"dataset\.test_folder: 'train'; allowed: another folder than train_folder"
    ):
        source(f"{{kind: image_folder, root: '{imagenet}', train_folder: train, test_folder: train}}").scan()


# --- decoding -------------------------------------------------------------------------------------


def test_exif_orientation_is_respected(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 8), RED)
    image.paste(BLUE, (0, 0, 8, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown rotated by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    shown = open_rgb(tmp_path / "turned.png")
    assert shown.size == (8, 16)
    assert (shown.getpixel((4, 2)), shown.getpixel((4, 14))) == (BLUE, RED)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    half = Image.new("RGBA", (2, 1), (*RED, 255))
    half.putpixel((1, 0), (*RED, 0))
    half.save(tmp_path / "rgba.png")
    half.convert("LA").save(tmp_path / "la.png")
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "p.png", transparency=1)
    assert [open_rgb(tmp_path / "rgba.png").getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]
    assert open_rgb(tmp_path / "la.png").getpixel((1, 0)) == WHITE
    assert [open_rgb(tmp_path / "p.png").getpixel((x, 0)) for x in (0, 1)] == [RED, WHITE]


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(np.array([[0, 257 * 100, 65535]], dtype=np.uint16)).save(tmp_path / "deep.tif")
    for name in ("deep.png", "deep.tif"):
        image = open_rgb(tmp_path / name)
        assert [image.getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]  # type: ignore[index]


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        ("CMYK", "a.jpg"),
        ("CMYK", "a.tif"),
        ("P", "a.gif"),
        ("L", "a.jpg"),
        ("1", "a.png"),
        ("YCbCr", "a.jpg"),
    ],
)
def test_other_modes_become_rgb_of_the_same_colour(tmp_path: Path, mode: str, name: str) -> None:
    Image.new("RGB", (8, 8), WHITE).convert(mode).save(tmp_path / name)
    image = open_rgb(tmp_path / name)
    assert image.mode == "RGB"
    assert min(image.getpixel((3, 3))) >= 253  # type: ignore[arg-type]


def test_a_wrong_extension_does_not_matter(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "png.JPEG", "PNG")  # ImageNet has one such file
    assert open_rgb(tmp_path / "png.JPEG").getpixel((0, 0)) == RED


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
def test_a_broken_exif_block_does_not_matter(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), RED).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff broken")
    assert open_rgb(tmp_path / "a.jpg").size == (4, 4)


@pytest.mark.parametrize("defect", ["truncated jpeg", "truncated png", "text", "empty", "float tiff"])
def test_a_corrupt_image_is_one_clear_error_that_names_the_file(tmp_path: Path, defect: str) -> None:
    path = tmp_path / ("image.png" if "png" in defect else "image.jpg")
    Image.effect_noise((64, 64), 50).save(path)
    if "truncated" in defect:
        path.write_bytes(path.read_bytes()[:600])
    elif defect == "float tiff":
        Image.new("F", (4, 4)).save(path, "TIFF")
    else:
        path.write_bytes(b"" if defect == "empty" else b"<html>404</html>")
    with pytest.raises(UserError) as caught:
        open_rgb(path)
    assert str(caught.value).startswith(f"{path}: not readable as an image (")
    assert "\n" not in str(caught.value)


def test_decoding_ahead_keeps_order_and_reads_no_more_than_a_few_ahead() -> None:
    started: list[int] = []

    def square(i: int) -> int:
        started.append(i)
        return i * i

    results = in_order(square, iter(range(10_000)), threads=3)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    results.close()  # type: ignore[attr-defined]
    assert len(started) < 50
