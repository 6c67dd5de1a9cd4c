"""One call on its way through its chain: the tries, and the telling of what happened.

Emits one `RequestStarted` and exactly one `RequestEnded`; every try emits one `AttemptStarted` and one `AttemptEnded`.
A failed attempt on the assigned provider is told as such even when a fallback answered: nothing hides it.
"""

import asyncio
from collections.abc import Mapping
from itertools import count

from memos_llm.core.call import Call, Frame, Operation, Part
from memos_llm.core.decision import Decision
from memos_llm.core.errors import (
    EXHAUSTED,
    AttemptFailed,
    BadRequest,
    EmbeddingServiceError,
    LLMError,
    ModelNotFound,
    NotOffered,
    Timeout,
    Unavailable,
)
from memos_llm.core.events import (
    AttemptEnded,
    AttemptStarted,
    Bus,
    ContentBegan,
    FellBack,
    InternalError,
    RequestEnded,
    RequestStarted,
    place_of,
)
from memos_llm.core.outcome import BREAKER_OPEN, MODEL_NOT_FOUND, NOT_SUPPORTED, Kind, Outcome
from memos_llm.core.ports import Clock, Codecs, Routes
from memos_llm.router.attempt import Attempt
from memos_llm.router.buffers import Buffers
from memos_llm.router.chain import Chain, RetryBudget, Try

CANCELLED = Outcome(kind=Kind.CANCELLED)
_SERIALS = count(1)


