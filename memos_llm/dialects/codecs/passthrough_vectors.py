"""Read embeddings that the client gets as they are, or cut to the length that it asked for."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from memos_llm.core.call import Frame
from memos_llm.dialects.codecs import vectors
from memos_llm.dialects.codecs.decoder import USAGE, WHOLE, counted, failed, malformed
from memos_llm.dialects.codecs.echo import ModelEcho
from memos_llm.dialects.jsons import FAILURES, decode_as


class _Usage(Struct):
    prompt_tokens: float | None = None


class _Answer(Struct):
    """What of an embeddings answer says that it is one; `prompt_eval_count` is Ollama's, `usage` OpenAI's."""

    model: str | None = None
    data: list[Raw] | None = None
    embeddings: list[Raw] | None = None
    embedding: Raw = Raw(b"null")  # msgspec takes `Raw | None` for null alone
    usage: _Usage | None = None
    prompt_eval_count: float | None = None
    error: Any = None


_answer = msgspec.json.Decoder(_Answer).decode


class EmbeddingsReader:
    """Answers of the three embeddings wires.

    Args:
        caller: the model's name as the caller spelt it.
        dimensions: how long the vectors of an OpenAI answer are to be; 0 or less: as long as they are.
    """

    def __init__(self, caller: str, *, dimensions: int = 0) -> None:
        self._caller = caller
        self._echo = ModelEcho(caller)
        self._dimensions = dimensions

    def whole(self, body: bytes) -> Frame:
        try:
            answer = _answer(body)
        except FAILURES as error:
            raise malformed("not-json") from error
        if answer.error is not None:
            raise failed(answer.error, "error-body")
        if answer.data is None and answer.embeddings is None and bytes(answer.embedding) == b"null":
            raise malformed("no-vectors")
        tokens = answer.usage.prompt_tokens if answer.usage else answer.prompt_eval_count
        usage = counted(tokens, None)
        named = body if not answer.model or answer.model == self._caller else self._echo.rewrite(body, answer.model)
        if self._dimensions > 0 and answer.data is not None:
            named = _cut(named, self._dimensions)
        return Frame(named, WHOLE | (USAGE if usage else 0), usage)


def _cut(body: bytes, dimensions: int) -> bytes:
    try:
        document = decode_as(body, dict[str, Raw])
        items = decode_as(document["data"], list[dict[str, Raw]])
        for item in items:
            item["embedding"] = _shortened(item["embedding"], dimensions)
    except (KeyError, ValueError, OverflowError) as error:
        raise malformed("vectors") from error
    document["data"] = Raw(msgspec.json.encode(items))
    return msgspec.json.encode(document)


def _shortened(raw: Raw, dimensions: int) -> Raw:
    """In the encoding that it came in; a vector that is short enough keeps its bytes."""
    encoded = decode_as(raw, list[float] | str)  # type: ignore[arg-type]  # a union is no class, and as good
    vector = vectors.from_base64(encoded) if isinstance(encoded, str) else encoded
    if len(vector) <= dimensions:
        return raw
    short = vectors.cut(vector, dimensions)
    return Raw(msgspec.json.encode(vectors.to_base64(short) if isinstance(encoded, str) else short))
