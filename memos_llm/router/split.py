"""The split: a key's slot among a million, and whether the slot is inside the share.

Deterministic in every process and release (`split/v1` is frozen by test vectors). Raising a share only adds keys,
lowering only removes them, because a key's slot never moves: salt and group are the only other inputs.
"""

import hashlib
from functools import lru_cache

from memos_llm.core.flags import PPM

SPLIT = "split/v1"  # shadow, A/A and control sampling use labels of their own, so that they are independent
GROUP = "all"  # shared by all components: one conversation moves as a whole


def slot(salt: str, group: str, key: bytes, label: str = SPLIT) -> int:
    """0 … 999,999: the first 8 bytes (big endian) of SHA-256 over the length-prefixed fields, scaled without modulo."""
    digest = _prefix(label, salt, group).copy()
    digest.update(_field(key))
    return (int.from_bytes(digest.digest()[:8], "big") * PPM) >> 64


def in_share(salt: str, key: bytes, share_ppm: int, group: str = GROUP) -> bool:
    """Whether a key belongs to the candidate at this share."""
    if share_ppm <= 0:
        return False
    return slot(salt, group, key) < share_ppm


def fingerprint(salt: str, key: bytes) -> str:
    """What may be kept of a key: its keyed hash (BLAKE2b in its MAC mode, RFC 7693), 16 hex digits.

    HMAC-SHA-256 through OpenSSL costs 19 µs a request here, this one.
    """
    return hashlib.blake2b(key, key=salt.encode()[:64], digest_size=8).hexdigest()


@lru_cache(maxsize=64)
def _prefix(*fields: str) -> "hashlib._Hash":
    return hashlib.sha256(b"".join(_field(field.encode()) for field in fields))


def _field(data: bytes) -> bytes:
    """Four bytes of length, big endian, then the bytes: ("ab", "c") and ("a", "bc") differ."""
    return len(data).to_bytes(4, "big") + data
