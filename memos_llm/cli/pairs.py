"""Which model here is which model there, by family and size in their names. A proposal: a person looks at it.

`qwen3:8b` and `Qwen/Qwen3-8B` are one, and so are `llama3.2:3b` and `meta-llama/Llama-3.2-3B-Instruct`: what names the
owner, the quantisation or the tuning is left out. Nothing is guessed: a size that only one side names is no match.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

_SIZE = re.compile(r"(?:\d+x)?\d+(?:\.\d+)?[bm]")
_ACTIVE = re.compile(r"a\d+(?:\.\d+)?b")  # parameters in use at a time: `30b-a3b`
_NOISE = re.compile(
    r"latest|instruct|chat|it|hf|text|awq|gptq|gguf|fp8|fp16|bf16|int[48]|w\d+a\d+|mxfp4|dynamic|"
    r"i?q\d\w*|k|[msl]|[01]|v\d+(?:\.\d+)?|\d+bit|bnb|it|qat"
)
_EMBEDDING = re.compile(r"embed|bge-|e5-|minilm|gte-|arctic")


class Likeness(NamedTuple):
    """What two names of one model share."""

    family: str
    size: str


class Proposal(NamedTuple):
    """Pairs (name on the baseline, name on the candidate), and what has no partner."""

    pairs: tuple[tuple[str, str], ...]
    alone_here: tuple[str, ...]
    alone_there: tuple[str, ...]


def likeness(name: str) -> Likeness:
    """Family and size of a model's name."""
    words = [word for word in re.split(r"[-_:@ ]+", name.rsplit("/", 1)[-1].lower()) if word]
    size = next((word for word in words if _SIZE.fullmatch(word)), "")
    family = [word for word in words[:1] if word != size]
    family += [w for w in words[1:] if w != size and not _ACTIVE.fullmatch(w) and not _NOISE.fullmatch(w)]
    return Likeness("".join(family), size)


def is_embedding(name: str) -> bool:
    return bool(_EMBEDDING.search(name.lower()))


def propose(here: Sequence[str], there: Sequence[str]) -> Proposal:
    """Match the baseline's names with the candidate's. Every name is used once at most; embedding models never:
    the vectors of two back ends do not mix, and a mapping is an invitation.
    """
    free = {name: likeness(name) for name in there if not is_embedding(name)}
    pairs, alone = [], []
    for name in here:
        wanted = likeness(name)
        partner = next((other for other, like in free.items() if like == wanted and not is_embedding(name)), None)
        if partner is None:
            alone.append(name)
        else:
            del free[partner]
            pairs.append((name, partner))
    taken = {partner for _, partner in pairs}
    return Proposal(tuple(pairs), tuple(alone), tuple(name for name in there if name not in taken))


def thinking(name: str) -> str | None:
    """How reasoning is switched on vLLM, for families where the name says it (`models.<m>.<provider>.thinking`)."""
    family = likeness(name).family
    if family == "gptoss":
        return "reasoning_effort"
    return "enable_thinking" if family == "qwen3" else None
