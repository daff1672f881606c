"""What a release and Snakemake's catalog take from the repository."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from augbench import __version__

PROJECT = Path(__file__).resolve().parents[1]


def notes(tag: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, PROJECT / ".ci/release_notes.py", tag], capture_output=True, text=True
    )


def test_the_notes_of_a_release_are_its_section_of_the_changelog() -> None:
    done = notes(f"v{__version__}")
    _, _, section = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8").partition(f"\n## {__version__}")
    body = section.partition("\n")[2].partition("\n## ")[0].strip()
    assert (done.returncode, done.stdout) == (0, body + "\n") and body


@pytest.mark.parametrize(
    ("heading", "found"),
    [("0.2.0", True), ("0.2.0 (2026-11-30)", True), ("0.2.0-rc1", False), ("0.2.01", False)],
)
def test_the_section_of_another_version_that_begins_alike_is_not_taken(heading: str, found: bool) -> None:
    notes_of = runpy.run_path(str(PROJECT / ".ci/release_notes.py"))["notes_of"]
    changelog = f"# Changes\n\n## {heading}\n\n- new\n\n## 0.1.0\n\n- old\n"
    if found:
        assert notes_of("v0.2.0", changelog, "0.2.0") == "- new\n"
    else:
        with pytest.raises(SystemExit, match="no section '## 0\\.2\\.0'"):
            notes_of("v0.2.0", changelog, "0.2.0")


@pytest.mark.parametrize("tag", ["v9.9.9", __version__])
def test_a_tag_of_another_version_makes_no_release(tag: str) -> None:
    done = notes(tag)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == f"tag {tag}: pyproject.toml has version {__version__}; allowed: v{__version__}\n"


def test_the_release_runs_what_every_change_must_pass_on_tags_alone() -> None:
    workflow = yaml.safe_load((PROJECT / ".github/workflows/release.yml").read_text(encoding="utf-8"))
    assert workflow[True] == {"push": {"tags": ["v*"]}}  # YAML 1.1 reads the key `on` as true
    tests, release = (workflow["jobs"][name] for name in ("tests", "release"))
    assert ".ci/run" in [step.get("run") for step in tests["steps"]] and release["needs"] == "tests"
    assert release["steps"][-1]["run"].startswith("gh release create")


def test_no_code_of_the_repository_runs_with_the_right_to_write() -> None:
    workflow = yaml.safe_load((PROJECT / ".github/workflows/release.yml").read_text(encoding="utf-8"))
    tests, release = (workflow["jobs"][name] for name in ("tests", "release"))
    assert workflow["permissions"] == {"contents": "read"} and "permissions" not in tests
    checkouts = [step for step in tests["steps"] if step.get("uses", "").startswith("actions/checkout")]
    assert [step["with"]["persist-credentials"] for step in checkouts] == [False]
    assert release["permissions"] == {"contents": "write"}
    assert not any("checkout" in step.get("uses", "") for step in release["steps"])


def test_the_catalog_finds_what_it_asks_for() -> None:
    usage = yaml.safe_load((PROJECT / ".snakemake-workflow-catalog.yml").read_text(encoding="utf-8"))["usage"]
    config = usage["mandatory-flags"]["flags"].removeprefix("--configfile ")
    assert (PROJECT / config).is_file() and (PROJECT / "config/README.md").is_file()
    assert usage["software-stack-deployment"]["conda"] and (PROJECT / "envs/conda.yaml").is_file()
    rules = "".join(path.read_text(encoding="utf-8") for path in (PROJECT / "workflow/rules").glob("*.smk"))
    assert usage["report"] and "report(" in rules


def test_the_image_leaves_out_what_a_clone_makes_and_is_set_up_as_a_clone() -> None:
    ignored = (PROJECT / ".containerignore").read_text(encoding="utf-8").splitlines()
    made = (PROJECT / ".gitignore").read_text(encoding="utf-8").split()
    assert {name.rstrip("/") for name in made} <= {line.removeprefix("**/") for line in ignored}
    text = (PROJECT / "Containerfile").read_text(encoding="utf-8")
    version = re.search(r"^FROM docker\.io/library/python:3\.(\d+)-", text, re.MULTILINE)
    assert version is not None and 11 <= int(version[1]) <= 14
    assert re.search(r"^RUN make setup", text, re.MULTILINE) and "COPY . ." in text
