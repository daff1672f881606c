"""The manual of the config file, ``docs/configuration.md``, made from the schema alone.

``python -m augbench.config.manual`` prints it as Markdown, and ``make docs`` writes it to its file. A test
fails if the file and the schema differ.
"""

from __future__ import annotations

import inspect
import math
import re
import types
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic.fields import FieldInfo

from augbench.config.base import Section
from augbench.config.problems import section_options
from augbench.config.study import Study

INTRODUCTION = """\
# Configuration

<!-- Made from src/augbench/config by `make docs`; change it there. -->

A study is one YAML file. This page lists every key that it may contain. Any other key is an error, reported
before any job starts, together with the most similar key. `required` marks keys without a default. Further
YAML files are merged over the first one, mapping by mapping; `methods.<name>: null` in one of them removes
that row. In a path, `~` is the home folder. The column *source* says where a default comes from; "paper" is
Burg et al., 2023 (see `CITATION.cff`).
"""


def sections() -> list[tuple[str, type[Section]]]:
    """List every section of the schema with the path of its keys, in the order of the manual.

    A section that several kinds of a row have is listed once.
    """
    found: list[tuple[str, type[Section]]] = []

    def visit(prefix: str, section: type[Section]) -> None:
        if (prefix, section) in found:  # kinds of a section may share it
            return
        found.append((prefix, section))
        for name, field in section.model_fields.items():
            annotation = field.annotation
            path = f"{prefix}.{name}" if prefix else name
            if get_origin(annotation) is dict:
                annotation, path = get_args(annotation)[1], f"{path}.<name>"
            elif get_origin(annotation) is tuple:
                annotation = get_args(annotation)[0]
            for option in section_options(annotation):
                visit(path, option)

    visit("", Study)
    return found


def describe_type(field: FieldInfo) -> str:
    """Describe the type of a key as the manual shows it."""

    def show(annotation: Any) -> str:
        origin, arguments = get_origin(annotation), get_args(annotation)
        if origin is Annotated:
            return show(arguments[0])
        if origin is Literal:
            return " \\| ".join(str(value) for value in arguments)
        if origin in (Union, types.UnionType):
            return " \\| ".join("null" if option is type(None) else show(option) for option in arguments)
        if origin is tuple:
            return f"list of {show(arguments[0])}"
        if origin is dict:
            return f"mapping to {show(arguments[1])}"
        if isinstance(annotation, type) and issubclass(annotation, Section):
            return "section"
        return {"str": "text", "int": "integer", "float": "number", "bool": "true \\| false"}.get(
            getattr(annotation, "__name__", ""), str(annotation)
        )

    return show(field.annotation)


def is_tag(field: FieldInfo) -> bool:
    """Whether a key only names its section's kind (``kind: image_folder``): required, one allowed value."""
    return (
        get_origin(field.annotation) is Literal
        and len(get_args(field.annotation)) == 1
        and field.is_required()
    )


def render() -> str:
    """Render the whole manual as Markdown."""
    return "\n".join([INTRODUCTION, *(_render_section(path, section) for path, section in sections())])


def _render_section(path: str, section: type[Section]) -> str:
    tags = [
        f"`{name}: {get_args(field.annotation)[0]}`"
        for name, field in section.model_fields.items()
        if is_tag(field)
    ]
    heading = ", ".join([f"`{path}`" if path else "Top level", *tags])
    rows = [_row(name, field) for name, field in section.model_fields.items()]
    return "\n".join(
        [
            f"## {heading}",
            "",
            (inspect.getdoc(section) or "").replace("``", "`"),
            "",
            "| key | type | default | unit | description | source |",
            "| --- | --- | --- | --- | --- | --- |",
            *(f"| {' | '.join(row)} |" for row in rows),
            "",
        ]
    )


def _row(name: str, field: FieldInfo) -> list[str]:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    kind = re.sub(r"section( \\\| section)+", "section", describe_type(field))
    description = "Names the kind of this section." if is_tag(field) else field.description or ""
    texts = [description, str(extra.get("source", ""))]
    return [
        f"`{name}`",
        "; ".join([kind, *_bounds(field)]),
        default_text(field),
        str(extra.get("unit", "")),
        *(text.replace("|", r"\|") for text in texts),
    ]


def default_text(field: FieldInfo) -> str:
    """Return the default of a key as the manual shows it."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "that section's defaults" if isinstance(value, Section) else f"`{value_text(value)}`"


def value_text(value: Any) -> str:
    """Return a value as YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    return yaml.safe_dump([plain], default_flow_style=True, sort_keys=False, width=math.inf).strip()[1:-1]


def _bounds(field: FieldInfo) -> list[str]:
    """List the bounds on a value beyond its type, as phrases."""
    return [*_constraints(field.metadata), *_inner_bounds(field.annotation)]


def _inner_bounds(annotation: Any) -> Iterator[str]:
    """Yield the bounds inside a type: of a union's options, and of a list's or mapping's values."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        yield from _inner_bounds(arguments[0])
        for constraint in arguments[1:]:
            yield from _constraints(
                constraint.metadata if isinstance(constraint, FieldInfo) else [constraint]
            )
    elif origin in (Union, types.UnionType):
        for option in arguments:
            yield from _inner_bounds(option)
    elif origin is tuple:
        if arguments[-1] is not Ellipsis:
            yield f"{len(arguments)} values"
        yield from (f"each {bound}" for bound in _inner_bounds(arguments[0]))
    elif origin is dict:
        if get_origin(arguments[0]) is Literal:
            yield "of " + ", ".join(f"`{key}`" for key in get_args(arguments[0]))
        yield from (f"each {bound}" for bound in _inner_bounds(arguments[1]))


def _constraints(metadata: Iterable[Any]) -> Iterator[str]:
    for item in metadata:
        match item:
            case annotated_types.Ge():
                yield f"≥ {item.ge}"
            case annotated_types.Gt():
                yield f"> {item.gt}"
            case annotated_types.Le():
                yield f"≤ {item.le}"
            case annotated_types.Lt():
                yield f"< {item.lt}"
            case annotated_types.MultipleOf():
                yield f"a multiple of {item.multiple_of}"
            case annotated_types.MinLen():
                yield f"at least {item.min_length}"
            case annotated_types.MaxLen():
                yield f"at most {item.max_length}"
            case _ if getattr(item, "pattern", None):
                yield f"matches `{item.pattern}`"


if __name__ == "__main__":
    print(render(), end="")
