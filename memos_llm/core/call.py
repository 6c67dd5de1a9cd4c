"""What a caller asked for, independent of who will answer it.

A `Call` is made once, at the edge (gateway or library), and never changes. A codec turns it into a
`WireRequest` for one `Target`; the answer comes back as `Frame`s on the caller's own wire.
"""

import re
from collections.abc import Mapping, Sequence
from enum import IntEnum, IntFlag, StrEnum

from msgspec import Raw, Struct

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # both travel in headers, and are matched in full
MAX_SESSION_CHARS = 512
COMPONENT = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class Wire(StrEnum):
    """One byte format. Equal wires on both sides mean pass-through."""

    OPENAI_CHAT = "openai.chat"
    OPENAI_COMPLETION = "openai.completion"
    OLLAMA_CHAT = "ollama.chat"
    OLLAMA_GENERATE = "ollama.generate"
    OPENAI_EMBEDDINGS = "openai.embeddings"
    OLLAMA_EMBED = "ollama.embed"
    OLLAMA_EMBEDDINGS = "ollama.embeddings"  # the older route, one prompt a call
    PASSTHROUGH = "passthrough"  # any other route of the baseline: not read, not split


class Operation(StrEnum):
    """What kind of work a call is; a metrics label."""

    CHAT = "chat"
    TEXT_COMPLETION = "text_completion"
    EMBEDDINGS = "embeddings"
    PASSTHROUGH = "passthrough"


OPERATIONS: Mapping[Wire, Operation] = {
    Wire.OPENAI_CHAT: Operation.CHAT,
    Wire.OPENAI_COMPLETION: Operation.TEXT_COMPLETION,
    Wire.OLLAMA_CHAT: Operation.CHAT,
    Wire.OLLAMA_GENERATE: Operation.TEXT_COMPLETION,
    Wire.OPENAI_EMBEDDINGS: Operation.EMBEDDINGS,
    Wire.OLLAMA_EMBED: Operation.EMBEDDINGS,
    Wire.OLLAMA_EMBEDDINGS: Operation.EMBEDDINGS,
    Wire.PASSTHROUGH: Operation.PASSTHROUGH,
}


class Part(IntEnum):
    """What a frame holds, or-ed. 0 is preamble: the role chunk, a comment, an empty delta.

    No IntFlag: its `&` costs fifteen times an int's (0.6 µs), for every event of every stream.
    """

    PREAMBLE = 0
    CONTENT = 1
    FINISH = 2
    USAGE = 4
    END = 8


class Feature(IntFlag):
    """What a call needs that not every target can give. A target that lacks one is never sent the call."""

    NONE = 0
    LOAD = 1  # Ollama's load and unload calls (no messages, no prompt)
    GO_TEMPLATE = 2  # generate's `template`
    CONTEXT = 4  # generate's `context`: token ids of one tokenizer
    DEBUG_RENDER = 8  # `_debug_render_only`
    MANY_STOPS = 16  # more than four stop strings
    NO_PREDICT = 32  # num_predict: 0
    SUFFIX = 64  # fill-in-middle
    AUDIO = 128
    UNMATCHED_TOOL_RESULT = 256  # a tool result that answers no call of the history
    TOKEN_IDS = 512  # a prompt or an input as token ids
    ALL = 1023


class Quirk(IntFlag):
    """What a release of a back end needs otherwise than the current one; `providers.quirks` knows which."""

    NONE = 0
    OLD_REASONING = 1  # a history's reasoning is read as `reasoning_content` (vLLM to 0.11)
    STRICT_LENGTH = 2  # prompt + max_tokens beyond the context is refused, not clamped (vLLM to 0.30)
    GUIDED = 4  # `guided_json` and its kin are read (vLLM to 0.11), not ignored


class Usage(Struct, frozen=True):
    """Token counts as the back end reported them, never counted from events."""

    input_tokens: int = 0
    output_tokens: int = 0


class Passage(Struct, frozen=True):
    """A request that is passed on unread: `target` is its path and query as the caller sent them.

    `route` is what may be told of it: method and path, without what identifies one thing.
    """

    method: str
    target: str
    content_type: str = ""
    route: str = ""


