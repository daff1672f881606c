"""Isolate one command: without a network or with its own mounts; the machine itself does not change."""

from __future__ import annotations

import os
import subprocess

import pytest


def namespace(kind: str) -> list[str]:
    """Return the prefix for a command that has no network (``--net``) or its own mounts (``--mount``).

    Skips the test where that is not allowed.
    """
    command = ["unshare", kind] if os.geteuid() == 0 else ["unshare", "--map-root-user", kind]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip(f"unshare {kind} needs root or user namespaces")
    return command
