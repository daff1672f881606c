"""Debian's packages for tests that need a program which is no Python package."""

from __future__ import annotations

import os
import shutil
import subprocess


def install(*packages: str) -> str | None:
    """Install packages of Debian; why that is not possible here, or None."""
    if os.geteuid() != 0:
        return f"only root can install {', '.join(packages)}"
    if shutil.which("apt-get") is None:
        return f"no apt-get to install {', '.join(packages)} with"
    for command in (["update"], ["install", "-y", "--no-install-recommends", *packages]):
        done = subprocess.run(["apt-get", "-qq", *command], env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True)
        if done.returncode:
            return f"apt-get {command[0]}: {done.stderr.strip()[-500:]}"
    return None
