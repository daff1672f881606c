"""The benchmarks of training, embedding and start-up run with the miniature and report their figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import SMALL_STUDY

PROJECT = Path(__file__).resolve().parents[1]
SHORT = ("--size", "mini", "--threads", "1", "--repeats", "1", "--seconds", "0")


def run(folder: Path, script: str, *arguments: str) -> tuple[str, dict[str, Any]]:
    """Run a benchmark; return its table and its JSON."""
    out = folder / "report.json"
    # a study's config sets the device; the other has none to choose
    device = () if script in ("study.py", "pretrained.py") else ("--device", "cpu")
    done = subprocess.run(
        [sys.executable, PROJECT / "benchmarks" / script, *arguments, *device, "--json", out],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(out.read_text())
    assert (
        report["machine"]["device"] == "cpu"
        and report["date"] in done.stdout
        and f"python benchmarks/{script}" in done.stdout
    )
    return done.stdout, report


def test_start_up_tells_what_a_script_imports_in_this_checkout_and_another(tmp_path: Path) -> None:
    table, report = run(
        tmp_path, "startup.py", "--repeats", "1", "--only", "prompts", "--against", str(PROJECT)
    )
    (ours,), (before,) = report["results"]["prompts"].values()
    assert ours["heavy"] == before["heavy"] == [] and ours["modules"] == before["modules"] > 100
    assert "| prompts | " in table and "before: seconds" in table


@pytest.mark.full
def test_first_weights_of_other_classes_are_measured_by_seed_with_an_interval(tmp_path: Path) -> None:
    short = ("--seeds", "2", "--steps", "4", "--source-steps", "4", "--arch", "timm:test_vit")
    table, report = run(tmp_path, "pretrained.py", *short)
    assert table.startswith(
        "| network | on 0 to 4, held out | random weights | weights of 0 to 4 | difference |"
    )
    found = report["measured"]["timm:test_vit"]
    assert {name: len(values) for name, values in found.items()} == {
        "0 to 4, held out": 2, "random": 2, "0 to 4": 2,
    }  # fmt: skip
    assert all(0 <= value <= 100 for values in found.values() for value in values)
    assert "| timm:test_vit | " in table and " ± " in table


@pytest.mark.full
@pytest.mark.skipif(
    not (PROJECT / ".git").exists(), reason="the benchmark copies the last commit, and this is no clone"
)
def test_a_whole_study_is_compared_with_that_of_another_checkout(tmp_path: Path, garment_files: Path) -> None:
    rows = {
        "none": {"mechanism": "real"},
        "simple_prompt": {"mechanism": "sample", "prompt": {"class_name": "lemmas"}},
    }
    dataset = {
        "kind": "fashion_mnist",
        "train_fraction": 0.0014,
        "validation_fraction": 0.002,
        "test_images_per_class": 20,
    }
    study = {key: value for key, value in SMALL_STUDY.items() if key not in ("corpus", "finetune", "leakage")}
    config = tmp_path / "little.yaml"
    config.write_text(yaml.safe_dump(study | {"methods": rows, "dataset": dataset}))
    arguments = [
        "--config",
        str(config),
        "--against",
        str(PROJECT),
        "--repeats",
        "1",
        "--folder",
        str(tmp_path),
    ]
    table, report = run(tmp_path, "study.py", *arguments)
    (ours,), (before,) = report["runs"]["ours"], report["runs"]["before"]
    assert (
        report["same_accuracies"]
        and ours["accuracies"] == before["accuracies"]
        and set(ours["accuracies"]) == set(rows)
    )
    jobs, seconds = ours["stages"]["generate"]
    assert jobs == 2 and 0 < seconds < 2 * ours["seconds"]
    assert (
        ours["processor_seconds"] > 5
        and "| generate | 2 | " in table
        and "the same accuracies in every run" in table
    )
    assert not list(tmp_path.glob("tmp*"))  # the copies are removed


@pytest.mark.full
def test_classifier_is_compared_with_torchvisions_script(tmp_path: Path) -> None:
    table, report = run(
        tmp_path, "classifier.py", *SHORT, "--workers", "1", "--images", "500", "--epochs", "1"
    )
    assert list(report["results"]) == ["torchvision's reference", "ours", "our step, batch ready"]
    assert table.startswith("| | images per second | times torchvision's reference |")
    assert 5e6 < report["flops_per_image"] < 2e7


@pytest.mark.full
def test_personalisation_is_compared_with_diffusers_examples(tmp_path: Path) -> None:
    table, report = run(
        tmp_path, "personalise.py", *SHORT, "--classes", "3", "--batch", "6", "--unet-batch", "4"
    )
    assert len(report["results"]) == 6 and table.startswith(
        "| | images per second | times diffusers' textual inversion, one class |"
    )
    flops = report["flops_per_image"]
    # the text encoder's are extra; neither includes a VAE
    assert flops["ours, pseudo-words"] > flops["ours, conditioning vectors"] > 0
    assert flops["ours, conditioning and U-Net"] > 1.3 * flops["ours, conditioning vectors"]


@pytest.mark.full
def test_embeddings_are_compared_with_clip_retrieval_and_are_the_same(tmp_path: Path) -> None:
    table, report = run(tmp_path, "embed.py", *SHORT, "--images", "64")
    assert table.startswith("| | images per second | times clip-retrieval inference |")
    assert (
        set(report["largest_differences"]) == {"clip-retrieval inference", "ours"}
        and max(report["largest_differences"].values()) < 2**-11
    )
