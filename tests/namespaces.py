"""A command with a network, or with mounts, of its own: what only root may do to the machine, done to one process and gone with it."""

from __future__ import annotations

import os
import subprocess

import pytest


def namespace(kind: str) -> list[str]:
    """What to put in front of a command (``--net``: it has no network, ``--mount``: its mounts are its own); skips the test where that is not allowed."""
    command = ["unshare", kind] if os.geteuid() == 0 else ["unshare", "--map-root-user", kind]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip(f"unshare {kind} needs root or user namespaces")
    return command
