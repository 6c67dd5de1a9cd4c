"""Requests in flight, as the recorder remembers them, and which are counted at all."""

from msgspec import Struct

from memos_llm.core.call import Feature, Operation
from memos_llm.core.decision import Reason
from memos_llm.core.events import AttemptStarted
from memos_llm.core.outcome import Kind
from memos_llm.guard.lanes import Lane, Row
from memos_llm.guard.runs import Charges

LOAD = int(Feature.LOAD)
OVERRIDE, PASSTHROUGH, DIVERTED = Reason.OVERRIDE, Reason.PASSTHROUGH, Reason.DIVERTED
NO_NEEDS, PASSAGE = Feature.NONE, Operation.PASSTHROUGH


Named = int | str
"""A request's serial number, for callers may give one id to several at once; its id, where events have no numbers."""


class Second:
    """One second of starts: which request stands for a split key's failures in it, by provider and key. Lives as long
    as one of its requests is in flight.
    """

    __slots__ = ("failures", "start")

    def __init__(self, start: int) -> None:
        self.start = start
        self.failures: dict[tuple[str, int], Open] = {}


class Open(Struct):
    """A request in flight, and what its row says of it.

    Attributes:
        second: None once it is over.
        started_at, began_at: its first and its last attempt on the assigned provider (monotonic).
        untold: attempts there whose end is not told. told: the last one's is. running: it is under way, as far as is
            known. over: the request is.
        times: its latency is one of those judged.
        timed, slow, value: in the row: whether latency is judged, beyond the limit (None: not known), and what it was.
        muted: its latency is not counted. void: it is no request at all.
    """

    named: Named
    id: str
    lane: Lane
    row: Row
    second: Second | None
    started_at: float
    began_at: float
    key: int
    retry: int
    times: bool
    timed: bool
    untold: int = 1
    charges: Charges = ()
    told: bool = False
    running: bool = True
    over: bool = False
    content: bool = False
    slow: bool | None = None
    value: float | None = None
    ended: bool = False
    failure: Kind | None = None
    muted: bool = False
    void: bool = False


def uncounted(event: AttemptStarted) -> bool:
    """What somebody else chose the provider for, or what is no work of a model."""
    reason, needs = event.decision.reason, event.needs
    if reason is OVERRIDE or reason is PASSTHROUGH or reason is DIVERTED or event.operation is PASSAGE:
        return True
    return needs is not NO_NEEDS and bool(int(needs) & LOAD)
