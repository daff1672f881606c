"""Common parts of all config sections: the declaration of a key, and types that occur everywhere."""

from __future__ import annotations

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

SLUG = r"^[a-z0-9][a-z0-9_]*$"
LONGEST_NAME = 200  # characters of a study's or a row's name, which file names contain


def _not_empty(path: str) -> str:
    if not path.strip():
        raise ValueError("allowed: a path that is not empty")
    return path


WrittenPlace = Annotated[str, AfterValidator(_not_empty)]  # a path as it is written, in which ~ stays
Place = Annotated[WrittenPlace, AfterValidator(os.path.expanduser)]  # a path, in which ~ is the home folder
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


def key(default: Any, description: str, unit: str = "", source: str = "", **constraints: Any) -> Any:
    """Declare a config key with its description, unit and source, which the manual shows."""
    return Field(
        default, description=description, json_schema_extra={"unit": unit, "source": source}, **constraints
    )


class Section(BaseModel):
    """A part of the config. Unknown keys are errors, values are not converted, and sections are immutable.

    Numbers are finite: YAML's ``.inf`` and ``.nan`` are errors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=(), allow_inf_nan=False)
