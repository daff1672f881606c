"""What all sections of the config share: how a key is declared, and the kinds of value that occur everywhere."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

SLUG = r"^[a-z0-9][a-z0-9_]*$"
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]


def key(default: Any, description: str, unit: str = "", source: str = "", **constraints: Any) -> Any:
    """A config key with all that the documentation says of it."""
    return Field(
        default, description=description, json_schema_extra={"unit": unit, "source": source}, **constraints
    )


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values are not coerced between kinds, nothing changes afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())
