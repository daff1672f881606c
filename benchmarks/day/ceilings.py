"""The device's limits: matrix products in each precision, and copies within its memory."""

from __future__ import annotations

from benchmarks.day.lines import last
from benchmarks.day.session import Session
from benchmarks.machine import device_copy_rate

DTYPES = {"cuda": ("bfloat16", "float16", "float32"), "cpu": ("float32", "bfloat16")}


def measure(session: Session) -> None:
    """Measure each limit that is not known from an earlier call."""
    lines = session.lines.read()
    if not last(lines, "fact", session.stage, name="copy_rate"):
        session.fact("copy_rate", device_copy_rate(session.device))
    for dtype in DTYPES[session.device]:
        if not last(lines, "fact", session.stage, name="product_rate", dtype=dtype):
            session.ceiling(dtype)
