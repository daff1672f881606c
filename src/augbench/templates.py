"""Prompt templates and class names: pure text, no model.

Flows in: shipped template lists and a class. Flows out: prompts.
"""

from __future__ import annotations

import re
from functools import cache

from augbench.classes import RESOURCES

PROMPTS = RESOURCES / "prompts"
TEMPLATE_SETS = ("simple", "clip", "textual_inversion")


@cache
def load_templates(name: str) -> tuple[str, ...]:
    """A shipped list of templates with one ``{}`` each: ``simple`` (1), ``clip`` (80), ``textual_inversion`` (27)."""
    return tuple((PROMPTS / f"{name}.txt").read_text(encoding="utf-8").splitlines())


@cache
def load_scenes() -> tuple[str, ...]:
    """The 365 scene categories of Places365 as readable text ("bazaar indoor")."""
    lines = (PROMPTS / "places365.txt").read_text(encoding="utf-8").splitlines()
    return tuple(re.sub(r"[_/]", " ", line) for line in lines)


def strip_whitespace(name: str) -> str:
    """The paper's w(n): all white space goes, everything else stays ("desktop computer" -> "desktopcomputer").

    The paper does not say what happens to the ", " between lemmas; read literally, the comma stays
    ("tiger shark, Galeocerdo cuvieri" -> "tigershark,Galeocerdocuvieri"; paper, section 3.1).
    """
    return re.sub(r"\s+", "", name)