class Run:
    """One call on its way through its chain: what was tried, and the bookkeeping of what to tell."""

    def __init__(
        self,
        call: Call,
        decision: Decision,
        routes: Routes,
        codecs: Codecs,
        bus: Bus,
        clock: Clock,
        budget: RetryBudget,
        buffers: Buffers,
    ) -> None:
        self.call, self.decision = call, decision
        self.policy, self._transports = routes
        self._codecs, self._bus, self._clock, self._budget = codecs, bus, clock, budget
        self._buffers = buffers
        self.attempts = 0
        self.served = decision.targets[0]
        self.failed = CANCELLED
        known = self.policy.catalogue.resolve(call.model)
        self.known, self.model = known is not None, known.name if known else call.model
        self._refusals: list[tuple[Attempt, AttemptFailed]] = []  # 4xx that wait for another target's verdict
        self._failure: tuple[Attempt, AttemptFailed] | None = None
        self._shut: AttemptFailed | None = None
        self._ended = False
        self._serial = next(_SERIALS)
        budget.request()
        self._bus.emit(
            RequestStarted(
                request_id=call.id,
                decision=decision,
                component=call.component,
                model=self.model,
                operation=call.operation,
            )
        )

    async def commit(self) -> tuple[Attempt, list[Frame]]:
        """Try the targets in order until one commits."""
        chain = Chain(self.call, self.decision.targets, self.policy, self._budget)
        step: Try | None = chain.first(self._clock())
        while step is not None:
            if step.after_s:
                await asyncio.sleep(step.after_s)
            try:
                attempt = self._begin(step)
            except AttemptFailed as shut:  # every breaker is open: nobody is asked, and nobody is blamed
                self._shut = shut
                step = chain.after(shut, self._clock())
                continue
            frames = await self._try(attempt)
            if not isinstance(frames, AttemptFailed):
                self._settle(Kind.INCOMPATIBLE)
                self._tell_content(attempt)
                return attempt, frames
            step = chain.after(frames, self._clock())
            self._failed(attempt, frames, step)
        return self._last_words()

    def _tell_content(self, attempt: Attempt) -> None:
        if self.call.stream and attempt.first_content_at is not None:
            self._bus.emit(
                ContentBegan(
                    request_id=self.call.id,
                    provider=attempt.target.provider,
                    endpoint=attempt.endpoint,
                    ttft_s=attempt.first_content_at - attempt.started_at,
                    serial=self._serial,
                    at=attempt.first_content_at,
                )
            )

    async def _try(self, attempt: Attempt) -> list[Frame] | AttemptFailed:
        """The frames up to the commit point, or why there are none; then the attempt is closed."""
        try:
            return await attempt.commit(f"{self.call.id}-{self.attempts}")
        except AttemptFailed as error:
            failure = self._judge(error)
        except Exception as error:  # noqa: BLE001 - a bug of ours: told as such, and the next target may still answer
            failure = self.own_fault(error)
        except BaseException:  # raised again: the caller has left, and the arm is not blamed
            self.attempt_ended(attempt, CANCELLED)
            await attempt.aclose()
            raise
        attempt.end(self._clock())
        await attempt.aclose()
        return failure

    def attempt_ended(self, attempt: Attempt, outcome: Outcome) -> None:
        """Tell how an attempt ended; the first call speaks."""
        if attempt.outcome is not None:
            return
        attempt.outcome = outcome
        attempt.end(self._clock())
        assert attempt.ended_at is not None
        first = attempt.first_content_at
        self._bus.emit(
            AttemptEnded(
                request_id=self.call.id,
                provider=attempt.target.provider,
                endpoint=attempt.endpoint,
                arm=self.decision.arm,
                component=self.call.component,
                model=self.model,
                outcome=outcome,
                duration_s=attempt.ended_at - attempt.started_at,
                ttft_s=first - attempt.started_at if first is not None and self.call.stream else None,
                tpot_s=_tpot_s(attempt if self.call.stream else None),
                silent=outcome.kind is Kind.CANCELLED and attempt.silent(),
                serial=self._serial,
                at=attempt.ended_at,
            )
        )

    def end(self, outcome: Outcome, attempt: Attempt | None = None) -> None:
        """Tell how the request ended; the first call speaks, later ones are ignored."""
        if self._ended:
            return
        self._ended = True
        self._settle(Kind.CLIENT)  # nobody contradicted it
        call, streamed, now = self.call, attempt if self.call.stream else None, self._clock()
        self._bus.emit(
            RequestEnded(
                request_id=call.id,
                decision=self.decision,
                provider=self.served.provider,
                component=call.component,
                model=self.model,
                operation=call.operation,
                outcome=outcome,
                attempts=self.attempts,
                stream=call.stream,
                duration_s=now - call.accepted_at,
                ttft_s=_ttft_s(call, streamed),
                tpot_s=_tpot_s(streamed),
                usage=attempt.usage if attempt else None,
                warnings=attempt.warnings if attempt else (),
                wire=call.wire,
                route=call.passage.route if call.passage is not None else "",
                caller=call.caller,
                needs=call.needs,
                serial=self._serial,
                at=now,
            )
        )

    def _begin(self, step: Try) -> Attempt:
        """Raises:
        AttemptFailed: no endpoint takes anything.
        """
        target = step.target
        transport = self._transports[target.provider]
        endpoint = transport.pick(target.model, self._conversation())
        if self.attempts and target.provider != self.served.provider:
            self._bus.emit(
                FellBack(
                    request_id=self.call.id,
                    from_provider=self.served.provider,
                    to_provider=target.provider,
                    reason=self.failed.kind.value,
                )
            )
        self.served = target
        self.attempts += 1
        offer = transport.offer(target.model)
        codec = self._codecs.find(self.call, offer)
        assert codec is not None  # decide() keeps only targets that a codec carries the call to
        now = self._clock()
        self._bus.emit(
            AttemptStarted(
                request_id=self.call.id,
                provider=target.provider,
                arm=self.decision.arm,
                endpoint=endpoint,
                decision=self.decision,
                component=self.call.component,
                model=self.model,
                operation=self.call.operation,
                stream=self.call.stream,
                key=hash(self.call.key),
                retry=self.call.retry,
                needs=self.call.needs,
                serial=self._serial,
                at=now,
            )
        )
        return Attempt(self.call, step, transport, endpoint, codec, offer, self._clock, self._buffers, now)

    def _conversation(self) -> bytes:
        """What a replica may know the call by; one that was only given its own id belongs to nothing."""
        key = self.call.key
        return b"" if key == self.call.id.encode() else key

    def _judge(self, failure: AttemptFailed) -> AttemptFailed:
        """A model that nobody configured and nobody has is a wrong name: the caller's fault."""
        outcome = failure.outcome
        if outcome.code == MODEL_NOT_FOUND and not self.known:
            outcome = Outcome(kind=Kind.CLIENT, status=404, code=MODEL_NOT_FOUND)
        return AttemptFailed(outcome, failure.client_text, failure.client_body)

    def own_fault(self, error: Exception) -> AttemptFailed:
        """A bug of ours, told as one."""
        self._bus.emit(InternalError(part="engine", error=type(error).__name__, where=place_of(error)))
        return AttemptFailed(Outcome(kind=Kind.MALFORMED, code="internal"))

    def _failed(self, attempt: Attempt, failure: AttemptFailed, step: Try | None) -> None:
        """Tell that a try failed; a 4xx that another target may yet answer waits for that verdict."""
        self.failed, self._failure = failure.outcome, (attempt, failure)
        refused = failure.outcome.kind is Kind.CLIENT
        if refused and step is not None:
            self._refusals.append((attempt, failure))
            return
        if refused:
            self._settle(Kind.CLIENT)  # everyone refused it
        self.attempt_ended(attempt, self._blamed(attempt, failure.outcome))

    def _blamed(self, attempt: Attempt, outcome: Outcome) -> Outcome:
        """What a caller's own short deadline cut off says nothing about the provider; but who waited `abandon_s` in
        vain, where nobody got any content, has found a fault, whoever set the deadline.
        """
        if not self.call.own_deadline or outcome.kind is not Kind.TIMEOUT:
            return outcome
        waited_s = (attempt.ended_at or attempt.started_at) - attempt.started_at
        limits = self.policy.guard.of(attempt.target.provider, self.call.component, self.model)
        patient = waited_s < limits.abandon_s or not attempt.silent()
        own = outcome.code == "total" or (outcome.code == "slice" and patient)
        return Outcome(kind=Kind.CANCELLED, code="deadline") if own else outcome

    def _settle(self, kind: Kind) -> None:
        """The verdict on earlier 4xx: `incompatible` if another target answered, else the client's own fault."""
        for attempt, failure in self._refusals:
            outcome = failure.outcome
            self.attempt_ended(attempt, Outcome(kind=kind, status=outcome.status, code=outcome.code))
        self._refusals.clear()

    def _last_words(self) -> tuple[Attempt, list[Frame]]:
        """Nobody answered. An unfinished answer of the last target is passed on as it is, with a warning: Ollama's
        repeat guard ends so, and its clients know it. Otherwise the caller gets an error.

        Raises:
            LLMError: the refusal that nobody contradicted, or the last failure of whoever was asked.
        """
        if self._refusals:
            attempt, failure = self._refusals[0]
        elif self._failure is not None:
            attempt, failure = self._failure
        else:
            assert self._shut is not None
            raise self._error(self._shut)
        self.failed, self.served = failure.outcome, attempt.target
        if failure.outcome.kind is Kind.TRUNCATED and failure.client_body and not self.call.stream:
            attempt.pass_on()
            return attempt, [Frame(failure.client_body, Part.CONTENT)]
        raise self._error(failure)

    def _error(self, failure: AttemptFailed) -> LLMError:
        outcome = failure.outcome
        kind = Unavailable if outcome.code == BREAKER_OPEN else EXHAUSTED[outcome.kind]
        if self.call.operation is Operation.EMBEDDINGS and not issubclass(kind, BadRequest | Timeout):
            kind = EmbeddingServiceError
        status: int | None = outcome.rule.http_status
        if outcome.code in _SAID_OTHERWISE:
            kind, status = _SAID_OTHERWISE[outcome.code]
        elif issubclass(kind, BadRequest) and outcome.status:
            status = outcome.status
        error = kind(
            _tried(self.attempts, self.served.provider, outcome),
            provider=self.served.provider,
            request_id=self.call.id,
            http_status=status,
            client_text=failure.client_text,
            client_body=failure.client_body if issubclass(kind, BadRequest) else b"",
            retry_after_s=outcome.retry_after_s,
        )
        error.decision, error.attempts = self.decision, self.attempts
        return error


_SAID_OTHERWISE: Mapping[str, tuple[type[BadRequest], int]] = {
    MODEL_NOT_FOUND: (ModelNotFound, 404),
    NOT_SUPPORTED: (NotOffered, 400),
}
"""Codes of `config` outcomes that are the request's doing where no target could answer it."""


def _tried(attempts: int, provider: str, outcome: Outcome) -> str:
    how = f"{outcome.kind.value}{f' ({outcome.code})' if outcome.code else ''}"
    if not attempts:
        return f"{provider} takes nothing now: {how}"
    return f"{attempts} attempt{'s' if attempts > 1 else ''}, the last on {provider} ended with {how}"


def _ttft_s(call: Call, attempt: Attempt | None) -> float | None:
    if attempt is None or attempt.first_content_at is None:
        return None
    return attempt.first_content_at - call.accepted_at


def _tpot_s(attempt: Attempt | None) -> float | None:
    if attempt is None or attempt.usage is None or attempt.usage.output_tokens < 2:
        return None
    if attempt.first_content_at is None or attempt.last_content_at is None:
        return None
    return (attempt.last_content_at - attempt.first_content_at) / (attempt.usage.output_tokens - 1)
