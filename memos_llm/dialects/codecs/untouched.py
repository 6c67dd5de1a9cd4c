"""The codec of what is not read: bytes in, the same bytes out, whatever they are."""

from collections.abc import Sequence

from memos_llm.core.call import Call, Frame, Target, WireRequest
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.ports import Decoder
from memos_llm.dialects.codecs.decoder import CONTENT, END, FINISH


class Untouched:
    """Passes a request and its answer on."""

    def request(self, call: Call, target: Target, offer: Offer) -> tuple[WireRequest, tuple[str, ...]]:
        return WireRequest(call.id, call.wire, target.model, call.body, call.stream, passage=call.passage), ()

    def decoder(self, call: Call, target: Target) -> Decoder:
        return _Bytes()


class _Bytes:
    failure: AttemptFailed | None = None

    def feed(self, chunk: bytes) -> Sequence[Frame]:
        return (Frame(chunk, CONTENT),)

    def eof(self) -> Sequence[Frame]:
        return (Frame(b"", FINISH | END),)
