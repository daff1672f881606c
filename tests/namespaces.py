"""Isolate one command: without a network or with its own mounts; the machine itself does not change."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

OUTSIDE = "192.0.2.1"  # reserved for documentation; no machine has it
LOOPBACK_UP = """
import fcntl, os, socket, struct, sys
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, struct.pack("16sh", b"lo", IFF_UP))
os.execv(sys.argv[1], sys.argv[1:])
"""


def prefix(kind: str) -> list[str]:
    """Return the prefix for a command that has no network (``--net``) or its own mounts (``--mount``).

    It is empty where that is not allowed.
    """
    command = ["unshare", kind] if os.geteuid() == 0 else ["unshare", "--map-root-user", kind]
    try:
        allowed = subprocess.run([*command, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        allowed = False
    return command if allowed else []


def not_allowed(kind: str) -> str:
    """Return the reason to skip a test that needs an isolation that is not allowed."""
    return f"unshare {kind} needs root or user namespaces"


def namespace(kind: str) -> list[str]:
    """Return :func:`prefix`; skip the test where it is not allowed."""
    command = prefix(kind)
    if not command:
        pytest.skip(not_allowed(kind))
    return command


def with_loopback_alone() -> list[str]:
    """Return the prefix for a Python command whose only network is the loopback; empty if not allowed."""
    alone = prefix("--net")
    return alone and [*alone, sys.executable, "-c", LOOPBACK_UP]
