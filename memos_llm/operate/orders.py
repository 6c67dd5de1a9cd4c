"""What may be asked for: the bodies of the admin API, and what the command line asks. Read strictly: see `read`."""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from memos_llm.core.call import COMPONENT
from memos_llm.core.decoding import FAILURES
from memos_llm.core.errors import BadRequest
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM, Verification, parse_share
from memos_llm.core.lines import one_line

T = TypeVar("T", bound=Struct)

MAX_REASON = 500  # characters

WAIT_S = 10.0  # for live instances to follow, unless asked otherwise; also the most


class ShiftOrder(Struct, frozen=True, kw_only=True):
    """Set the candidate's share. `share` is a fraction (0.3), or text: "0.3", "30%". `wait_s` for who follows."""

    provider: str
    share: float | str
    component: str | None = None
    reason: str = ""
    new_index: bool = False
    wait_s: float = WAIT_S

    @property
    def share_ppm(self) -> int:
        """Raises:
        BadRequest: it is no share; the message says how to write one.
        """
        try:
            return parse_share(self.share if isinstance(self.share, str) else f"{self.share:.12g}")
        except ValueError as error:
            raise BadRequest(f"share: {error}") from None


class RollbackOrder(Struct, frozen=True, kw_only=True):
    """Take the share back to 0, latched. `provider` is the candidate, and may be left out."""

    provider: str | None = None
    component: str | None = None
    reason: str = ""
    wait_s: float = WAIT_S


class RearmOrder(Struct, frozen=True, kw_only=True):
    """Lift a latch. `force` cuts a hold-down short and needs a reason."""

    provider: str | None = None
    component: str | None = None
    reason: str = ""
    force: bool = False
    wait_s: float = WAIT_S


class MaintenanceOrder(Struct, frozen=True, kw_only=True, rename={"lasts": "for"}):
    """Drain a provider for a while (`"for"`: `90s`, `10m`, `2h`, 24 hours at most), or `end` that."""

    provider: str
    lasts: str | None = None
    end: bool = False
    reason: str = ""
    wait_s: float = WAIT_S

    @property
    def for_s(self) -> float | None:
        """How long, in seconds; None: it ends now.

        Raises:
            BadRequest: neither or both were asked for, or it is no such time.
        """
        if self.end and self.lasts is None:
            return None
        if self.end or self.lasts is None:
            raise BadRequest('a maintenance needs either for ("10m"), how long it lasts, or end')
        return duration_s(self.lasts)


class ExplainOrder(Struct, frozen=True, kw_only=True):
    """Which call. What is left out: the first configured model, its component by the rules, a session of its own."""

    component: str | None = None
    session: str | None = None
    model: str | None = None


class InventoryOrder(Struct, frozen=True, kw_only=True):
    """How far back: `7d`, `12h`, `90m`, `2w`."""

    since: str = "7d"


class AdoptOrder(Struct, frozen=True, kw_only=True):
    """Accept a store that has regressed. `sure`: do it, and not only say what it would do."""

    sure: bool = False
    reason: str = ""
    wait_s: float = WAIT_S


class VerifyOrder(Struct, frozen=True, kw_only=True):
    """Record the proof that a model's vectors are the same on both sides; without one, that they are not."""

    model: str
    proof: Verification | None
    reason: str = ""
    wait_s: float = WAIT_S


DURATION = re.compile(r"(\d{1,6}(?:\.\d+)?)([smh])")
SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}
LONGEST_S = 24 * 3600.0


def duration_s(text: str) -> float:
    """Seconds from `90s`, `10m` or `2h`.

    Raises:
        BadRequest: it is none, or longer than 24 hours.
    """
    found = DURATION.fullmatch(text.strip().lower())
    seconds = float(found[1]) * SECONDS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST_S:
        raise BadRequest(f"for: {text[:20]!r}: write 90s, 10m or 2h; 24h at most")
    return seconds


def scope_of(component: str | None) -> str:
    """The scope that an order is about; everything when it names no component.

    Raises:
        BadRequest
    """
    if component is None or component == GLOBAL:
        return GLOBAL
    if not COMPONENT.fullmatch(component):
        raise BadRequest(f"component {component!r}: letters, digits, and . _ : -, 64 at most")
    return component


def check_new_index(order: ShiftOrder) -> None:
    """Raises:
    BadRequest: a new index is of embeddings alone.
    """
    if order.new_index and scope_of(order.component) != EMBEDDING:
        raise BadRequest("new_index goes with the component embedding only")


def waiting(wait_s: float) -> float:
    """Raises:
    BadRequest
    """
    if not 0 <= wait_s <= WAIT_S:  # refuses NaN too
        raise BadRequest(f"wait_s: {wait_s:g} is outside 0 to {WAIT_S:g}")
    return wait_s


def in_a_line(reason: str) -> str:
    """A reason as it is kept and shown, on terminals too: one line without control characters, cut if need be."""
    line = one_line(reason)
    return line if len(line) <= MAX_REASON else f"{line[: MAX_REASON - 1]}…"


def read(body: bytes, kind: type[T]) -> T:
    """An order from the JSON of a request; an empty body is an empty object.

    Raises:
        BadRequest: no JSON object, an unknown key (named, with the nearest known one), or a value of a wrong type.
    """
    try:
        found = msgspec.json.decode(body or b"{}")
    except FAILURES:
        raise BadRequest("the body is not JSON") from None
    if not isinstance(found, dict):
        raise BadRequest("the body must be a JSON object")
    return convert(found, kind)


def convert(found: Mapping[str, Any], kind: type[T], *, strict: bool = True) -> T:
    """An order from decoded values; `strict` is False for a query, whose values are all text.

    Raises:
        BadRequest: as `read`.
    """
    known = kind.__struct_encode_fields__
    for key in found:
        if key not in known:
            close = get_close_matches(str(key), known, 1)
            guess = f"; did you mean {close[0]}?" if close else ""
            raise BadRequest(f"unknown key {str(key)[:80]!r}{guess} (known: {', '.join(known) or 'none'})")
    try:
        return msgspec.convert(dict(found), kind, strict=strict)
    except msgspec.ValidationError as error:
        raise BadRequest(str(error)) from None


def percent(ppm: int) -> str:
    """`300_000` → `30%`, exact to the ppm that shares are kept in."""
    return f"{ppm / PPM * 100:.4f}".rstrip("0").rstrip(".") + "%"
