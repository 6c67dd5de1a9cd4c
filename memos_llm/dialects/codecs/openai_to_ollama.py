"""The codec from OpenAI's chat wire to Ollama's native one."""

import time
from collections.abc import Callable

from memos_llm.core.call import Call, Feature, Target, Wire, WireRequest
from memos_llm.core.decision import Offer
from memos_llm.core.ports import Decoder
from memos_llm.dialects.codecs import openai_request
from memos_llm.dialects.codecs.decoder import StreamDecoder, WholeDecoder
from memos_llm.dialects.codecs.openai_response import OpenAIWriter
from memos_llm.dialects.framing import NdjsonFramer


class OpenAIToOllama:
    """Stateless; the clock (Unix nanoseconds) is passed in."""

    features = Feature.MANY_STOPS | Feature.AUDIO

    def __init__(self, now_ns: Callable[[], int] = time.time_ns) -> None:
        self._now_ns = now_ns

    def upstream(self, call: Call) -> Wire:
        return Wire.OLLAMA_CHAT

    def request(self, call: Call, target: Target, offer: Offer) -> tuple[WireRequest, tuple[str, ...]]:
        return openai_request.translate(call, target, offer)

    def decoder(self, call: Call, target: Target) -> Decoder:
        writer = OpenAIWriter(call, self._now_ns)
        return StreamDecoder(NdjsonFramer(), writer) if call.stream else WholeDecoder(writer.whole)
