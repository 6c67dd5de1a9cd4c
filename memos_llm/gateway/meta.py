"""What is never split: lists of models, what is loaded, what a model is, the version.

The baseline's own answer joined with the catalogue. While the baseline is down its last good answer is given; a model
that the baseline does not have and another provider serves is told from the catalogue.
"""

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Raw

from memos_llm.core.call import Wire
from memos_llm.core.catalogue import Model, canonical
from memos_llm.core.errors import AttemptFailed, BadRequest, LLMError, ModelNotFound, Unavailable
from memos_llm.core.outcome import MODEL_NOT_FOUND, Kind, Outcome
from memos_llm.core.ports import Routes
from memos_llm.dialects.jsons import decode_as
from memos_llm.gateway.cards import Card, as_loaded, as_openai, as_shown, as_tag
from memos_llm.gateway.rules import Rules
from memos_llm.gateway.screening import check_model

FALLBACK_VERSION = "0.17.4"  # a real Ollama release: clients switch features on by it
LAST_GOOD_AFTER_S = 2.0  # a list that is a little old now is better than a fresh one too late
MAX_KEPT = 256
MAX_KEPT_BYTES = 262_144


class TooLarge(Exception):
    """A document to be passed on, not held: a verbose `show` lists a whole vocabulary. `question` asks for it."""

    def __init__(self, question: bytes) -> None:
        super().__init__("a document is too large to be held")
        self.question = question


class Meta:
    """Answers `/v1/models`, `/api/tags`, `/api/ps`, `/api/show` and `/api/version`. `started_at`: Unix seconds."""

    def __init__(self, routes: Callable[[], Routes], started_at: float) -> None:
        self._routes = routes
        self._started_at = started_at
        self._last_good: dict[tuple[str, str, bytes], bytes] = {}

    async def models(self) -> dict[str, Any]:
        """OpenAI's list. `data` is a list even where Ollama says null."""
        listed = _entries(await self._ask("/v1/models"), "data")
        told = {canonical(str(entry.get("id", ""))) for entry in listed}
        return {"object": "list", "data": [*listed, *(as_openai(card) for card in self._missing(told))]}

    async def model(self, name: str) -> dict[str, Any]:
        """One entry of that list, by any of the model's names; its `id` is the name that was asked for.

        Raises:
            ModelNotFound: nobody has it.
        """
        known = self._routes().policy.catalogue.resolve(name)
        wanted = _names(known) if known else {canonical(name)}
        for entry in (await self.models())["data"]:
            if canonical(str(entry.get("id", ""))) in wanted:
                return {**entry, "id": name}
        raise ModelNotFound(f"The model {name!r} does not exist")

    async def tags(self) -> dict[str, Any]:
        """Ollama's list of local models."""
        listed = _entries(await self._ask("/api/tags"), "models")
        return {"models": [*listed, *(as_tag(card) for card in self._missing(_told(listed)))]}

    async def ps(self) -> dict[str, Any]:
        """Ollama's list of loaded models, and what others have loaded for as long as they run."""
        listed, installed = await asyncio.gather(self._ask("/api/ps"), self._ask("/api/tags"))
        missing = self._missing(_told(_entries(installed, "models")))
        return {"models": [*_entries(listed, "models"), *(as_loaded(card) for card in missing if card.up)]}

    async def show(self, body: bytes, rules: Rules) -> bytes:
        """What a model is: the baseline's answer as it came, by any of the model's names.

        Raises:
            BadRequest: the body cannot be understood; ModelNotFound: nobody has the model; Unavailable.
            TooLarge: it has to be passed on.
        """
        name, head = _shown_name(body)
        check_model(name, rules)
        policy = self._routes().policy
        known = policy.catalogue.resolve(name)
        target = known.target(policy.baseline) if known else None
        if target is not None and canonical(target.model) != canonical(name):
            body = msgspec.json.encode({**head, "model": target.model})
        try:
            return await self._fetch("/api/show", body)
        except AttemptFailed as failure:
            if failure.outcome.code == "too_large":
                raise TooLarge(body) from None
            card = next(iter(self._cards(known)), None) if known else None
            if card is None:
                raise _refusal(failure, name, policy.baseline) from failure
            return msgspec.json.encode(as_shown(card))

    async def version(self) -> dict[str, Any]:
        answer = await self._ask("/api/version")
        return answer if "version" in answer else {"version": FALLBACK_VERSION}

    async def knows(self, name: str) -> bool:
        """Whether a name is in the catalogue or among the baseline's models."""
        if self._routes().policy.catalogue.resolve(name) is not None:
            return True
        return canonical(name) in _told(_entries(await self._ask("/api/tags"), "models"))

    async def _ask(self, path: str) -> dict[str, Any]:
        """The baseline's document, its last good one when it does not answer, nothing when it never did."""
        try:
            return decode_as(await self._fetch(path), dict[str, Any])
        except (AttemptFailed, ValueError):
            return {}

    async def _fetch(self, path: str, body: bytes | None = None) -> bytes:
        """The baseline's document as it came, or the last good one.

        Raises:
            AttemptFailed: it refused, or it does not answer and never did.
        """
        policy, transports = self._routes()
        key = (policy.baseline, path, body or b"")
        kept = self._last_good.get(key)
        try:
            async with asyncio.timeout(LAST_GOOD_AFTER_S if kept is not None else None):
                document = await transports[policy.baseline].fetch(path, body)
        except (AttemptFailed, TimeoutError) as error:
            if kept is None or (isinstance(error, AttemptFailed) and _is_final(error.outcome)):
                raise
            return kept
        self._keep(key, document)
        return document

    def _keep(self, key: tuple[str, str, bytes], document: bytes) -> None:
        """Bounded in number and size: who asks chooses the body."""
        try:
            decode_as(document, dict[str, Raw])
        except ValueError:
            return
        self._last_good.pop(key, None)
        if len(document) + len(key[2]) <= MAX_KEPT_BYTES:
            self._last_good[key] = document
        if len(self._last_good) > MAX_KEPT:  # of what callers ask with: the lists are few, and are kept
            for oldest in [key for key in self._last_good if key[2]][:1]:
                del self._last_good[oldest]

    def _missing(self, listed: set[str]) -> list[Card]:
        """Models of the catalogue that the baseline did not list and somebody serves."""
        models = self._routes().policy.catalogue.models.values()
        return [card for model in models if not listed & _names(model) for card in self._cards(model)[:1]]

    def _cards(self, model: Model) -> list[Card]:
        """What is known of a model where it is served; an Ollama that is the baseline speaks for itself."""
        policy, transports = self._routes()
        cards = []
        for provider in sorted(model.on, key=lambda name: name != policy.candidate):
            if provider not in transports:
                continue
            offer = transports[provider].offer(model.on[provider].name)
            if provider != policy.baseline or Wire.OLLAMA_CHAT not in offer.wires:
                cards.append(Card.of(model, provider, offer, self._started_at))
        return cards


