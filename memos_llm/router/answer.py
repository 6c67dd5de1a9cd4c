"""A committed answer: its frames, and exactly one end."""

from collections.abc import Mapping

from memos_llm.core.call import Frame, Usage
from memos_llm.core.errors import AttemptFailed, StreamBroken
from memos_llm.core.outcome import OK, Kind, Outcome
from memos_llm.router.attempt import Attempt
from memos_llm.router.run import CANCELLED, Run


class Answer:
    """A committed answer (`core.ports.Exchange`)."""

    def __init__(self, run: Run, attempt: Attempt, frames: list[Frame]) -> None:
        self.decision, self.served, self.attempts = run.decision, run.served, run.attempts
        self.warnings, self.stream = attempt.warnings, run.call.stream
        self.status = attempt.status
        self._run, self._attempt = run, attempt
        self._ready: Frame | None = Frame.joined(frames)
        self._idle_s = run.policy.limits(run.served.provider).idle_s
        self._closed = False

    async def next(self) -> Frame | None:
        """What came next, one frame a read of the back end; None after the last.

        Raises:
            StreamBroken: the back end failed after the commit point.
        """
        ready = self._ready if self._ready is not None else await self._more()
        self._ready = None
        return ready

    async def aclose(self) -> None:
        """Harmless at the end; before it, upstream is cancelled at once."""
        await self._close(self._verdict() if self._attempt.complete else CANCELLED)

    @property
    def headers(self) -> Mapping[str, str]:
        """The back end's."""
        return self._attempt.headers

    @property
    def usage(self) -> Usage | None:
        return self._attempt.usage

    async def _more(self) -> Frame | None:
        if self._closed:
            return None
        try:
            frames = await self._attempt.more(self._idle_s)
        except AttemptFailed as error:
            await self._close(error.outcome)
            raise self._broken(error) from error
        except Exception as error:  # a bug of ours: told as such, and the caller sees a broken stream
            failure = self._run.own_fault(error)
            await self._close(failure.outcome)
            raise self._broken(failure) from error
        except BaseException:  # raised again: the caller has left, upstream is cancelled
            await self.aclose()
            raise
        if not frames:
            await self._close(self._verdict())
            return None
        return Frame.joined(frames)

    async def _close(self, outcome: Outcome) -> None:
        if self._closed:
            return
        self._closed = True
        self._run.attempt_ended(self._attempt, outcome)
        self._run.end(self._attempt.outcome or outcome, self._attempt)
        await self._attempt.aclose()

    def _verdict(self) -> Outcome:
        """A passage is answered with whatever status the back end gave; the others have none but success."""
        if self.status < 400:
            return OK
        return Outcome(kind=Kind.SERVER if self.status >= 500 else Kind.CLIENT, status=self.status, code="status")

    def _broken(self, failure: AttemptFailed) -> StreamBroken:
        return StreamBroken(
            f"the answer of {self.served.provider} broke off: {failure.outcome.kind.value}",
            provider=self.served.provider,
            request_id=self._run.call.id,
            client_text=failure.client_text,
        )
