"""The configuration that `init` proposes: what was found, as YAML with comments, as a document and in words."""

import json
from collections.abc import Iterator
from typing import Any

from msgspec import Struct

from memos_llm.cli.pairs import Proposal, confidence, propose, thinking
from memos_llm.core.catalogue import is_embedding
from memos_llm.core.policy import ProviderSpec
from memos_llm.operate.probing import Health

BASELINE, CANDIDATE = "ollama", "vllm"

_HEAD = """\
# memos_llm: written by `llmctl init`. Every setting: `llmctl config show`.
# The share of the candidate lives in the store and is moved with `llmctl shift`.

providers:
"""
_TAIL = """
routing:
  share: 0.0                # a new store starts here
  components:               # share follows the split; baseline stays where it is
    embedding: baseline     # share, once `llmctl embeddings verify` has found the vectors equal
"""


class Found(Struct, frozen=True, kw_only=True):
    """The servers that were looked for, and how they answered."""

    specs: tuple[ProviderSpec, ...]
    health: Health
    baseline: str = BASELINE
    candidate: str = CANDIDATE

    def models(self, provider: str) -> tuple[str, ...]:
        """Every model of a provider's live endpoints, in their order."""
        return tuple(dict.fromkeys(m for one in self.health.get(provider, ()) if one.up for m in one.models or ()))

    def is_up(self, provider: str) -> bool:
        return any(endpoint.up for endpoint in self.health.get(provider, ()))

    def proposal(self) -> Proposal:
        return propose(self.models(self.baseline), self.models(self.candidate))


def text(found: Found) -> str:
    """The file."""
    return "".join(line + "\n" for line in _lines(found))


def _lines(found: Found) -> Iterator[str]:
    yield _HEAD.rstrip("\n")
    for spec in found.specs:
        yield from _provider(spec, found)
    yield ""
    yield f"baseline: {found.baseline}            # where the traffic comes from"
    yield f"candidate: {found.candidate}             # where it moves to"
    yield f"fallback: {found.baseline}            # who answers when the other cannot"
    yield ""
    yield from _models(found)
    yield _TAIL.rstrip("\n")


def _provider(spec: ProviderSpec, found: Found) -> Iterator[str]:
    yield f"  {spec.name}:"
    yield f"    kind: {spec.kind}"
    silent = "" if found.is_up(spec.name) else "      # did not answer"
    if len(spec.endpoints) == 1:
        yield f"    base_url: {_quoted(spec.endpoints[0].url)}{silent}"
    else:
        yield "    endpoints:              # each serves the models that it lists itself"
        yield from (f"      - {{url: {_quoted(endpoint.url)}}}" for endpoint in spec.endpoints)
    if spec.kind == "vllm":
        yield '    api_key: "${VLLM_API_KEY:-}"'


def _models(found: Found) -> Iterator[str]:
    proposal = found.proposal()
    yield f"# {found.baseline}'s name, and the same model's name on {found.candidate}: matched by name, so have a look"
    yield "models:"
    for here, there in proposal.pairs:
        yield f"  {_quoted(here)}:"
        switch = thinking(here)
        extra = f", thinking: {switch}, split_think_tags: true" if switch else ""
        sure, why = confidence(here, there)
        yield f"    {found.candidate}: {{name: {_quoted(there)}{extra}}}  # confidence {sure}: {why}"
    if not proposal.pairs:
        yield f"#  {_quoted('qwen3:8b')}:"
        yield f"#    {found.candidate}: {{name: {_quoted('Qwen/Qwen3-8B')}}}"
    for here, there in proposal.vectors:
        yield "#  an embedding model: uncomment, then `llmctl embeddings verify`; until then it stays where it is"
        yield f"#  {_quoted(here)}: {{{found.candidate}: {_quoted(there)}}}"
    yield from _alone(found.baseline, proposal.alone_here, f"stays on {found.baseline}")
    yield from _alone(found.candidate, proposal.alone_there, f"{found.baseline} has no such model")


def _alone(provider: str, names: tuple[str, ...], meaning: str) -> Iterator[str]:
    for name in names:
        why = "embeddings: vectors of two back ends never mix" if is_embedding(name) else meaning
        yield f"#  {provider} {_quoted(name)}: no partner ({why})"


def _quoted(value: str) -> str:
    """A double-quoted YAML scalar; `${` would be a reference."""
    return json.dumps(value, ensure_ascii=False).replace("${", "$${")


def document(found: Found) -> dict[str, Any]:
    proposal = found.proposal()
    return {
        "providers": {
            spec.name: {
                "url": spec.endpoints[0].url,
                "urls": [each.url for each in spec.endpoints],
                "up": found.is_up(spec.name),
                "models": found.models(spec.name),
            }
            for spec in found.specs
        },
        "pairs": dict(proposal.pairs),
        "confidence": {here: confidence(here, there)[0] for here, there in proposal.pairs},
        "embeddings": dict(proposal.vectors),
        "unmatched": {found.baseline: proposal.alone_here, found.candidate: proposal.alone_there},
    }


def view(found: Found) -> Iterator[str]:
    for spec in found.specs:
        urls = ", ".join(endpoint.url for endpoint in spec.endpoints)
        count = len(found.models(spec.name))
        said = f"{count} {'model' if count == 1 else 'models'}" if found.is_up(spec.name) else "does not answer"
        yield f"  {spec.name} at {urls}: {said}"
    if not any(found.is_up(spec.name) for spec in found.specs):
        yield "  neither server answers: these are the defaults; edit the file, or start them and use --force"
    proposal = found.proposal()
    for here, there in proposal.pairs:
        sure, why = confidence(here, there)
        yield f"  {here} = {there} (confidence {sure}: {why})"
    for here, there in proposal.vectors:
        yield f"  {here} = {there}? (embeddings: in the file as a comment, to be verified first)"
    for provider, names in ((found.baseline, proposal.alone_here), (found.candidate, proposal.alone_there)):
        if names:
            yield f"  no partner on the other side for {', '.join(names)} ({provider})"
