"""What a back end takes on its own wire and does not do, without a word. We say it: `dropped:<field>`.

The bytes stay as they are. Fields that shape no answer (`user`, `metadata`, `store`, `service_tier`, …) are not listed.
Sources: Ollama 0.33's `openai` package (0.17.4 measured), vLLM's protocol classes from 0.11 to 0.33.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

from msgspec import Raw

from memos_llm.core.call import Call, Quirk, Target, Thinking, Wire
from memos_llm.core.decision import Offer

NOTHING = frozenset({b"null", b'""', b"[]", b"{}", b"false"})


class Ignored(NamedTuple):
    """One field.

    Attributes:
        wires: where it is left out.
        harmless: the values that ask for nothing.
        words: only a value that holds one of these is left out; empty: any.
        given_with: it says something only beside this field.
    """

    wires: frozenset[Wire]
    harmless: frozenset[bytes] = NOTHING
    words: tuple[bytes, ...] = ()
    given_with: str = ""

    def loses(self, value: bytes, head: Mapping[str, Raw]) -> bool:
        if value in self.harmless or (self.given_with and self.given_with not in head):
            return False
        return not self.words or any(word in value for word in self.words)


class Silence(NamedTuple):
    """The fields that one kind of back end leaves out; `quirk`: a release that has it reads them yet."""

    fields: Mapping[str, Ignored]
    quirk: Quirk = Quirk.NONE


def dropped(head: Mapping[str, Raw], call: Call, target: Target, offer: Offer) -> list[str]:
    """The names of the fields that this target will leave out in silence."""
    fields = _silent_about(target.settings.repairs, call.wire, offer.quirks)
    if fields is None or (fields.keys().isdisjoint(head) and EFFORT not in head):
        return []
    lost = [name for name in head if name in fields and fields[name].loses(bytes(head[name]), head)]
    return [*lost, EFFORT] if _keeps_thinking(head, target) else lost


EFFORT = "reasoning_effort"


def _keeps_thinking(head: Mapping[str, Raw], target: Target) -> bool:
    """vLLM makes `enable_thinking` of an effort of none: templates that have another switch think all the same."""
    other = target.settings.thinking is Thinking.THINKING and "vllm" in target.settings.repairs
    return other and bytes(head.get(EFFORT, b"")) == b'"none"'


@lru_cache(maxsize=64)
def _silent_about(repairs: frozenset[str], wire: Wire, quirks: Quirk) -> Mapping[str, Ignored] | None:
    known = (silence for kind in repairs & SILENCES.keys() for silence in SILENCES[kind])
    silences = [silence for silence in known if not silence.quirk & quirks]
    found = {name: field for silence in silences for name, field in silence.fields.items() if wire in field.wires}
    return found or None


_CHAT, _BOTH = frozenset({Wire.OPENAI_CHAT}), frozenset({Wire.OPENAI_CHAT, Wire.OPENAI_COMPLETION})
_COMPLETION, _EMBEDDINGS = frozenset({Wire.OPENAI_COMPLETION}), frozenset({Wire.OPENAI_EMBEDDINGS})
_ALL = _BOTH | _EMBEDDINGS

_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")


def _any(*values: bytes) -> frozenset[bytes]:
    return NOTHING | frozenset(values)


_OLLAMA: Mapping[str, Ignored] = {
    "n": Ignored(_BOTH, _any(b"1")),
    "best_of": Ignored(_COMPLETION, _any(b"1")),
    "echo": Ignored(_COMPLETION),
    "logprobs": Ignored(_COMPLETION),  # asked of the model, and never returned
    "logit_bias": Ignored(_BOTH),
    "tool_choice": Ignored(_CHAT, _any(b'"auto"'), given_with="tools"),
    "parallel_tool_calls": Ignored(_CHAT, frozenset({b"null", b"true"}), given_with="tools"),
    "functions": Ignored(_CHAT),
    "function_call": Ignored(_CHAT, _any(b'"auto"', b'"none"')),
    "response_format": Ignored(_CHAT, words=(b'"structural_tag"',)),
    "modalities": Ignored(_CHAT, words=(b'"audio"',)),
    "top_k": Ignored(_BOTH, _any(b"0", b"-1")),
    "min_p": Ignored(_BOTH, _any(b"0", b"0.0")),
    "repetition_penalty": Ignored(_BOTH, _any(b"1", b"1.0")),
    "repeat_penalty": Ignored(_BOTH, _any(b"1", b"1.0")),
    "length_penalty": Ignored(_BOTH, _any(b"1", b"1.0")),
    "use_beam_search": Ignored(_BOTH),
    "min_tokens": Ignored(_BOTH, _any(b"0")),
    "stop_token_ids": Ignored(_BOTH),
    "ignore_eos": Ignored(_BOTH),
    "bad_words": Ignored(_BOTH),
    "allowed_token_ids": Ignored(_BOTH),
    "prompt_logprobs": Ignored(_BOTH),
    "include_stop_str_in_output": Ignored(_BOTH),
    "skip_special_tokens": Ignored(_BOTH, frozenset({b"null", b"true"})),
    "structured_outputs": Ignored(_BOTH),
    **{name: Ignored(_BOTH) for name in _GUIDED},
    "chat_template": Ignored(_CHAT),
    "chat_template_kwargs": Ignored(_CHAT),
    "documents": Ignored(_CHAT),
    "add_generation_prompt": Ignored(_CHAT, frozenset({b"null", b"true"})),
    "continue_final_message": Ignored(_CHAT),
    "include_reasoning": Ignored(_CHAT, frozenset({b"null", b"true"})),
    "thinking_token_budget": Ignored(_CHAT, _any(b"-1")),
    "think": Ignored(_BOTH, frozenset({b"null"})),
    "format": Ignored(_BOTH),
    "keep_alive": Ignored(_ALL, frozenset({b"null"})),
    "options": Ignored(_ALL),
    "num_ctx": Ignored(_ALL),
    "truncate_prompt_tokens": Ignored(_ALL, _any(b"-1")),
    "use_activation": Ignored(_EMBEDDINGS, frozenset({b"null", b"true"})),
    "messages": Ignored(_EMBEDDINGS),
}

_ALIKE = ("functions", "function_call", "modalities", "think", "format", "options", "num_ctx", "repeat_penalty")
"""What vLLM leaves out as Ollama does."""

_VLLM: Mapping[str, Ignored] = {
    **{name: _OLLAMA[name] for name in _ALIKE},
    "reasoning": Ignored(_CHAT, frozenset({b"null", b"{}"})),  # its `effort` is heard by Ollama's /v1 only
}

SILENCES: Mapping[str, tuple[Silence, ...]] = {
    "ollama": (Silence(_OLLAMA),),
    "vllm": (Silence(_VLLM), Silence({name: Ignored(_BOTH) for name in _GUIDED}, Quirk.GUIDED)),
}
"""Kind of provider → what it leaves out on the OpenAI wires."""
