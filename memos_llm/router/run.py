"""One call on its way through its chain: the tries, and the telling of what happened.

Emits one `RequestStarted` and exactly one `RequestEnded`; every try emits one `AttemptStarted` and one `AttemptEnded`.
A failed attempt on the assigned provider is told as such even when a fallback answered: nothing hides it.
"""

import asyncio
from collections.abc import Mapping

from memos_llm.core.call import Call, Frame
from memos_llm.core.decision import Decision
from memos_llm.core.errors import EXHAUSTED, AttemptFailed, BadRequest, LLMError, ModelNotFound, Unavailable
from memos_llm.core.events import AttemptEnded, AttemptStarted, Bus, FellBack, RequestEnded, RequestStarted
from memos_llm.core.outcome import BREAKER_OPEN, MODEL_NOT_FOUND, Kind, Outcome
from memos_llm.core.policy import Policy
from memos_llm.core.ports import Clock, Codecs, Transport
from memos_llm.router.attempt import Attempt
from memos_llm.router.chain import Chain, RetryBudget, Try

CANCELLED = Outcome(kind=Kind.CANCELLED)


class Run:
    """One call on its way through its chain: what was tried, and the bookkeeping of what to tell."""

    def __init__(
        self,
        call: Call,
        decision: Decision,
        policy: Policy,
        transports: Mapping[str, Transport],
        codecs: Codecs,
        bus: Bus,
        clock: Clock,
        budget: RetryBudget,
    ) -> None:
        self.call, self.decision, self.policy = call, decision, policy
        self._transports, self._codecs, self._bus, self._clock, self._budget = transports, codecs, bus, clock, budget
        self.attempts = 0
        self.served = decision.targets[0]
        self.failed = CANCELLED
        known = self.policy.catalogue.resolve(call.model)
        self.known, self.model = known is not None, known.name if known else call.model
        self._narrow: tuple[Attempt, AttemptFailed] | None = None
        self._ended = False
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
            attempt = self._attempt(step)
            try:
                frames = await attempt.commit(f"{self.call.id}-{self.attempts}")
            except AttemptFailed as error:
                await attempt.aclose()
                failure = self._judge(error)
                step = chain.after(failure, self._clock())
                self._failed(attempt, failure, step)
                continue
            except BaseException:
                await self.abandon(attempt)
                raise
            self._settle(Kind.INCOMPATIBLE)
            return attempt, frames
        raise self._exhausted(failure)

    async def abandon(self, attempt: Attempt) -> None:
        """The caller has left: upstream is cancelled at once, and the arm is not blamed."""
        self.attempt_ended(attempt, CANCELLED)
        await attempt.aclose()

    def attempt_ended(self, attempt: Attempt, outcome: Outcome) -> None:
        now, first = self._clock(), attempt.first_content_at
        self._bus.emit(
            AttemptEnded(
                request_id=self.call.id,
                provider=attempt.target.provider,
                endpoint=attempt.endpoint,
                arm=self.decision.arm,
                component=self.call.component,
                model=self.model,
                outcome=outcome,
                duration_s=now - attempt.started_at,
                ttft_s=first - attempt.started_at if first is not None and self.call.stream else None,
            )
        )

    def end(self, outcome: Outcome, attempt: Attempt | None = None) -> None:
        """Tell how the request ended; the first call speaks, later ones are ignored."""
        if self._ended:
            return
        self._ended = True
        self._settle(Kind.CLIENT)  # nobody contradicted it
        call, streamed = self.call, attempt if self.call.stream else None
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
                duration_s=self._clock() - call.accepted_at,
                ttft_s=_ttft_s(call, streamed),
                tpot_s=_tpot_s(streamed),
                usage=attempt.usage if attempt else None,
                warnings=attempt.warnings if attempt else (),
            )
        )

    def _attempt(self, step: Try) -> Attempt:
        target = step.target
        if target.provider != self.served.provider:
            reason = self.failed.kind.value
            self._bus.emit(
                FellBack(
                    request_id=self.call.id,
                    from_provider=self.served.provider,
                    to_provider=target.provider,
                    reason=reason,
                )
            )
        self.served = target
        self.attempts += 1
        transport = self._transports[target.provider]
        codec = self._codecs.find(self.call, transport.offer(target.model))
        assert codec is not None  # decide() keeps only targets that a codec carries the call to
        self._bus.emit(AttemptStarted(request_id=self.call.id, provider=target.provider, arm=self.decision.arm))
        return Attempt(self.call, step, transport, codec, self._clock)

    def _judge(self, failure: AttemptFailed) -> AttemptFailed:
        """What only the engine knows: a wrong name is the caller's fault, an own deadline is not the provider's."""
        outcome = failure.outcome
        if outcome.code == MODEL_NOT_FOUND and not self.known:
            outcome = Outcome(kind=Kind.CLIENT, status=404, code=MODEL_NOT_FOUND)
        return AttemptFailed(outcome, failure.client_text, failure.client_body)

    def _failed(self, attempt: Attempt, failure: AttemptFailed, step: Try | None) -> None:
        """Tell that a try failed; a 4xx that another target may yet answer waits for that verdict."""
        self.failed = failure.outcome
        refused = failure.outcome.kind is Kind.CLIENT
        if refused and step is not None:
            self._narrow = (attempt, failure)
            return
        if refused:
            self._settle(Kind.CLIENT)  # both refused it
        self.attempt_ended(attempt, self._blamed(failure.outcome))

    def _blamed(self, outcome: Outcome) -> Outcome:
        own = self.call.own_deadline and outcome.kind is Kind.TIMEOUT and outcome.code in ("slice", "total")
        return Outcome(kind=Kind.CANCELLED, code="deadline") if own else outcome

    def _settle(self, kind: Kind) -> None:
        """The verdict on an earlier 4xx: `incompatible` if another target answered, else the client's own fault."""
        if self._narrow is None:
            return
        attempt, failure = self._narrow
        self._narrow = None
        outcome = failure.outcome
        self.attempt_ended(attempt, Outcome(kind=kind, status=outcome.status, code=outcome.code))

    def _exhausted(self, failure: AttemptFailed) -> LLMError:
        """The error the caller gets: the last failure, or the one refusal nobody contradicted."""
        if self._narrow is not None:
            attempt, failure = self._narrow
            self.failed, self.served = failure.outcome, attempt.target
            self._settle(Kind.CLIENT)
        outcome = failure.outcome
        kind = Unavailable if outcome.code == BREAKER_OPEN else EXHAUSTED[outcome.kind]
        status: int | None = outcome.rule.http_status
        if outcome.code == MODEL_NOT_FOUND:
            kind, status = ModelNotFound, 404
        elif issubclass(kind, BadRequest) and outcome.status:
            status = outcome.status
        own_words = issubclass(kind, BadRequest)
        return kind(
            f"{self.attempts} attempt{'s' if self.attempts > 1 else ''}, the last on {self.served.provider} ended with "
            f"{outcome.kind.value}{f' ({outcome.code})' if outcome.code else ''}",
            provider=self.served.provider,
            request_id=self.call.id,
            http_status=status,
            client_text=failure.client_text,
            client_body=failure.client_body if own_words else b"",
            retry_after_s=outcome.retry_after_s,
        )


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
