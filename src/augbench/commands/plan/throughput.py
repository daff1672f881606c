"""Rates of a device, from ``resources/throughput.yaml`` and from measurements that override it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from augbench.config.study import read_yaml
from augbench.errors import UserError
from augbench.files import RESOURCES

TABLE = RESOURCES / "throughput.yaml"
MEASURED = "results/throughput.yaml"


@dataclass(frozen=True)
class Quantity:
    """A rate or size, and its source."""

    value: float
    measured: bool
    source: str


def guided_share(interval: Sequence[float]) -> float:
    """Share of timesteps whose noise level is above the first value and at most the second.

    The timesteps are those of Stable Diffusion's noise schedule (Rombach et al., 2022).
    """
    low, high = interval
    first, last, steps = 0.00085**0.5, 0.012**0.5, 1000
    kept, guided = 1.0, 0
    for step in range(steps):
        kept *= 1 - (first + (last - first) * step / (steps - 1)) ** 2
        guided += low < ((1 - kept) / kept) ** 0.5 <= high
    return guided / steps


@dataclass(frozen=True)
class Throughput:
    """Rates of a device (per second), and assumed quantities.

    ``chosen`` says why it is this device, ``memory`` is in GiB, None if it is not known.
    """

    device: str
    name: str
    chosen: str
    memory: float | None
    rates: Mapping[str, Quantity]
    assumed: Mapping[str, Quantity]

    @property
    def is_measured(self) -> bool:
        """Whether all rates were measured."""
        return all(figure.measured for figure in self.rates.values())


def read_throughput(
    device: str | None = None, path: str | Path | None = None, here: str | None = None
) -> Throughput:
    """Read the figures of a device.

    Parameters
    ----------
    device : str, optional
        Key in the tables. Default: the first device of the measured table, or else the GPU that is here, or
        else the first of ``resources/throughput.yaml``.
    path : path, optional
        A table of measured figures, which override ours. Default: ``results/throughput.yaml``, if it exists.
    here : str, optional
        Name of the GPU that is here.

    Raises
    ------
    UserError
        There is no such file or device, a figure is unknown, or a figure is not a number.
    """
    table, own = read_yaml(TABLE), str(path or MEASURED)
    measured = {
        "devices": {},
        "assumed": {},
        **(read_yaml(own) if path is not None or Path(own).is_file() else {}),
    }
    sections = [measured["devices"], measured["assumed"]]
    if not all(
        isinstance(section, Mapping)
        for section in (*sections, *(sections[0].values() if isinstance(sections[0], Mapping) else ()))
    ):
        raise UserError(
            own,
            "not in the form of resources/throughput.yaml",
            "allowed: `devices`, a mapping of figures for each, and `assumed`, a mapping",
        )
    names = list(dict.fromkeys([*measured["devices"], *table["devices"], *table["cards"]]))
    why = "--gpu"
    if device is None:
        device, why = _default_device(table, list(measured["devices"]), own, here)
    if device not in names:
        raise UserError("--gpu", repr(device), f"allowed: {', '.join(names)}")
    card = table["cards"].get(device, {})
    shipped = table["devices"].get(device) or (_scaled(table, card) if card else {})
    chosen = {**shipped, **measured["devices"].get(device, {})}

    def figures(section: Mapping[str, Any], where: str) -> dict[str, Quantity]:
        found = {}
        for name, entry in section.items():
            details = entry if isinstance(entry, Mapping) else {"value": entry}
            value = details.get("value")
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise UserError(f"{where}.{name}", repr(value), "allowed: a number above 0")
            found[name] = Quantity(
                float(value), bool(details.get("measured", False)), str(details.get("source", own))
            )
        return found

    rates = figures({name: entry for name, entry in chosen.items() if name != "name"}, f"devices.{device}")
    if missing := [name for name in table["units"] if name not in rates]:
        raise UserError(f"devices.{device}", f"no {', '.join(missing)}", f"give them in {own}")
    if unknown := [name for name in rates if name not in table["units"]]:
        raise UserError(
            f"devices.{device}",
            f"unknown figures {', '.join(unknown)}",
            f"allowed: {', '.join(table['units'])}",
        )
    return Throughput(
        device,
        str(chosen.get("name", device)),
        why,
        card.get("memory"),
        rates,
        figures({**table["assumed"], **measured["assumed"]}, "assumed"),
    )


def card_key(name: str, cards: Mapping[str, Any]) -> str | None:
    """Key among the table's ``cards`` of a GPU that the driver calls ``name``; None if it is not there."""
    return next((key for key in cards if re.search(rf"\b{cards[key]['match']}\b", name)), None)


def _default_device(
    table: Mapping[str, Any], measured: Sequence[str], own: str, here: str | None
) -> tuple[str, str]:
    """Device that nobody named, and why it is this one."""
    if measured:
        return measured[0], f"the first in {own}"
    if here and (key := card_key(here, table["cards"])):
        return key, "the GPU that is here"
    missing = f"the GPU that is here, {here}, is not in the table" if here else "there is no GPU here"
    return table["like"], f"{missing}; --gpu names another one, {MEASURED} takes your own figures"


def _scaled(table: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """Figures of a card without own ones: those of ``like``, scaled by published figures of both."""
    like, known = table["cards"][table["like"]], table["devices"][table["like"]]
    found: dict[str, Any] = {"name": card["name"]}
    for unit in table["units"]:
        by = {"classify": "bandwidth", "start": None}.get(unit, "tflops")
        ratio = card[by] / like[by] if by else 1.0
        rule = f" x {card[by]:g}/{like[by]:g} ({by}; {card['source']})" if by else ""
        found[unit] = {"value": known[unit]["value"] * ratio, "source": f"{like['name']}'s figure{rule}"}
    return found
