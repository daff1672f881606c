"""Write measured rates to the table that ``augbench plan`` reads.

The table is ``results/throughput.yaml`` or another file; figures of other benchmarks in it stay.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from augbench.commands.plan.throughput import TABLE, card_key
from augbench.config.study import read_yaml
from augbench.files import write_text


def device_key(name: str) -> str:
    """Return the key of a GPU in the table: the shipped table's key, else the name in lower case."""
    return card_key(name, read_yaml(TABLE)["cards"]) or re.sub(r"\W+", "_", name.lower())


def write_figures(path: Path, name: str, figures: Mapping[str, float], source: str) -> None:
    """Write measured figures of the device ``name`` into the table ``path``; other entries stay."""
    table: dict[str, Any] = read_yaml(path) if path.is_file() else {}
    device = table.setdefault("devices", {}).setdefault(device_key(name), {"name": name})
    device.update(
        {
            figure: {"value": float(f"{value:.4g}"), "measured": True, "source": source}
            for figure, value in figures.items()
        }
    )
    write_text(path, yaml.safe_dump(table, sort_keys=False))


def write_rates(
    options: argparse.Namespace, report: Mapping[str, Any], candidates: Mapping[str, str]
) -> None:
    """Write the rates of a report's candidates, by figure, into ``--throughput-out``.

    Only rates of full-size models on a GPU are written.
    """
    if options.throughput_out and options.size == "full" and options.device == "cuda":
        rates = {figure: report["results"][name]["rate"]["median"] for figure, name in candidates.items()}
        write_figures(
            options.throughput_out, report["machine"]["gpu"], rates, f"{report['command']}, {report['date']}"
        )
