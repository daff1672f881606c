"""Problems that pydantic finds in a config, each as one line in the user's words."""

from __future__ import annotations

import difflib
import json
import re
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError

from augbench.config.base import Section
from augbench.errors import UserError
from augbench.texts import one_line


class ConfigError(UserError):
    """One or more problems in the config, with one line for each."""

    def __init__(self, problems: list[UserError]) -> None:
        self.problems = problems
        self.where, self.found, self.allowed = problems[0].where, problems[0].found, problems[0].allowed
        Exception.__init__(self, "\n".join(map(str, problems)))


@dataclass(frozen=True)
class _KeyPlace:
    """Place of a problem: the key as the user writes it, its section, and the type allowed there.

    ``value`` is the location of the value that the problem is part of: it differs from the problem's own in a
    value of several plain types, of which pydantic reports each.
    """

    where: str
    section: type[Section] | None
    annotation: Any
    value: tuple[str | int, ...]


def _locate(location: Sequence[str | int], root: type[Section]) -> _KeyPlace:
    """Follow pydantic's ``location`` through the schema; drop tags of unions, which users do not write."""
    names: list[str] = []
    section: type[Section] | None = None
    current: Any = root
    value = tuple(location)
    for number, step in enumerate(location):
        if (mixed := _text_or_section(current)) is not None:
            value = value[:number]
            current, is_label = _of_mixed(current, mixed, step)
            if is_label:
                continue
        elif plain := _plain_types(current):
            value = value[:number]
            if number + 1 < len(location):  # into a list, the only type that has parts
                current = next(option for option in plain if get_origin(_required(option)) is tuple)
            continue
        options = section_options(current)
        if len(options) > 1 and (tagged := [option for option in options if step in _tags(option)]):
            current = tagged[0]
            continue
        if step == "[key]":
            continue
        names.append(one_line(str(step)))
        section = options[0] if len(options) == 1 else None
        if section is not None:
            field = section.model_fields.get(str(step))
            current = field.annotation if field else None
        else:
            inner = get_args(_required(current))
            current = inner[-1] if get_origin(_required(current)) is dict else inner[0] if inner else None
    return _KeyPlace(".".join(names) or "config", section, current, value)


def _plain_types(annotation: Any) -> list[Any]:
    """Types of a value that may be of several, none of which is a section or null; else none."""
    annotation = _required(annotation)
    if get_origin(annotation) not in (Union, types.UnionType) or section_options(annotation):
        return []
    return [option for option in get_args(annotation) if option is not type(None)]


def _text_or_section(annotation: Any) -> type[Section] | None:
    """The section of a value that may be text instead, or a list of both; None for any other type."""
    annotation = _required(annotation)
    if get_origin(annotation) not in (Union, types.UnionType):
        return None
    sections = [option for option in get_args(annotation) if section_options(option) == [option]]
    texts = [option for option in get_args(annotation) if get_origin(_required(option)) is Literal]
    return sections[0] if len(sections) == 1 and texts else None


def _of_mixed(annotation: Any, section: type[Section], step: str | int) -> tuple[Any, bool]:
    """The option of a mixed type that a location's step leads into, and whether it only names the option."""
    lists = [option for option in get_args(_required(annotation)) if get_origin(_required(option)) is tuple]
    if isinstance(step, int):
        return lists[0] if lists else annotation, False
    if step in section.model_fields:
        return section, False
    if step == section.__name__:
        return section, True
    return lists[0] if lists and step.startswith("tuple") else annotation, True


def _tags(section: type[Section]) -> tuple[str, ...]:
    for name in ("kind", "mechanism"):
        if name in section.model_fields:
            return get_args(section.model_fields[name].annotation)
    return ()


def _required(annotation: Any) -> Any:
    """``annotation`` without ``| None`` and constraints."""
    if get_origin(annotation) is Annotated:
        return _required(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        options = [option for option in get_args(annotation) if option is not type(None)]
        return _required(options[0]) if len(options) == 1 else annotation
    return annotation


def section_options(annotation: Any) -> list[type[Section]]:
    """Sections that a value of this type can be: none for a plain value, several for a union."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return [annotation]
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return [option for inner in get_args(annotation) for option in section_options(inner)]
    return []


def _expected(annotation: Any) -> str:
    """Describe the allowed kind of value in the user's words."""
    if (mixed := _text_or_section(annotation)) is not None:
        texts = [
            repr(value)
            for option in get_args(_required(annotation))
            if get_origin(option) is Literal
            for value in get_args(option)
        ]
        lists = [option for option in get_args(_required(annotation)) if _required(option) is not option]
        more = [", or a list of these"] if lists else []
        return ", ".join([*texts, f"or a mapping with the key {', '.join(mixed.model_fields)}"]) + "".join(
            more
        )
    if plain := _plain_types(annotation):
        return ", or ".join(f"{_expected(option)}{_bound(option)}" for option in plain)
    annotation = _required(annotation)
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)
        return "a list" if ... in inner else f"a list of {len(inner)} values, each {_expected(inner[0])}"
    if get_origin(annotation) is dict or section_options(annotation):
        return "a mapping"
    if get_origin(annotation) is Literal:
        return ", ".join(map(repr, get_args(annotation)))
    return {int: "a whole number", float: "a number", str: "text", bool: "true or false"}.get(
        annotation, "another kind of value"
    )


