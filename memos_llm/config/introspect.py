"""The settings as data, read off the schema: for the documentation, its test, and the words of error messages."""

import types
from collections.abc import Iterator
from functools import cache
from typing import Annotated, Any, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from memos_llm.config import schema

PLACEHOLDERS = {"providers": "<provider>", "models": "<model>", "components": "<component>", "gates": "<metric>"}

DERIVED = frozenset({"providers", "providers.<provider>.kind", "baseline"})  # filled in before the schema sees them

FILLED_UP = (schema.Limits,)  # of what these leave out something else is in force than the schema's default


class Setting(NamedTuple):
    """One setting: its dotted key (`providers.<provider>.base_url`), whether it must be given, its default."""

    key: str
    required: bool
    default: Any
    description: str


@cache
def describe_settings() -> tuple[Setting, ...]:
    """Every setting of the file, in its order; a section's own line comes before its settings'."""
    return tuple(_settings(schema.Root, ""))


def _settings(section: type[BaseModel], prefix: str) -> Iterator[Setting]:
    for name, field in section.model_fields.items():
        key = prefix + name
        inner = model_of(field.annotation)
        default = None if field.is_required() or section in FILLED_UP else field.default
        required = field.is_required() and key not in DERIVED
        yield Setting(key, required, None if inner else _plain(default), field.description or "")
        if inner is not None:
            yield from _settings(inner, f"{key}{_inside(name, field)}.")
    if section is schema.Model:
        key = f"{prefix}<provider>"
        yield Setting(key, False, None, "the provider's own name for the model, or the settings below; null: none")
        yield from _settings(schema.ModelOnProvider, f"{key}.")


def _inside(name: str, field: FieldInfo) -> str:
    kind = get_origin(_bare(field.annotation))
    return f".{PLACEHOLDERS[name]}" if kind is dict else "[]" if kind is tuple else ""


def _plain(default: Any) -> Any:
    return default.get_secret_value() if hasattr(default, "get_secret_value") else default


def _bare(annotation: Any) -> Any:
    """An annotation without its `Annotated` and `| None`."""
    if get_origin(annotation) is Annotated:
        return _bare(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return _bare(next(arm for arm in get_args(annotation) if arm is not types.NoneType))
    return annotation


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds, itself or as the items of its mapping or list."""
    bare = _bare(annotation)
    if get_origin(bare) is dict:
        return model_of(get_args(bare)[1])
    if get_origin(bare) is tuple:
        return model_of(get_args(bare)[0])
    return bare if isinstance(bare, type) and issubclass(bare, BaseModel) else None


def section_at(key: tuple[str, ...]) -> type[BaseModel] | None:
    """The section that a path of keys leads into; None when it leads nowhere known."""
    section: type[BaseModel] | None = schema.Root
    rest = list(key)
    while rest and section is not None:
        name = rest.pop(0)
        if section is schema.Model and name not in section.model_fields:
            section = schema.ModelOnProvider
            continue
        field = section.model_fields.get(name)
        section = model_of(field.annotation) if field else None
        if field is not None and get_origin(_bare(field.annotation)) in (dict, tuple) and rest:
            rest.pop(0)  # the item's own name or index
    return section
