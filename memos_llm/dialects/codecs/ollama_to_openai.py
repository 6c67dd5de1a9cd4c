"""The codec from Ollama's native wires to vLLM's OpenAI wires."""

import time
from collections.abc import Callable

from memos_llm.core.call import Call, Target, Wire, WireRequest
from memos_llm.core.decision import Offer
from memos_llm.core.ports import Clock, Decoder
from memos_llm.dialects.codecs import ollama_request
from memos_llm.dialects.codecs.decoder import StreamDecoder, WholeDecoder
from memos_llm.dialects.codecs.ollama_response import NativeReader
from memos_llm.dialects.framing import SseFramer


class OllamaToOpenAI:
    """Stateless; the clocks (monotonic seconds, Unix nanoseconds) are passed in."""

    features = ollama_request.FEATURES

    def __init__(self, clock: Clock = time.monotonic, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock = clock
        self._now_ns = now_ns

    def upstream(self, call: Call) -> Wire:
        return ollama_request.upstream(call)

    def request(self, call: Call, target: Target, offer: Offer) -> tuple[WireRequest, tuple[str, ...]]:
        return ollama_request.translate(call, target, offer)

    def decoder(self, call: Call, target: Target) -> Decoder:
        reader = NativeReader(call, target, self._clock, self._now_ns)
        return StreamDecoder(SseFramer(), reader) if call.stream else WholeDecoder(reader.whole)
