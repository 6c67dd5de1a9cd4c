"""Which replica a conversation lives on: rendezvous hashing, the same in every process.

Each endpoint has a weight for each key; the heaviest usable one is the key's home. So when an endpoint goes, only its
own keys move, and when one comes, it takes an equal part from everyone. (Thaler and Ravishankar, "Using name-based
mappings to increase hit rates", 1998.)
"""

from hashlib import blake2b

SLACK = 2  # requests in flight that a home may have beyond the least loaded endpoint
SLACK_FACTOR = 1.5  # and how many times as many

_MASK = 2**64 - 1
_MIX = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: spreads what differs anywhere into the upper bits (Knuth, 6.4)


def fingerprint(name: bytes) -> int:
    """64 bits of a key or of an endpoint's address."""
    return int.from_bytes(blake2b(name, digest_size=8).digest())


def weight(key: int, endpoint: int) -> int:
    """How much an endpoint is a key's home; both as `fingerprint` gives them."""
    return (key ^ endpoint) * _MIX & _MASK


def overloaded(home: int, least: int, limit: int | None) -> bool:
    """Whether a home with so many requests in flight is left for the least loaded endpoint."""
    full = limit is not None and home >= limit > least
    return full or (home > least + SLACK and home > SLACK_FACTOR * least)
