"""The kinds of value a setting can have: what each accepts, and the words it refuses with."""

import math
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, SecretStr, model_validator
from pydantic.types import StringConstraints

MASK = "***"


class Section(BaseModel):
    """A mapping of the file. Unknown keys are errors; one whose every line is commented out (`null`) is empty."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)

    @model_validator(mode="before")
    @classmethod
    def _commented_out(cls, value: Any) -> Any:
        return {} if value is None else value


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number, not true or false")
    return value


def _fraction(value: Any) -> float:
    text = str(_number(value)).strip()
    per_cent = text.endswith("%")
    try:
        number = float(text.removesuffix("%")) / (100 if per_cent else 1)
    except ValueError:
        raise ValueError("must be a fraction such as 0.3, or a percentage such as 30%") from None
    if not per_cent and 1 < number <= 100:
        raise ValueError(f"is a fraction from 0 to 1: for {number:g} per cent write {number / 100:g}")
    if math.isnan(number) or not 0 <= number <= 1:
        raise ValueError("is outside 0 to 1 (0% to 100%)")
    return number


def _names(value: Any) -> Any:
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return [] if value is None else value


def _masked(secret: SecretStr) -> str:
    return MASK if secret.get_secret_value() else ""


Fraction = Annotated[float, BeforeValidator(_fraction)]
Seconds = Annotated[float, BeforeValidator(_number), Field(gt=0)]
Milliseconds = Annotated[float, BeforeValidator(_number), Field(gt=0)]
Number = Annotated[float, BeforeValidator(_number)]
Count = Annotated[int, BeforeValidator(_number), Field(ge=0)]
Whole = Annotated[int, BeforeValidator(_number), Field(ge=1)]
Integer = Annotated[int, BeforeValidator(_number)]
Port = Annotated[int, BeforeValidator(_number), Field(ge=1, le=65535)]
Text = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Names = Annotated[tuple[Text, ...], BeforeValidator(_names)]
"""A list; one name, or several with commas between, will do."""
Component = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Secret = Annotated[SecretStr, PlainSerializer(_masked)]
