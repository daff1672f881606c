"""The pages on the paper are true: its facts (docs/paper.md), and what we chose (docs/methods.md)."""

from __future__ import annotations

import importlib
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from conftest import PROJECT

from augbench.config.base import Section
from augbench.config.manual import default_text, is_tag, sections, value_text
from augbench.config.study import load_study

FACTS = (PROJECT / "docs/paper.md").read_text(encoding="utf-8")
CHOICES = (
    (PROJECT / "docs/methods.md").read_text(encoding="utf-8").partition("## What the paper does not say")[2]
)
REPORT = "\n".join(path.read_text() for path in sorted((PROJECT / "src/augbench/report").rglob("*.py")))
STUDIES = [
    load_study([PROJECT / f"config/{name}.yaml"]) for name in ("imagenet10", "imagenet_full", "caltech256")
]
ENTRY = re.compile(r"`([\w.<>]+)`(?:: `([^`]+)`)?(?: \((`[^)]+`)\))?")

# Keys of these sections that are no choice where the paper is silent.
SHAPING = ("diffusion", "methods", "augmentation", "classifier", "finetune")
NO_CHOICE = {
    # names and places
    *("methods.<name>.label", "diffusion.revision", "diffusion.mirrors", "diffusion.downloads"),
    *("diffusion.safety_checker_revision", "finetune.inception_weights", "finetune.inception_mirrors"),
    # what the paper has not: controls, replays, small images, the other schedule
    *("methods.<name>.repeat", "methods.<name>.labels", "methods.<name>.manifest", "classifier.layers"),
    *("classifier.base_width", "classifier.stem", "classifier.steps", "classifier.decay"),
    *("methods.<name>.prompt.captions", "methods.<name>.query.captions"),
    *("classifier.lower_at", "classifier.validate_every", "methods.<name>.fill_to"),
    # other models than Stable Diffusion
    *("methods.<name>.generator", "diffusion.pipeline"),
    # a section; memory
    *("methods.<name>.prompt", "methods.<name>.use", "finetune.micro_batch"),
}


def rows_of(text: str, columns: int) -> Iterator[list[str]]:
    """Yield the rows of tables, without heads and rows that only name a group."""
    table = re.findall(r"^\|(.*)\|$", text, re.MULTILINE)
    for number, line in enumerate(table):
        cells = [cell.strip() for cell in line.split("|")]
        head = number + 1 < len(table) and table[number + 1].startswith("---")
        if not head and not line.startswith("---") and any(cells[1:]):
            assert len(cells) == columns and all(cells), line
            yield cells


# --- facts ----------------------------------------------------------------------------------------


def has_test(name: str) -> bool:
    path, _, function = name.partition("::")
    file = PROJECT / path
    return file.is_file() and re.search(rf"^def {function}\(", file.read_text(), re.MULTILINE) is not None


def faults_of_facts(text: str) -> list[str]:
    faults = []
    for fact, where, held in rows_of(text, 3):
        files = re.findall(r"`([^`]+)`", where)
        tests = re.findall(r"`(tests/[^`]+)`", held)
        lines = re.findall(r'footer "([^"]+)"', held)
        faults += [f"no file {name}" for name in files if not (PROJECT / name).is_file()]
        faults += [f"no test {name}" for name in tests if not has_test(name)]
        faults += [f"no footer line {line}" for line in lines if f'"{line}' not in REPORT]
        if not files or not (tests or lines):
            faults.append(f"neither a test nor a line of the footer, or no file: {fact}")
    return faults


def test_every_fact_has_its_file_and_a_test_or_a_line_of_the_footer() -> None:
    assert faults_of_facts(FACTS) == []
    assert len([*rows_of(FACTS, 3)]) > 80


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ('| a | `src/augbench/nowhere.py` | footer "Test images" |', "no file src/augbench/nowhere.py"),
        (
            "| a | `docs/paper.md` | `tests/test_plan.py::test_gone` |",
            "no test tests/test_plan.py::test_gone",
        ),
        ("| a | `docs/paper.md` | `tests/test_gone.py::test_a` |", "no test tests/test_gone.py::test_a"),
        ('| a | `docs/paper.md` | footer "Colour" |', "no footer line Colour"),
        ("| a | `docs/paper.md` | common sense |", "neither a test nor a line of the footer, or no file: a"),
    ],
)
def test_a_fact_without_what_holds_it_is_found(row: str, fault: str) -> None:
    assert faults_of_facts(row) == [fault]


