"""docs/configuration.md and the schema agree."""

from __future__ import annotations

from pathlib import Path

from pydantic.fields import FieldInfo

from augbench.config.manual import is_tag, render, sections


def documented_keys() -> dict[str, FieldInfo]:
    return {
        f"{path}.{section.__name__}.{name}": field
        for path, section in sections()
        for name, field in section.model_fields.items()
    }


def test_the_document_is_what_the_schema_renders_to():
    document = Path(__file__).resolve().parents[1] / "docs" / "configuration.md"
    assert document.read_text(encoding="utf-8") == render(), "run `make docs`"


def test_every_key_has_a_description():
    assert [
        key for key, field in documented_keys().items() if not is_tag(field) and not field.description
    ] == []


def test_a_row_tells_type_bounds_default_unit_and_source():
    assert (
        "| `batch_size` | integer; ≥ 1 | `256` | images | Images per training step, over all processes. "
        "| paper, section 3 |" in render().splitlines()
    )


def test_every_row_of_a_table_has_six_cells():
    rows = [line for line in render().splitlines() if line.startswith("| ")]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {7}
