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


def test_the_rate_of_matrix_products_is_that_of_a_computer() -> None:
    from benchmarks.machine import product_rate

    assert 1e8 < product_rate("cpu", "float32") < 1e14
