"""What is told on a request's way and worked off beside it: a request pays for no more than that it is kept."""

from collections import deque
from collections.abc import Callable, Mapping
from math import inf
from typing import Any, cast

from memos_llm.core.events import AttemptEnded, AttemptStarted, ContentBegan, Event, Listener, RequestEnded

MOST_HEARD = 100_000  # far beyond what is told between two ticks; where nobody ticks any more the oldest are lost

Timed = AttemptStarted | ContentBegan | AttemptEnded | RequestEnded


class Heard:
    """Events, in the order in which they were told, until they are caught up with.

    Args:
        ways: what works off which kind of event.
        fault: told what an event raises, which is then dropped; those after it are worked off all the same.

    Attributes:
        on_event: hears `kinds`. A function of C.
        now: when what is worked off was told, as far as events say: the latest `at` so far, for one may be told later
            than it was, and what was told before it happened before that.
    """

    def __init__(self, ways: Mapping[type[Event], Callable[[Any], None]], fault: Callable[[Exception], None]) -> None:
        self._events = deque[Timed](maxlen=MOST_HEARD)
        self._ways, self._fault = ways, fault
        self.on_event = cast(Listener, self._events.append)
        self.kinds = tuple(ways)
        self.now = -inf

    def catch_up(self, now: float = -inf) -> None:
        """Work off all of them. `now`: it is that late afterwards, at least."""
        events, ways = self._events, self._ways
        while events:
            event = events.popleft()
            try:
                if event.at > self.now:
                    self.now = event.at
                ways[type(event)](event)
            except Exception as error:  # noqa: BLE001 - told, as the bus tells of a listener
                self._fault(error)
        self.now = max(self.now, now)


def raised(error: Exception) -> None:
    """The `fault` of whoever wants none passed over."""
    raise error
