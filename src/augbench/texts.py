"""Texts that users give: names, labels, notes. They are shown on one line."""

from __future__ import annotations

import re

_BREAKS = re.compile(r"\s*[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]\s*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def one_line(text: str) -> str:
    """``text`` with a space for each line break or tab, and for the white space around it."""
    return _BREAKS.sub(" ", text)


def has_control_characters(text: str) -> bool:
    """Whether a text has characters that no file format or font shows; line breaks and tabs are fine."""
    return _CONTROL.search(one_line(text)) is not None