def _is_final(outcome: Outcome) -> bool:
    """The baseline has spoken: an older answer would contradict it."""
    return outcome.kind is Kind.CLIENT or outcome.code == MODEL_NOT_FOUND


def _refusal(failure: AttemptFailed, name: str, provider: str) -> LLMError:
    outcome = failure.outcome
    if outcome.code == MODEL_NOT_FOUND or outcome.status == 404:
        return ModelNotFound(f"model '{name}' not found", provider=provider)
    if outcome.kind is Kind.CLIENT:
        return BadRequest(
            f"{provider} refused it",
            provider=provider,
            http_status=outcome.status,
            client_text=failure.client_text,
            client_body=failure.client_body,
        )
    return Unavailable(f"{provider} does not answer: {outcome.kind.value} ({outcome.code})", provider=provider)


def _shown_name(body: bytes) -> tuple[str, dict[str, Raw]]:
    """The name asked for (`model`, or `name` as older clients say), and the rest of the request."""
    if not body:
        raise BadRequest("missing request body")
    try:
        head = {key.lower(): value for key, value in decode_as(body, dict[str, Raw]).items()}
        name = next((text for key in ("model", "name") if key in head and (text := decode_as(head[key], str))), "")
    except ValueError as error:
        raise BadRequest(f"the body cannot be understood: {error}") from None
    if not name:
        raise BadRequest("model is required")
    return name, {key: value for key, value in head.items() if key not in ("model", "name")}


def _entries(answer: dict[str, Any], key: str) -> list[dict[str, Any]]:
    listed = answer.get(key)
    return [entry for entry in listed if isinstance(entry, dict)] if isinstance(listed, list) else []


def _told(entries: list[dict[str, Any]]) -> set[str]:
    return {canonical(str(entry.get("name", ""))) for entry in entries}


def _names(model: Model) -> set[str]:
    return {canonical(name) for name in (model.name, *model.aliases, *(own.name for own in model.on.values()))}
