"""The admin API's OpenAPI 3.1 document, made from the table of verbs and the structs that they read and give."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from memos_llm.core.version import VERSION
from memos_llm.operate.documents import ErrorDocument

_REF = "#/components/schemas/{name}"
_ERRORS = {
    "400": "what was sent cannot be read, or names what is not there",
    "401": "a bearer token is wanted",
    "403": "the token lacks the scope",
    "409": "refused: latched, unverified, conflict, …; nothing was changed",
    "503": "the store is unreachable; nothing was changed",
    "default": "anything else that went wrong: the status tells what kind",
}


class Operation(NamedTuple):
    """One row. `order` is the body of a POST or the query of a GET; `gives` is None for what has no struct."""

    method: str
    path: str
    scope: str
    order: type[Struct]
    gives: type[Struct] | None
    summary: str


@functools.cache
def encoded(prefix: str, operations: tuple[Operation, ...]) -> bytes:
    """The whole document as JSON; made once for all gateways of a process, since it takes a while."""
    return msgspec.json.encode(document(prefix, operations))


def document(prefix: str, operations: Sequence[Operation]) -> dict[str, Any]:
    """The whole document."""
    structs = [kind for row in operations for kind in (row.order, row.gives) if kind is not None]
    refs, components = msgspec.json.schema_components([*dict.fromkeys(structs), ErrorDocument], ref_template=_REF)
    ref_of = dict(zip([*dict.fromkeys(structs), ErrorDocument], refs, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for row in operations:
        paths.setdefault(f"{prefix}/{row.path}", {})[row.method.lower()] = _operation(row, ref_of, components)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "memos_llm admin API",
            "version": VERSION,
            "description": "Shares are fractions 0…1, times Unix seconds.",
        },
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "The admin token or an API key."}
            },
        },
        "security": [{"bearer": []}],
    }


def _operation(row: Operation, ref_of: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    name = row.path.replace("/{id}", "_by_id").replace(".", "_")
    made: dict[str, Any] = {
        "operationId": name,
        "summary": row.summary,
        "description": f"Takes the scope `{row.scope}`.",
        "responses": {"200": {"description": "done", "content": _content(row, ref_of)}} | _failures(ref_of),
    }
    fields = components[row.order.__name__]["properties"]
    required = components[row.order.__name__].get("required", [])
    parameters = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}] * ("{id}" in row.path)
    if row.method == "POST":
        made["requestBody"] = {
            "required": True,  # `{}` at least: a POST without a media type is refused
            "content": {"application/json": {"schema": ref_of[row.order]}},
        }
    else:
        parameters += [
            {"name": field, "in": "query", "required": field in required, "schema": _in_query(schema)}
            for field, schema in fields.items()
        ]
    if parameters:
        made["parameters"] = parameters
    return made


def _in_query(schema: dict[str, Any]) -> dict[str, Any]:
    """A query has no null: what may be left out is left out."""
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    return kinds[0] if len(kinds) == 1 else schema


def _content(row: Operation, ref_of: dict[Any, Any]) -> dict[str, Any]:
    if row.gives is not None:
        return {"application/json": {"schema": ref_of[row.gives]}}
    if row.path == "events":
        return {"text/event-stream": {"schema": {"type": "string"}}}
    return {"application/json": {"schema": {"type": "object"}}}


def _failures(ref_of: dict[Any, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": ref_of[ErrorDocument]}}
    return {status: {"description": why, "content": content} for status, why in _ERRORS.items()}