class Call(Struct, frozen=True, kw_only=True):
    """One request of a caller. `repr` shows the id only: a body must not reach a log by accident.

    Attributes:
        head: the body's top-level keys, values undecoded; empty when the body is not a JSON object.
        model: the name exactly as the caller spelt it; answers echo it.
        key: what the split hashes (never stored; only its HMAC may be kept).
        accepted_at, deadline: seconds on the monotonic clock.
        own_deadline: the caller set the deadline; an attempt that it cuts short says nothing about the provider.
        override: a provider's name from an authorised per-request override.
        caller: who asks: a key's id, `anonymous`, `library`, …; never a key.
        typed: the answer is read by us (the library), so that any wire that carries more may be taken.
        passage: what to pass on, for `Wire.PASSTHROUGH`.
        retry: how often the caller's SDK says that it has tried before (`x-stainless-retry-count`).
    """

    id: str
    wire: Wire
    head: Mapping[str, Raw]
    body: bytes
    model: str
    stream: bool
    component: str
    key: bytes
    accepted_at: float
    deadline: float
    own_deadline: bool = False
    needs: Feature = Feature.NONE
    override: str | None = None
    caller: str = ""
    typed: bool = False
    passage: Passage | None = None
    retry: int = 0

    def __repr__(self) -> str:
        return f"Call(id={self.id!r})"

    @property
    def operation(self) -> Operation:
        return OPERATIONS[self.wire]


class Thinking(StrEnum):
    """How a vLLM model's reasoning is switched; the names are chat-template variables or request fields."""

    ENABLE_THINKING = "enable_thinking"  # Qwen, GLM, Gemma
    THINKING = "thinking"  # DeepSeek, Granite
    REASONING_EFFORT = "reasoning_effort"  # gpt-oss: cannot be switched off


class ModelSettings(Struct, frozen=True):
    """What the catalogue knows of one model on one provider, and a codec needs.

    Attributes:
        thinking: how reasoning is switched there; None for a model that does not reason.
        split_think_tags: cut `<think>…</think>` out of the content (a server without a reasoning parser).
        defaults: sampling parameters sent when the caller gives none, by the provider's own names.
        repairs: the optional repairs (`dialects.codecs.repairs.REPAIRS`) that this provider needs, and the names of the
            lists of what it leaves out in silence (`dialects.codecs.silence.SILENCES`).
    """

    thinking: Thinking | None = None
    split_think_tags: bool = False
    defaults: Mapping[str, float] = {}
    repairs: frozenset[str] = frozenset()


class Target(Struct, frozen=True):
    """Where an attempt goes: a provider and its own name for the model."""

    provider: str
    model: str
    settings: ModelSettings = ModelSettings()


class WireRequest(Struct, frozen=True):
    """One request as a back end will receive it. `repr` leaves the body out.

    A codec fills it but for `id` (of this attempt) and `endpoint` (picked by the transport).

    Attributes:
        more: bodies of further requests that this call was taken apart into, to be sent one after the other; the
            decoder sees each answer's bytes and then an `eof`.
        passage: route and method instead of the wire's own, for `Wire.PASSTHROUGH`.
    """

    id: str
    wire: Wire
    model: str
    body: bytes
    stream: bool
    endpoint: str = ""
    more: tuple[bytes, ...] = ()
    passage: Passage | None = None

    def __repr__(self) -> str:
        return f"WireRequest(id={self.id!r}, wire={self.wire.value!r})"


class Frame(Struct, frozen=True, gc=False):
    """Whole events (or a whole non-streaming answer) on the caller's wire, ready to be written; `parts` of `Part`."""

    data: bytes
    parts: int
    usage: Usage | None = None

    @staticmethod
    def joined(frames: "Sequence[Frame]") -> "Frame":
        """Events that arrived together leave together."""
        if len(frames) == 1:
            return frames[0]
        parts, usage = 0, None
        for frame in frames:
            parts |= frame.parts
            usage = frame.usage or usage
        return Frame(b"".join(frame.data for frame in frames), parts, usage)
