"""Label values that stay bounded, and metric children kept per label set."""

from collections.abc import Iterable
from typing import Any, Generic, TypeVar

from prometheus_client import Counter, Gauge, Histogram

OTHER = "other"
Child = TypeVar("Child", Counter, Gauge, Histogram)


class Slots:
    """At most `limit` label values; what comes later is `other`. Reserved values always keep theirs."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._known: dict[str, str] = {}

    def reserve(self, values: Iterable[str]) -> None:
        """Give configured values a slot, even beyond the limit: they are bounded by the configuration."""
        self._known |= {value: value for value in values}

    def __getitem__(self, value: str) -> str:
        known = self._known.get(value)
        if known is not None:
            return known
        if len(self._known) >= self._limit:
            return OTHER
        self._known[value] = value
        return value


class Children(dict[Any, Child], Generic[Child]):
    """A metric's children by label set (a tuple, or the value of an only label), made on first use.

    `metric.labels(…)` validates and locks at each call; a dictionary look-up does not.
    """

    def __init__(self, metric: Child) -> None:
        super().__init__()
        self._metric: Child = metric

    def __missing__(self, labels: Any) -> Child:
        values = labels if isinstance(labels, tuple) else (labels,)
        child: Child = self._metric.labels(*map(str, values))
        self[labels] = child
        return child

    def forget(self, labels: tuple[str, ...]) -> None:
        """Take a label set out of the exposition."""
        if self.pop(labels, None) is not None:
            self._metric.remove(*labels)
