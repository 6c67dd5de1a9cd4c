"""Which codec carries a call to a target: the same wire if the target speaks it, else a translation."""

from collections.abc import Mapping
from typing import Protocol

from memos_llm.core.call import Call, Feature, Wire
from memos_llm.core.decision import Offer
from memos_llm.core.ports import Codec, Codecs
from memos_llm.dialects.codecs.embed_to_openai import EmbedToOpenAI
from memos_llm.dialects.codecs.identity import Identity
from memos_llm.dialects.codecs.ollama_to_openai import OllamaToOpenAI
from memos_llm.dialects.codecs.openai_to_ollama import OpenAIToOllama
from memos_llm.dialects.codecs.untouched import Untouched


class Translation(Codec, Protocol):
    """A codec between different wires.

    Attributes:
        features: what it can carry.
    """

    features: Feature

    def upstream(self, call: Call) -> Wire:
        """The back-end wire that a call is translated to."""
        ...


Translations = Mapping[Wire, tuple[Translation, ...]]
"""By client wire, the preferred one first."""


class Table:
    """A table of codecs.

    Args:
        for_typed: translations that carry more than the same wire would, for answers that only we read.
    """

    def __init__(self, identity: Codec, translations: Translations, for_typed: Translations) -> None:
        self._identity, self._untouched = identity, Untouched()
        self._translations, self._for_typed = translations, for_typed

    def find(self, call: Call, offer: Offer) -> Codec | None:
        if call.wire is Wire.PASSTHROUGH:
            return self._untouched if call.wire in offer.wires else None
        if call.needs and call.needs & ~offer.features:
            return None
        if call.typed and (richer := self._fitting(self._for_typed, call, offer)) is not None:
            return richer
        if call.wire in offer.wires:
            return self._identity
        return self._fitting(self._translations, call, offer)

    def _fitting(self, table: Translations, call: Call, offer: Offer) -> Codec | None:
        fitting = (
            translation
            for translation in table.get(call.wire, ())
            if translation.upstream(call) in offer.wires and not call.needs & ~translation.features
        )
        return next(fitting, None)


_NATIVE = OllamaToOpenAI()
_EMBED = EmbedToOpenAI()
_TO_OLLAMA = OpenAIToOllama()

CODECS: Codecs = Table(
    Identity(),
    {
        Wire.OLLAMA_CHAT: (_NATIVE,),
        Wire.OLLAMA_GENERATE: (_NATIVE,),
        Wire.OPENAI_CHAT: (_TO_OLLAMA,),
        Wire.OLLAMA_EMBED: (_EMBED,),
        Wire.OLLAMA_EMBEDDINGS: (_EMBED,),
    },
    for_typed={Wire.OPENAI_CHAT: (_TO_OLLAMA,)},
)
