"""`POST /api/pull` of a name that is known here: nothing to do, and clients that pull before they ask go on."""

from msgspec import Raw, Struct

from memos_llm.core.errors import BadRequest
from memos_llm.dialects.jsons import decode_as, decode_optional, go_json
from memos_llm.gateway.asgi import Receive

STAGES = ("pulling manifest", "success")


class Pull(Struct, frozen=True):
    """What is to be pulled, and whether its progress is streamed (it is unless told otherwise)."""

    name: str
    stream: bool


def asked(body: bytes) -> Pull:
    """Raises:
    BadRequest: the body cannot be understood.
    """
    if not body:
        raise BadRequest("missing request body")
    try:
        head = {key.lower(): value for key, value in decode_as(body, dict[str, Raw]).items()}  # Go folds them, too
        model, name = (decode_as(head.get(key, Raw(b'""')), str) for key in ("model", "name"))
        stream = decode_optional(head.get("stream", Raw(b"null")), bool)
    except ValueError as error:
        raise BadRequest(str(error)) from None
    if not (model or name):
        raise BadRequest("model is required")
    return Pull(model or name, stream is not False)


def done(pull: Pull) -> tuple[bytes, bytes]:
    """Media type and body of a pull that had nothing to do (Ollama's first and last record)."""
    if pull.stream:
        return b"application/x-ndjson", b"".join(go_json({"status": stage}) + b"\n" for stage in STAGES)
    return b"application/json", go_json({"status": STAGES[-1]})


def replay(body: bytes) -> Receive:
    """A body that was read already, to be read again."""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