def _bound(annotation: Any) -> str:
    """The least value that a number's constraints allow, in words; empty if there is none."""
    constraints = [part for given in get_args(annotation)[1:] for part in getattr(given, "metadata", ())]
    return next((f" of at least {part.ge:g}" for part in constraints if hasattr(part, "ge")), "")


def shown(value: Any) -> str:
    """Show a value on one short line; null, true and false as YAML spells them."""
    text = " ".join((repr(value) if value not in (None, True, False) else json.dumps(value)).split())
    if len(text) <= 80:
        return text
    return "does not fit" if isinstance(value, Mapping) else f"{text[:77]}..."


def _instead_of(value: Any, annotation: Any) -> str:
    """Say what is allowed instead of a value of the wrong kind, and why YAML read the value as text."""
    expected = _expected(annotation)
    if not isinstance(value, str) or expected not in ("a number", "a whole number"):
        return f"allowed: {expected}"
    if re.fullmatch(r"[-+]?[0-9.]+[eE][-+]?[0-9]+", value):
        mantissa, exponent = re.split("[eE]", value)
        sign = "" if exponent[0] in "+-" else "+"
        written = f"{mantissa}{'' if '.' in mantissa else '.0'}e{sign}{exponent}"
        return f"allowed: {expected} (YAML reads {value} as text; write {written})"
    quoted = re.fullmatch(r"[-+]?[0-9]*[.]?[0-9]+", value)
    return f"allowed: {expected}{' without quotes' if quoted else ''}"


_WRONG_KINDS = ("_type", "_parsing", "int_from_float", "too_long")


def describe(error: ValidationError, root: type[Section]) -> Iterator[UserError]:
    """Yield one error per problem that pydantic found in a config whose schema is ``root``."""
    # lists of fixed length that have been reported: pydantic reports every missing item
    incomplete: set[str] = set()
    deepest: dict[tuple[str | int, ...], int] = {}
    for problem in error.errors():
        of = _locate(problem["loc"], root).value
        deepest[of] = max(deepest.get(of, 0), len(problem["loc"]))
    for problem in error.errors():
        location, kind = problem["loc"], problem["type"]
        value, context = problem["input"], problem.get("ctx", {})
        place = _locate(location, root)
        if deepest.get(place.value) != len(location):
            continue  # of a value of several types, one problem is enough
        if place.value != location:
            del deepest[place.value]
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        if kind == "extra_forbidden":
            names = sorted(place.section.model_fields) if place.section else []
            close = difflib.get_close_matches(str(location[-1]), names, 1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            yield UserError(place.where, "unknown key", f"{hint}allowed here: {', '.join(names)}")
        elif kind == "missing" and isinstance(location[-1], int):
            place = _locate(location[:-1], root)
            if place.where not in incomplete:
                incomplete.add(place.where)
                yield UserError(place.where, shown(value), f"allowed: {_expected(place.annotation)}")
        elif kind == "missing":
            yield UserError(place.where, "missing", "this key is required")
        elif kind == "invalid_key":
            yield UserError(place.where, f"a key that is not text: {value!r}", "allowed: keys that are text")
        elif kind in ("union_tag_invalid", "union_tag_not_found"):
            tag = str(context["discriminator"]).strip("'")
            found = value.get(tag) if isinstance(value, Mapping) else value
            allowed = ", ".join(
                repr(name) for option in section_options(place.annotation) for name in _tags(option)
            )
            yield UserError(
                f"{place.where}.{tag}", "missing" if found is None else shown(found), f"allowed: {allowed}"
            )
        elif kind == "value_error":
            yield _from_validator(location, value, message, root)
        elif kind == "string_too_long":
            yield UserError(place.where, shown(value), f"allowed: at most {context['max_length']} characters")
        elif (
            kind.endswith(_WRONG_KINDS)
            or len(place.value) == len(location) - 1
            or _text_or_section(place.annotation) is not None
        ):
            yield UserError(place.where, shown(value), _instead_of(value, place.annotation))
        elif kind == "too_short" and value:
            continue  # its entries are the problem, and are reported
        elif kind == "too_short":
            yield UserError(place.where, shown(value), "allowed: at least 1 entry")
        elif kind == "string_pattern_mismatch":
            yield UserError(place.where, shown(value), f"allowed: text that matches {context['pattern']}")
        else:
            yield UserError(place.where, shown(value), f"allowed: {message}")


def _from_validator(
    location: Sequence[str | int], value: Any, message: str, root: type[Section]
) -> UserError:
    """Turn the message of a section's validator into an error; ``key: reason`` concerns one of its keys."""
    name, separator, reason = message.partition(": ")
    inner, steps, rest = value, list(location), name
    while rest:
        # a name may contain dots
        step = rest if isinstance(inner, Mapping) and rest in inner else rest.partition(".")[0]
        if separator and isinstance(inner, Mapping) and step in inner:
            inner = inner[step]
            steps.append(step)
        elif separator and isinstance(inner, list) and step.isdigit() and int(step) < len(inner):
            inner = inner[int(step)]
            steps.append(int(step))
        else:
            return UserError(_locate(location, root).where, shown(value), message)
        rest = rest[len(step) + 1 :]
    return UserError(_locate(steps, root).where, shown(inner), reason)
