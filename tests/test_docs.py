"""The documentation is right: its links, files, commands and snippets of config exist and are valid."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import yaml
from conftest import PROJECT
from snakemake.cli import get_argument_parser

from augbench import __version__
from augbench.cli import parser
from augbench.config.study import merge, parse_study, read_yaml

PAGES = sorted(
    [
        *PROJECT.glob("*.md"),
        *(PROJECT / "docs").glob("*.md"),
        *(PROJECT / "resources").rglob("README.md"),
        PROJECT / "benchmarks/README.md",
        PROJECT / "profiles/README.md",
        PROJECT / "config/README.md",
    ]
)
FOLDERS = "|".join(
    sorted(
        path.name
        for path in PROJECT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name != "results"
    )
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`]+)`")
EXAMPLE = PROJECT / "docs/examples/digits.yaml"

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(PROJECT).as_posix())


def anchors(page: Path) -> set[str]:
    """Anchors that GitHub generates for a page's headings."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(page: Path, programs: str) -> Iterator[list[str]]:
    """Yield the words of each command of ``programs`` in a page's code spans and blocks."""
    text = page.read_text(encoding="utf-8")
    lines = [
        line
        for language, block in BLOCK.findall(text)
        if language in ("", "sh")
        for line in block.splitlines()
    ]
    spans = [" ".join(span.split()) for span in SPAN.findall(BLOCK.sub("", text))]
    for line in [*lines, *spans]:
        if found := re.match(rf"(?:\w+=\S+ +)*(?:\.venv/bin/)?((?:{programs}) .*)", line):
            yield shlex.split(found[1], comments=True)


def misunderstood(shown: Iterable[list[str]], parse: Callable[[list[str]], object]) -> list[tuple[str, str]]:
    """Commands that argparse rejects, each with the last line of the error message."""
    wrong = []
    for command in shown:
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), contextlib.suppress(SystemExit):
            parse(command[1:])
        if errors.getvalue():
            wrong.append((shlex.join(command), errors.getvalue().splitlines()[-1]))
    return wrong


@every_page
def test_every_link_to_a_file_of_ours_resolves(page: Path) -> None:
    broken = []
    for link in LINK.findall(BLOCK.sub("", page.read_text(encoding="utf-8"))):
        if re.match(r"https?:|mailto:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@every_page
def test_every_path_of_the_repository_that_is_named_is_there(page: Path) -> None:
    text = LINK.sub("", page.read_text(encoding="utf-8"))
    named = re.findall(rf"(?<![\w./{{}}-])(?:{FOLDERS})/[\w./*-]*[\w*]", text)
    assert [name for name in named if not any(PROJECT.glob(name))] == []


@every_page
def test_every_target_of_make_that_is_shown_is_in_the_makefile(page: Path) -> None:
    targets = set(
        re.findall(r"^([a-z-]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    shown = {word for command in commands(page, "make") for word in command[1:] if "=" not in word}
    assert "demo" in targets and shown <= targets


@every_page
def test_every_augbench_command_that_is_shown_is_understood(page: Path) -> None:
    assert misunderstood(commands(page, "augbench"), lambda words: parser().parse_args(words)) == []


@every_page
def test_every_snakemake_command_that_is_shown_is_understood(page: Path) -> None:
    """Snakemake would read targets after ``--configfile`` as further configs."""
    snakemake = get_argument_parser()

    def parse(words: list[str]) -> None:
        given = snakemake.parse_args(words)
        if wrong := [path for path in given.configfile if path.suffix != ".yaml"]:
            snakemake.error(f"{wrong[0]} is no config")

    assert misunderstood(commands(page, "snakemake"), parse) == []


@every_page
def test_every_snippet_of_config_is_what_the_schema_takes(page: Path) -> None:
    """A whole study stands alone; other snippets are merged into the study they name, or into a small one.

    Snippets that are not a study are skipped: a class table is a list, a GPU's figures have a key `devices`.
    """
    for language, block in BLOCK.findall(page.read_text(encoding="utf-8")):
        snippet = yaml.safe_load(block) if language == "yaml" else None
        if isinstance(snippet, dict) and "devices" not in snippet:
            named = re.search(r"config/\w+\.yaml", block)
            whole = {"study", "methods", "augmentation"} <= set(snippet)
            base = {} if whole else read_yaml(PROJECT / named[0] if named else EXAMPLE)
            if "arch" in snippet.get("classifier", {}):
                base.pop("classifier", None)  # its other keys are those of another network
            parse_study(merge(base, snippet))


@pytest.mark.parametrize(
    ("check", "text", "message"),
    [
        (test_every_link_to_a_file_of_ours_resolves, "[a](nowhere.md)", "nowhere"),
        (test_every_link_to_a_file_of_ours_resolves, "# One\n[a](#two)", "#two"),
        (test_every_path_of_the_repository_that_is_named_is_there, "`config/nothing.yaml`", "nothing"),
        (test_every_target_of_make_that_is_shown_is_in_the_makefile, "`make coffee`", "coffee"),
        (
            test_every_augbench_command_that_is_shown_is_understood,
            "```sh\naugbench check --speed 3\n```",
            "speed",
        ),
        (
            test_every_snakemake_command_that_is_shown_is_understood,
            "`snakemake --configfile my.yaml figure1`",
            "figure1 is no config",
        ),
        (test_every_snakemake_command_that_is_shown_is_understood, "`snakemake --speed 3`", "speed"),
        (test_every_snippet_of_config_is_what_the_schema_takes, "```yaml\nclip: {modle: a}\n```", "modle"),
    ],
    ids=["link", "anchor", "path", "make", "augbench", "target", "option", "config"],
)
def test_these_checks_find_what_is_wrong(
    check: Callable[[Path], None], text: str, message: str, tmp_path: Path
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text + "\n")
    with pytest.raises(Exception, match=message):
        check(page)


def test_every_page_of_docs_is_in_the_index() -> None:
    linked = {
        link.partition("#")[0]
        for link in LINK.findall((PROJECT / "docs/README.md").read_text(encoding="utf-8"))
    }
    assert {path.name for path in (PROJECT / "docs").glob("*.md")} - {"README.md"} <= linked
    assert "docs/README.md" in LINK.findall((PROJECT / "README.md").read_text(encoding="utf-8"))


def test_the_version_is_the_same_wherever_it_is_said() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((PROJECT / "CITATION.cff").read_text(encoding="utf-8"))
    assert project["version"] == citation["version"] == __version__


@pytest.mark.parametrize("script", ["make_workflow.py", "make_tables.py"])
def test_what_is_made_from_rules_and_measured_files_is_up_to_date(script: str) -> None:
    command = [sys.executable, str(PROJECT / "docs" / script), "--check"]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_picture_of_the_workflow_shows_what_needs_what() -> None:
    assert "data --> " in (PROJECT / "docs/architecture.md").read_text(encoding="utf-8")


def test_no_line_of_prose_is_longer_than_110_columns() -> None:
    """Table rows, code and pictures are excepted."""
    long = []
    for page in PAGES:
        text = BLOCK.sub(lambda block: "\n" * block[0].count("\n"), page.read_text(encoding="utf-8"))
        for number, line in enumerate(text.splitlines(), 1):
            if len(line) > 110 and not line.startswith(("|", "![")) and " " in line[90:]:
                long.append(f"{page.relative_to(PROJECT)}:{number}")
    assert long == []
