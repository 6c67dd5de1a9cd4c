"""Notices when one key carries too much of the traffic: then the split moves it all at once, whatever the share.

Keeps fingerprints (`router.split.fingerprint`) of the last requests only, never keys.
"""

from collections import Counter, deque

WINDOW = 500  # requests looked back on; the engine shows us one of a few
LIMIT = 0.2
SAY_AGAIN_S = 60.0


class Concentration:
    """Counts keys over the last `WINDOW` requests."""

    def __init__(self) -> None:
        self._recent: deque[str] = deque()
        self._counts: Counter[str] = Counter()
        self._quiet_until = 0.0

    def note(self, fingerprint: str, now: float) -> float | None:
        """One request of a key; its part of the window when that is worth a warning now, else None.

        `now` is monotonic. Says nothing before the window is full, and at most once in `SAY_AGAIN_S`.
        """
        self._recent.append(fingerprint)
        self._counts[fingerprint] += 1
        if len(self._recent) <= WINDOW:
            return None
        oldest = self._recent.popleft()
        self._counts[oldest] -= 1
        if not self._counts[oldest]:
            del self._counts[oldest]
        share = self._counts[fingerprint] / WINDOW
        if share <= LIMIT or now < self._quiet_until:
            return None
        self._quiet_until = now + SAY_AGAIN_S
        return share
