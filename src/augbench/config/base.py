"""Common parts of all config sections: the declaration of a key, and types that occur everywhere."""

from __future__ import annotations

import os
from functools import cache
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializationInfo,
    SerializerFunctionWrapHandler,
    model_serializer,
)

SLUG = r"^[a-z0-9][a-z0-9_]*$"
COMPLETE = "complete"
LONGEST_NAME = 200  # characters of a study's or a row's name, which file names contain


def _not_empty(path: str) -> str:
    if not path.strip():
        raise ValueError("allowed: a path that is not empty")
    return path


WrittenPlace = Annotated[str, AfterValidator(_not_empty)]  # a path as it is written, in which ~ stays
Place = Annotated[WrittenPlace, AfterValidator(os.path.expanduser)]  # a path, in which ~ is the home folder
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


def key(
    default: Any, description: str, unit: str = "", source: str = "", new: bool = False, **constraints: Any
) -> Any:
    """Declare a config key with its description, unit and source, which the manual shows.

    A key that is ``new`` since version 0.1 is in a dump of its section only if it is set, or if the dump's
    context is :data:`COMPLETE`. Recipes are made of dumps, and a finished study keeps its recipes.
    """
    extra: dict[str, Any] = {"unit": unit, "source": source, **({"new": True} if new else {})}
    return Field(default, description=description, json_schema_extra=extra, **constraints)


@cache
def _defaults_of_new_keys(section: type[Section]) -> dict[str, Any]:
    fields = section.model_fields.items()
    return {
        name: field.default
        for name, field in fields
        if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("new")
    }


class Section(BaseModel):
    """A part of the config. Unknown keys are errors, values are not converted, and sections are immutable.

    Numbers are finite: YAML's ``.inf`` and ``.nan`` are errors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)

    @model_serializer(mode="wrap")
    def _without_new_keys(
        self, dump: SerializerFunctionWrapHandler, info: SerializationInfo
    ) -> dict[str, Any]:
        new = {} if info.context == COMPLETE else _defaults_of_new_keys(type(self))
        return {
            name: value
            for name, value in dump(self).items()
            if name not in new or getattr(self, name) != new[name]
        }
