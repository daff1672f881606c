"""``augbench plan`` reads the figures that benchmarks write."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from augbench.commands.plan.throughput import read_throughput

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def scripts_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(PROJECT))


def test_figures_of_several_benchmarks_come_together_over_the_shipped_ones(tmp_path: Path) -> None:
    from benchmarks.throughput import write_figures

    table = tmp_path / "results/throughput.yaml"
    write_figures(table, "NVIDIA H200", {"embed": 2512.3456}, "embed.py, today")
    write_figures(table, "NVIDIA H200", {"classify": 5600.0}, "classifier.py, today")
    write_figures(table, "NVIDIA H200", {"embed": 2600.0}, "embed.py, later")
    found = read_throughput(path=table)
    assert (found.device, found.rates["embed"].value, found.rates["embed"].source) == (
        "h200",
        2600.0,
        "embed.py, later",
    )
    assert found.rates["classify"].measured and not found.rates["generate"].measured


def test_a_gpu_that_the_shipped_table_lacks_gets_its_own_entry(tmp_path: Path) -> None:
    from benchmarks.throughput import write_figures

    table = tmp_path / "throughput.yaml"
    write_figures(table, "NVIDIA A100-SXM4-80GB", {"embed": 700.04321}, "embed.py")
    write_figures(table, "Some GPU-9000", {"embed": 1.0}, "embed.py")
    devices = yaml.safe_load(table.read_text())["devices"]
    assert list(devices) == ["a100", "some_gpu_9000"]
    assert devices["a100"] == {
        "name": "NVIDIA A100-SXM4-80GB",
        "embed": {"value": 700.0, "measured": True, "source": "embed.py"},
    }


def test_a_gpu_without_figures_gets_those_of_the_h200_scaled_by_what_bounds_them(tmp_path: Path) -> None:
    found = read_throughput("v100")
    assert (found.name, found.memory, found.chosen) == ("NVIDIA V100 32 GB", 31.7, "--gpu")
    assert found.rates["generate"].value == pytest.approx(4.7 * 125 / 989)
    assert found.rates["classify"].value == pytest.approx(5500 * 0.9 / 4.8)
    assert found.rates["start"].value == 15
    assert found.rates["classify"].source == (
        "NVIDIA H200's figure x 0.9/4.8 (bandwidth; NVIDIA, V100 datasheet)"
    )
    assert not any(rate.measured for rate in found.rates.values())
    table = tmp_path / "mine.yaml"
    table.write_text("devices: {v100: {embed: {value: 300, measured: true}}}")
    mine = read_throughput(path=table)
    assert mine.rates["embed"].value == 300 and mine.rates["generate"] == found.rates["generate"]
    assert mine.chosen == f"the first in {table}"


@pytest.mark.parametrize(
    ("here", "device", "why"),
    [
        ("Tesla V100-SXM2-16GB", "v100_16gb", "the GPU that is here"),
        ("NVIDIA A10G", "a10g", "the GPU that is here"),
        ("NVIDIA A10", "a10", "the GPU that is here"),
        ("NVIDIA A100-PCIE-40GB", "a100_40gb", "the GPU that is here"),
        ("NVIDIA A100 80GB PCIe", "a100", "the GPU that is here"),
        ("NVIDIA H100 80GB HBM3", "h100", "the GPU that is here"),
        ("NVIDIA GeForce RTX 4090", "rtx4090", "the GPU that is here"),
        (
            "Some GPU-9000",
            "h200",
            "the GPU that is here, Some GPU-9000, is not in the table; --gpu names another one,"
            " results/throughput.yaml takes your own figures",
        ),
        (
            None,
            "h200",
            "there is no GPU here; --gpu names another one, results/throughput.yaml takes your own figures",
        ),
    ],
)
def test_a_plan_is_for_the_gpu_that_is_here_and_says_why_it_is_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: str | None, device: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    found = read_throughput(here=here)
    assert (found.device, found.chosen) == (device, why)


def test_every_card_has_its_figures_and_matches_its_own_name_alone() -> None:
    table = yaml.safe_load((PROJECT / "resources/throughput.yaml").read_text())
    figures = {"name", "match", "tflops", "bandwidth", "memory", "source"}
    assert all(set(card) == figures for card in table["cards"].values())
    assert set(table["devices"]) <= set(table["cards"])


def test_the_rate_of_matrix_products_is_that_of_a_computer() -> None:
    from benchmarks.machine import product_rate

    assert 1e8 < product_rate("cpu", "float32") < 1e14
