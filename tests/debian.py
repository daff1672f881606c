"""Install Debian packages for tests that need a program which is not a Python package."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from pathlib import Path


def install(*packages: str) -> str | None:
    """Install Debian packages; return None, or the reason why that is not possible here."""
    if os.geteuid() != 0:
        return f"only root can install {', '.join(packages)}"
    if shutil.which("apt-get") is None:
        return f"no apt-get to install {', '.join(packages)} with"
    with Path(tempfile.gettempdir(), "augbench_tests_apt.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # apt-get does not wait for that of another test
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
