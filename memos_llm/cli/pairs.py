"""Which model here is which model there, by family and size in their names. A proposal: a person looks at it.

`qwen3:8b` and `Qwen/Qwen3-8B` are one, and so are `llama3.2:3b` and `meta-llama/Llama-3.2-3B-Instruct`: what names the
owner, the quantisation or the tuning is left out of the match; quantisations that differ make it less sure. Nothing is
guessed: a size that only one side names is no match.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from memos_llm.core.catalogue import is_embedding

_SIZE = re.compile(r"(?:\d+x)?\d+(?:\.\d+)?[bm]")
_ACTIVE = re.compile(r"a\d+(?:\.\d+)?b")  # parameters in use at a time: `30b-a3b`
_NOISE = re.compile(
    r"latest|instruct|chat|it|hf|text|awq|gptq|gguf|fp8|fp16|bf16|int[48]|w\d+a\d+|mxfp4|dynamic|"
    r"i?q\d\w*|k|[msl]|[01]|v\d+(?:\.\d+)?|\d+bit|bnb|it|qat"
)
_QUANTISED = re.compile(r"awq|gptq|gguf|fp8|fp16|bf16|int[48]|w\d+a\d+|mxfp4|i?q\d\w*|\d+bit|bnb|qat")


class Likeness(NamedTuple):
    """What two names of one model share."""

    family: str
    size: str


class Proposal(NamedTuple):
    """Pairs (name on the baseline, name on the candidate), those of embedding models apart, and what has no partner."""

    pairs: tuple[tuple[str, str], ...]
    alone_here: tuple[str, ...]
    alone_there: tuple[str, ...]
    vectors: tuple[tuple[str, str], ...] = ()


def likeness(name: str) -> Likeness:
    """Family and size of a model's name."""
    words = _words(name)
    size = next((word for word in words if _SIZE.fullmatch(word)), "")
    family = [word for word in words[:1] if word != size]
    family += [w for w in words[1:] if w != size and not _ACTIVE.fullmatch(w) and not _NOISE.fullmatch(w)]
    return Likeness("".join(family), size)


def quantisation(name: str) -> str:
    """The words of a name that say how its weights are stored; empty when none does."""
    return "-".join(word for word in _words(name)[1:] if _QUANTISED.fullmatch(word))


def confidence(here: str, there: str) -> tuple[str, str]:
    """How sure a pair of the same family and size is, `high` or `medium`, and why."""
    ours, theirs = quantisation(here), quantisation(there)
    if ours != theirs and (theirs or ours):
        return "medium", f"same family and size, other weights: {ours or 'not said'} and {theirs or 'not said'}"
    if not likeness(here).size:
        return "medium", "same family, no size in the names"
    return "high", "same family and size"


def propose(here: Sequence[str], there: Sequence[str]) -> Proposal:
    """Match the baseline's names with the candidate's. Every name is used once at most.

    Embedding models are matched apart: the vectors of two back ends do not mix, and a mapping is an invitation.
    """
    pairs = _matched(here, there, vectors=False)
    vectors = _matched(here, there, vectors=True)
    taken = {name for pair in pairs for name in pair}
    return Proposal(
        pairs,
        tuple(name for name in here if name not in taken),
        tuple(name for name in there if name not in taken),
        vectors,
    )


def _matched(here: Sequence[str], there: Sequence[str], *, vectors: bool) -> tuple[tuple[str, str], ...]:
    """The surest partner of each name, in the baseline's order."""
    free = {name: likeness(name) for name in there if is_embedding(name) is vectors}
    pairs = []
    for name in here:
        wanted = likeness(name)
        fitting = [other for other, like in free.items() if like == wanted and is_embedding(name) is vectors]
        if fitting:
            partner = min(fitting, key=lambda other: confidence(name, other)[0])  # high sorts before medium
            del free[partner]
            pairs.append((name, partner))
    return tuple(pairs)


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-_:@ ]+", name.rsplit("/", 1)[-1].lower()) if word]


def thinking(name: str) -> str | None:
    """How reasoning is switched on vLLM, for families where the name says it (`models.<m>.<provider>.thinking`)."""
    family = likeness(name).family
    if family == "gptoss":
        return "reasoning_effort"
    return "enable_thinking" if family == "qwen3" else None
