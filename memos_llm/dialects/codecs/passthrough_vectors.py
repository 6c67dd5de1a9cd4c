"""Read embeddings that the client gets as they are, or in order and cut to the length that it asked for."""

from typing import Any

import msgspec
from msgspec import Raw, Struct

from memos_llm.core.call import Call, Frame, Wire
from memos_llm.core.decoding import FAILURES
from memos_llm.dialects.codecs import vectors, vectors_found
from memos_llm.dialects.codecs.decoder import USAGE, WHOLE, counted, failed, malformed
from memos_llm.dialects.codecs.echo import ModelEcho
from memos_llm.dialects.codecs.repairs import is_set
from memos_llm.dialects.codecs.vectors_found import ABSENT
from memos_llm.dialects.jsons import decode_as


class _Usage(Struct):
    prompt_tokens: float | None = None


class _Answer(Struct):
    """What of an embeddings answer says that it is one; `prompt_eval_count` is Ollama's, `usage` OpenAI's."""

    model: str | None = None
    data: Raw = ABSENT
    embeddings: Raw = ABSENT
    embedding: Raw = ABSENT
    usage: _Usage | None = None
    prompt_eval_count: float | None = None
    error: Any = None


_answer = msgspec.json.Decoder(_Answer).decode


class EmbeddingsReader:
    """Answers of the three embeddings wires. Every vector is looked at, and none is changed that need not be.

    Args:
        dimensions: how long the vectors of an OpenAI answer are to be; 0 or less: as long as they are.
    """

    def __init__(self, call: Call, *, dimensions: int = 0) -> None:
        self._call = call
        self._dimensions = dimensions

    def whole(self, body: bytes) -> Frame:
        try:
            answer = _answer(body)
        except FAILURES as error:
            raise malformed("not-json") from error
        if answer.error is not None:
            raise failed(answer.error, "error-body")
        order = self._checked(answer)
        tokens = answer.usage.prompt_tokens if answer.usage else answer.prompt_eval_count
        usage = counted(tokens, None)
        caller = self._call.model
        named = body if not answer.model or answer.model == caller else ModelEcho(caller).rewrite(body, answer.model)
        if order and (self._dimensions > 0 or order != sorted(order)):
            named = _arranged(named, order, self._dimensions)
        return Frame(named, WHOLE | (USAGE if usage else 0), usage)

    def _checked(self, answer: _Answer) -> list[int]:
        """Where on OpenAI's wire the inputs' vectors stand.

        Raises:
            AttemptFailed: `malformed`: it is not a vector for each input.
        """
        wire, count = self._call.wire, vectors_found.asked(self._call)
        if wire is Wire.OPENAI_EMBEDDINGS:
            items = vectors_found.items(answer.data, count)
            order = vectors_found.order(items, count)
            vectors_found.of_one_length([self._length(item.embedding) for item in items])
            return order
        raw = answer.embedding if wire is Wire.OLLAMA_EMBEDDINGS else answer.embeddings
        if bytes(raw) == b"null":
            raise malformed("no-vectors")
        if count != 0:  # else it was to load the model
            rows = [raw] if wire is Wire.OLLAMA_EMBEDDINGS else vectors_found.rows(raw, count)
            vectors_found.of_one_length([len(vectors_found.numbers(row)) for row in rows])
        return []

    def _length(self, raw: Raw) -> int:
        """Base64 only for who asked for it; numbers do for everybody, an older Ollama knows nothing else."""
        head = self._call.head
        if not bytes(raw).startswith(b'"'):
            return len(vectors_found.numbers(raw))
        if bytes(head.get("encoding_format", b"")).lower() != b'"base64"':
            raise malformed("vectors")
        ours = not (is_set(head, "embed_dtype") or is_set(head, "endianness"))
        return len(vectors_found.packed(raw) if ours else vectors_found.packed_otherwise(raw))


def _arranged(body: bytes, order: list[int], dimensions: int) -> bytes:
    """In the order of the inputs, and cut."""
    try:
        document = decode_as(body, dict[str, Raw])
        found = decode_as(document["data"], list[dict[str, Raw]])
        items = [found[at] for at in order]
        for item in items if dimensions > 0 else ():
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
