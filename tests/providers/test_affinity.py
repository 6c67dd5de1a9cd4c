"""Conversation affinity: keys stay where they are while endpoints come and go, unless their home is overloaded."""

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from memos_llm.core.events import Bus
from memos_llm.core.policy import Endpoint
from memos_llm.providers.affinity import fingerprint, overloaded, weight
from memos_llm.providers.breaker import BreakerLimits
from memos_llm.providers.endpoints import Pool
from memos_llm.testing import ManualClock

URLS = [f"http://replica-{n}:8000" for n in range(6)]
KEYS = [f"conversation {n}".encode() for n in range(400)]


def pool_of(urls: list[str], max_inflight: int | None = None) -> Pool:
    return Pool(
        "p",
        [Endpoint(url) for url in urls],
        Bus(),
        clock=ManualClock(),
        rng=Random(0),
        limits=BreakerLimits(jitter=0.0),
        max_inflight=max_inflight,
    )


def homes(pool: Pool, keys: list[bytes] = KEYS) -> dict[bytes, str]:
    return {key: pool.pick("m", key).url for key in keys}


@given(st.lists(st.sampled_from(URLS), min_size=2, unique=True), st.data(), st.lists(st.binary(min_size=1), min_size=1))
def test_only_the_keys_of_the_endpoint_that_goes_move(urls: list[str], data: st.DataObject, keys: list[bytes]) -> None:
    gone = data.draw(st.sampled_from(urls))
    before, after = homes(pool_of(urls), keys), homes(pool_of([url for url in urls if url != gone]), keys)
    assert all(after[key] == home for key, home in before.items() if home != gone)
    assert gone not in after.values()


def test_the_order_of_the_file_means_nothing() -> None:
    assert homes(pool_of(URLS)) == homes(pool_of(URLS[::-1]))


def test_every_endpoint_gets_its_part() -> None:
    counts = Counter(homes(pool_of(URLS[:4])).values())
    assert set(counts) == set(URLS[:4])
    assert all(60 < count < 140 for count in counts.values())  # 100 each; 4.6 standard deviations


def test_homes_are_the_same_in_every_process_and_release() -> None:
    key = fingerprint(b"conversation 1")
    assert key == 0x996CB15FB0CCE14E
    assert weight(key, fingerprint(b"http://replica-0:8000")) == 0x1E8DBC561C0957C4


def test_one_that_is_down_hands_over_its_keys_only_and_gets_them_back() -> None:
    pool = pool_of(URLS[:3])
    before = homes(pool)
    pool.find(URLS[0]).up = False
    meanwhile = homes(pool)
    assert URLS[0] not in meanwhile.values()
    assert all(meanwhile[key] == home for key, home in before.items() if home != URLS[0])
    pool.find(URLS[0]).up = True
    assert homes(pool) == before


def test_a_home_is_left_only_when_it_has_clearly_more_to_do() -> None:
    pool = pool_of(URLS[:2])
    key = next(key for key, home in homes(pool).items() if home == URLS[0])
    leases = [pool.find(URLS[0]).begin(), pool.find(URLS[0]).begin()]
    assert pool.pick("m", key).url == URLS[0]
    leases.append(pool.find(URLS[0]).begin())
    assert pool.pick("m", key).url == URLS[1]
    leases.pop().end()
    assert pool.pick("m", key).url == URLS[0]


def test_a_little_more_of_much_is_not_clearly_more() -> None:
    assert not overloaded(home=14, least=10, limit=None)
    assert overloaded(home=16, least=10, limit=None)


def test_a_full_home_is_left_for_one_with_a_place() -> None:
    pool = pool_of(URLS[:2], max_inflight=1)
    key = next(key for key, home in homes(pool).items() if home == URLS[0])
    pool.find(URLS[0]).begin()
    assert pool.pick("m", key).url == URLS[1]
    pool.find(URLS[1]).begin()
    assert pool.pick("m", key).url == URLS[0]


def test_without_a_key_the_least_loaded_is_next() -> None:
    pool = pool_of(URLS[:2])
    pool.find(URLS[0]).begin()
    assert [pool.pick("m").url for _ in range(3)] == [URLS[1]] * 3