# --- choices --------------------------------------------------------------------------------------


def schema_defaults() -> dict[str, set[str]]:
    """Defaults of every key by its path, as the manual shows them; kinds of a section may differ."""
    found: dict[str, set[str]] = defaultdict(set)
    for path, section in sections():
        for name, field in section.model_fields.items():
            found[f"{path}.{name}".lstrip(".")].add(default_text(field))
    return found


def values_of(section: Section, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key of a config and its value."""
    for name in type(section).model_fields:
        value, path = getattr(section, name), f"{prefix}.{name}".lstrip(".")
        if isinstance(value, Section):
            yield from values_of(value, path)
        elif isinstance(value, Mapping) and name == "methods":
            for row in value.values():
                yield from values_of(row, f"{path}.<name>")
        elif not any(isinstance(part, Section) for part in (value if isinstance(value, tuple) else ())):
            yield path, f"`{value_text(value)}`"


def code_value(name: str) -> Any:
    """Return the object that a dotted name stands for."""
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def faults_of_choices(text: str) -> list[str]:
    defaults, others, faults = schema_defaults(), defaultdict(set), []
    for study in STUDIES:
        for path, value in values_of(study):
            if value not in defaults[path]:
                others[path].add(value)
    for question, *_, keys in rows_of(text, 4):
        entries = ENTRY.findall(keys)
        if not entries:
            faults.append(f"no key and no code: {question}")
        for name, default, other in entries:
            shown, in_studies = f"`{default}`", set(re.findall("`[^`]+`", other))
            if name.startswith("augbench."):
                try:
                    value = code_value(name)
                except (ImportError, AttributeError):
                    faults.append(f"no code {name}")
                    continue
                if default and value_text(value) != default:
                    faults.append(f"{name} is {value_text(value)}, not {default}")
            elif name not in defaults:
                faults.append(f"no key {name}")
            elif shown not in defaults[name]:
                faults.append(f"{name} has the default {' or '.join(defaults[name])}, not {shown}")
            elif in_studies != others[name]:
                faults.append(f"full studies set {name} to {sorted(others[name])}, not {sorted(in_studies)}")
    return faults


def test_every_choice_names_its_key_with_the_schemas_default_and_what_full_studies_set() -> None:
    assert faults_of_choices(CHOICES) == []


def test_every_key_that_shapes_results_and_is_not_the_papers_is_among_the_choices() -> None:
    shaping = {
        f"{path}.{name}"
        for path, section in sections()
        for name, field in section.model_fields.items()
        if path.split(".")[0] in SHAPING and not is_tag(field) and not field.is_required()
        if not str((field.json_schema_extra or {}).get("source")).startswith("paper")  # type: ignore[union-attr]
    }
    named = {name for *_, keys in rows_of(CHOICES, 4) for name, _, _ in ENTRY.findall(keys)}
    assert shaping - named == NO_CHOICE


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ("none", "no key and no code: q"),
        ("`finetune.patient`: `5`", "no key finetune.patient"),
        ("`finetune.patience`: `6`", "finetune.patience has the default `5`, not `6`"),
        ("`finetune.dtype`: `float32`", "full studies set finetune.dtype to ['`bfloat16`'], not []"),
        ("`finetune.flip`: `0.5` (`0.1`)", "full studies set finetune.flip to [], not ['`0.1`']"),
        ("`augbench.seeds.derive`", "no code augbench.seeds.derive"),
        ("`augbench.personalise.cluster.STARTS`: `11`", "augbench.personalise.cluster.STARTS is 10, not 11"),
    ],
)
def test_a_choice_that_is_not_the_schemas_is_found(keys: str, fault: str) -> None:
    assert faults_of_choices(f"| q | c | w | {keys} |") == [fault]
