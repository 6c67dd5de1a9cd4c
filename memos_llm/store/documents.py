"""What every store keeps, in what form, and the rules that hold whatever the store.

Everything is one JSON document per row; one schema number (`flags.SCHEMA`) stands on everything stored. A document
of a newer schema is read when it still can be and never replaced.
"""

from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from memos_llm.core.commands import Audit, Incident
from memos_llm.core.decoding import FAILURES
from memos_llm.core.errors import Refused, StoreUnreachable
from memos_llm.core.flags import SCHEMA, Flags
from memos_llm.core.ports import Instance
from memos_llm.core.verdicts import Evidence

T = TypeVar("T")

LIVE_S = 5.0  # an instance is live when its last heartbeat is younger than this
FORGET_S = 3600.0  # and its row is removed when it is older than this

_flags = msgspec.json.Decoder(Flags)
_audit = msgspec.json.Decoder(Audit)
_incident = msgspec.json.Decoder(Incident)
_evidence = msgspec.json.Decoder(Evidence)
_dead = msgspec.json.Decoder(tuple[str, ...])
_encode = msgspec.json.Encoder().encode


def encode(document: Flags | Audit | Incident | Evidence | Sequence[str]) -> bytes:
    return _encode(document)


def decode_flags(data: bytes, schema: int = SCHEMA) -> Flags:
    """The flags, of `schema` as the store has it.

    Raises:
        StoreUnreachable: unreadable, because it is newer than we are or because it is damaged.
    """
    try:
        return _flags.decode(data)
    except FAILURES as error:
        if schema > SCHEMA:
            raise StoreUnreachable(f"the store cannot be read: {newer(schema)}") from error
        raise StoreUnreachable("the flags in the store are damaged: restore the store from a backup") from error


def decode_history(rows: Iterable[bytes]) -> tuple[Audit, ...]:
    """Raises:
    StoreUnreachable: an entry is damaged.
    """
    return _decode_all(rows, _audit)


def decode_incident(row: bytes, noted: Iterable[bytes]) -> Incident:
    """With the evidence that was added to it, in that order.

    Raises:
        StoreUnreachable: it is damaged.
    """
    (incident,) = _decode_all((row,), _incident)
    return with_evidence(incident, _decode_all(noted, _evidence))


def decode_dead(row: bytes | None) -> tuple[str, ...] | None:
    """Raises:
    StoreUnreachable: the list is damaged.
    """
    return None if row is None else _decode_all((row,), _dead)[0]


def with_evidence(incident: Incident, noted: tuple[Evidence, ...]) -> Incident:
    """The incident's own first."""
    return replace(incident, evidence=incident.evidence + noted) if noted else incident


def newer(schema: int) -> str:
    """Why a store of a newer schema is not written to, and what to do."""
    return f"a newer memos_llm wrote it (schema {schema}, this version knows {SCHEMA}): upgrade this one"


def check_schema(schema: int) -> None:
    """Raises:
    Refused: the stored schema is newer than ours, so that we only read.
    """
    if schema > SCHEMA:
        raise Refused(f"the store is read-only for this version: {newer(schema)}")


def check_commit(expected: int, flags: Flags, audit: Audit) -> None:
    """Revisions only grow, and a history entry belongs to its revision.

    Raises:
        ValueError: the caller's mistake.
    """
    if flags.revision <= expected:
        raise ValueError(f"revision {flags.revision} cannot replace revision {expected}")
    if audit.revision != flags.revision:
        raise ValueError(f"the history entry is of revision {audit.revision}, the flags of {flags.revision}")


def is_live(instance: Instance, now: float) -> bool:
    return now - instance.at < LIVE_S


def _decode_all(rows: Iterable[bytes], decoder: msgspec.json.Decoder[T]) -> tuple[T, ...]:
    try:
        return tuple(decoder.decode(row) for row in rows)
    except FAILURES as error:
        raise StoreUnreachable("the store's history is damaged, or a newer memos_llm wrote it") from error
