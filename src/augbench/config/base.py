"""Common parts of all config sections: the declaration of a key, and types that occur everywhere."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

SLUG = r"^[a-z0-9][a-z0-9_]*$"
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


def key(default: Any, description: str, unit: str = "", source: str = "", **constraints: Any) -> Any:
    """Declare a config key with its description, unit and source, which the manual shows."""
    return Field(
        default, description=description, json_schema_extra={"unit": unit, "source": source}, **constraints
    )


class Section(BaseModel):
    """A part of the config. Unknown keys are errors, values are not converted, and sections are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
