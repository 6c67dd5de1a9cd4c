"""The split: stable, monotone, unbiased, independent."""

import hashlib
import math
import subprocess
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memos_llm.core.flags import PPM
from memos_llm.router.split import GROUP, fingerprint, in_share, slot

SALT = "00112233445566778899aabbccddeeff"
keys = st.binary(max_size=64)
shares = st.integers(0, PPM)

FROZEN = [  # changing any of these moves users' conversations between arms
    (SALT, "all", b"conv-1", 839519),
    (SALT, "all", b"", 618849),
    (SALT, "synthesis", b"conv-1", 159667),
    ("", "all", b"conv-1", 924243),
    (SALT, "all", "日本語".encode(), 260374),
]


def by_the_text(salt: str, group: str, key: bytes, label: str = "split/v1") -> int:
    """The definition, written again without looking."""
    message = b""
    for field in (label.encode(), salt.encode(), group.encode(), key):
        message += len(field).to_bytes(4, "big") + field
    return int.from_bytes(hashlib.sha256(message).digest()[:8], "big") * 1_000_000 >> 64


@pytest.mark.parametrize(("salt", "group", "key", "expected"), FROZEN)
def test_frozen_vectors_never_move(salt: str, group: str, key: bytes, expected: int) -> None:
    assert slot(salt, group, key) == expected


@given(st.text(max_size=20), st.text(max_size=20), keys)
def test_slot_is_what_the_definition_says(salt: str, group: str, key: bytes) -> None:
    assert slot(salt, group, key) == by_the_text(salt, group, key)
    assert 0 <= slot(salt, group, key) < PPM


@given(keys, shares, shares)
def test_raising_only_adds_and_lowering_only_removes(key: bytes, a: int, b: int) -> None:
    low, high = sorted((a, b))
    assert in_share(SALT, key, low) <= in_share(SALT, key, high)


@given(keys)
def test_zero_is_nobody_and_one_is_everybody(key: bytes) -> None:
    assert not in_share(SALT, key, 0)
    assert in_share(SALT, key, PPM)


def test_field_boundaries_matter() -> None:
    assert slot("ab", "c", b"k") != slot("a", "bc", b"k")
    assert slot("s", "ab", b"c") != slot("s", "a", b"bc")


def populations(n: int) -> dict[str, list[bytes]]:
    return {
        "random": [hashlib.blake2b(b"%d" % i).digest() for i in range(n)],
        "sequential": [b"%d" % i for i in range(n)],
        "shared prefix": [b"tenant-0001/user/session-" + b"%06d" % i for i in range(n)],
    }


@pytest.mark.parametrize("share_ppm", [10_000, 100_000, 300_000, 700_000, 990_000])
@pytest.mark.parametrize("population", ["random", "sequential", "shared prefix"])
def test_observed_share_is_within_the_binomial_bounds(population: str, share_ppm: int) -> None:
    sample = populations(20_000)[population]
    hits = sum(in_share(SALT, key, share_ppm) for key in sample)
    low, high = stats.binom.interval(0.999, len(sample), share_ppm / PPM)
    assert low <= hits <= high


def test_split_shadow_and_aa_are_independent() -> None:
    """χ² on the joint table of three labels, each cut at its own point."""
    counts = [[[0, 0], [0, 0]], [[0, 0], [0, 0]]]
    for key in populations(20_000)["sequential"]:
        cut = [
            slot(SALT, GROUP, key, label) < at
            for label, at in (("split/v1", 300_000), ("shadow/v1", 500_000), ("aa/v1", 500_000))
        ]
        counts[cut[0]][cut[1]][cut[2]] += 1
    assert stats.chi2_contingency(counts).pvalue > 0.001


def test_same_in_every_process_whatever_its_hash_seed() -> None:
    code = f"from memos_llm.router.split import slot; print([slot({SALT!r}, 'all', b'k%d' % i) for i in range(50)])"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True
        ).stdout
        for seed in ("1", "2")
    }
    assert runs == {repr([slot(SALT, "all", b"k%d" % i) for i in range(50)]).encode() + b"\n"}


@settings(max_examples=50)
@given(st.lists(keys, min_size=1, max_size=50, unique=True))
def test_a_rising_share_moves_each_key_at_most_once(sample: list[bytes]) -> None:
    for key in sample:
        path = [in_share(SALT, key, s) for s in range(0, PPM + 1, 50_000)]
        assert sum(a != b for a, b in pairwise(path)) == 1


def test_what_is_kept_of_a_key_does_not_tell_the_key() -> None:
    assert fingerprint(SALT, b"alice") == fingerprint(SALT, b"alice")
    assert len({fingerprint(SALT, b"alice"), fingerprint(SALT, b"bob"), fingerprint("other", b"alice")}) == 3
    assert math.log2(16) * len(fingerprint(SALT, b"alice")) == 64
