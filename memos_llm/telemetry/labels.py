"""Label values that stay bounded, and metric children kept per label set."""

import math
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from prometheus_client import Counter, Gauge, Histogram

OTHER = "other"
Child = TypeVar("Child", Counter, Gauge, Histogram)


class Slots:
    """At most `limit` label values; what comes later is `other`. Reserved values always keep theirs.

    Args:
        sharers: workers whose metrics are shown as one: each may give away its part of the free slots only.
    """

    def __init__(self, limit: int, sharers: int = 1) -> None:
        self._limit, self._sharers = limit, sharers
        self._known: dict[str, str] = {}
        self._reserved: set[str] = set()

    def reserve(self, values: Iterable[str]) -> None:
        """Give configured values a slot, even beyond the limit: they are bounded by the configuration."""
        self._reserved |= set(values)
        self._known |= {value: value for value in self._reserved}

    def __getitem__(self, value: str) -> str:
        known = self._known.get(value)
        if known is not None:
            return known
        if len(self._known) - len(self._reserved) >= (self._limit - len(self._reserved)) // self._sharers:
            return OTHER
        self._known[value] = value
        return value


class Children(dict[Any, Child], Generic[Child]):
    """A metric's children by label set (a tuple, or the value of an only label), made on first use; `()` is itself.

    `metric.labels(…)` validates and locks at each call; a dictionary look-up does not.
    """

    def __init__(self, metric: Child, *, shared: bool = False) -> None:
        super().__init__()
        self._metric: Child = metric
        self._shared = shared

    def __missing__(self, labels: Any) -> Child:
        values = labels if isinstance(labels, tuple) else (labels,)
        child: Child = self._metric.labels(*map(str, values)) if values else self._metric
        self[labels] = child
        return child

    def forget(self, labels: tuple[str, ...]) -> None:
        """Take a label set out of the exposition. Only gauges are forgotten."""
        child = self.pop(labels, None)
        if child is None:
            return
        if self._shared and isinstance(child, Gauge):
            child.set(math.nan)  # nothing can be taken out of a shared file: what is not a number is not shown
        else:
            self._metric.remove(*labels)
