"""Debian's packages for tests that need a program which is no Python package."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


def install(*packages: str) -> str | None:
    """Install packages of Debian; why that is not possible here, or None."""
    if os.geteuid() != 0:
        return f"only root can install {', '.join(packages)}"
    if shutil.which("apt-get") is None:
        return f"no apt-get to install {', '.join(packages)} with"
    with Path(tempfile.gettempdir(), "augbench_tests_apt.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # apt-get does not wait for another test's
        for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
            done = subprocess.run(
                ["apt-get", "-qq", *command],
                env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"},
                capture_output=True,
                text=True,
            )
            if done.returncode:
                return f"apt-get {command[0]}: {done.stderr.strip()[-500:]}"
    return None
