"""Who makes a request: an API key, the admin token, or anyone on this machine.

Keys are 256 random bits, so that a plain SHA-256 finds one and nothing can be guessed from the time that takes. A key
that was given is never kept, logged or sent on.
"""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping

from msgspec import Struct

from memos_llm.core.errors import Overloaded, Unauthorized
from memos_llm.core.ports import Clock
from memos_llm.gateway.principal import ANONYMOUS, Principal, Right
from memos_llm.gateway.rules import Key, Rules

ADMIN_TOKEN = Principal("admin-token", frozenset(Right))
MAX_KEY_BYTES = 1024


class Doorkeeper:
    """Tells callers apart, and counts what those with a rate limit do. `admin_token`: the token that may do all."""

    def __init__(self, admin_token: str, clock: Clock) -> None:
        self._admin_token = admin_token.encode()
        self._buckets = Buckets(clock)

    def who(self, headers: Mapping[bytes, bytes], rules: Rules) -> Principal:
        """The one who asks.

        Raises:
            Unauthorized: keys are configured, and this is none of them.
            Overloaded: its rate limit is used up (429).
        """
        given = presented(headers)
        if given is None:
            if rules.keys:
                raise Unauthorized("this gateway wants an API key: as a bearer token, or in the header x-api-key")
            return ANONYMOUS
        if hmac.compare_digest(given, self._admin_token):
            return ADMIN_TOKEN
        if not rules.keys:
            return ANONYMOUS  # SDKs send some key to anyone
        digest = hashlib.sha256(given).digest()
        key = rules.keys.get(digest)
        if key is None or not hmac.compare_digest(digest, key.digest):
            raise Unauthorized("this gateway does not know that API key")
        self._buckets.take(key)
        return key.principal


def presented(headers: Mapping[bytes, bytes]) -> bytes | None:
    """The key that a request brings: as a bearer token, as Basic's password, or in `x-api-key`."""
    scheme, _, rest = headers.get(b"authorization", b"").partition(b" ")
    rest, scheme = rest.strip(), scheme.lower()
    if scheme == b"bearer" and rest:
        return rest[:MAX_KEY_BYTES]
    if scheme == b"basic" and (password := _password(rest)):
        return password
    return headers.get(b"x-api-key", b"").strip()[:MAX_KEY_BYTES] or None


def _password(encoded: bytes) -> bytes | None:
    try:
        return base64.b64decode(encoded[: 2 * MAX_KEY_BYTES], validate=True).partition(b":")[2]
    except binascii.Error:
        return None


class _Bucket(Struct):
    tokens: float
    at: float
    rate_per_minute: int


class Buckets:
    """Token buckets: each key may spend a minute's worth at once, and earns it back evenly."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._buckets: dict[str, _Bucket] = {}  # of configured keys only, hence bounded

    def take(self, key: Key) -> None:
        """One request of a key.

        Raises:
            Overloaded: none is left; says when one will be.
        """
        rate, id, now = key.rate_per_minute, key.principal.id, self._clock()
        if rate is None:
            return
        bucket = self._buckets.get(id)
        if bucket is None or bucket.rate_per_minute != rate:
            bucket = self._buckets[id] = _Bucket(rate, now, rate)
        bucket.tokens = min(float(rate), bucket.tokens + (now - bucket.at) * rate / 60)
        bucket.at = now
        if bucket.tokens < 1:
            wait_s = (1 - bucket.tokens) * 60 / rate
            raise Overloaded(f"more than {rate} requests a minute with this key", http_status=429, retry_after_s=wait_s)
        bucket.tokens -= 1
