"""What an Ollama request wants of its runner, how that is loaded, and what `/api/ps` says: reading and writing."""

import math
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memos_llm.core.call import Wire, WireRequest
from memos_llm.core.errors import AttemptFailed
from memos_llm.providers.ollama import canonical
from memos_llm.providers.ollama_loads import PLAIN, Fixed, Loaded, Needs, duration_s, load_body, needs, read_ps
from memos_llm.providers.warmth import Warmth


def asked(wire: Wire, body: bytes) -> Needs:
    return needs(WireRequest("r", wire, "m", body, False))


def test_a_request_that_says_nothing_of_the_runner_needs_the_plain_one() -> None:
    body = b'{"model":"m","messages":[],"options":{"temperature":0.5,"num_predict":5}}'
    assert asked(Wire.OLLAMA_CHAT, body) is PLAIN[Wire.OLLAMA_CHAT]


def test_the_load_has_the_load_time_options_and_no_other() -> None:
    body = b'{"options":{"use_mmap":false,"seed":1,"num_ctx":8192,"num_gpu":null},"shift":false,"keep_alive":"5m"}'
    need = asked(Wire.OLLAMA_CHAT, body)
    assert msgspec.json.decode(load_body("m", need)) == {
        "model": "m",
        "stream": False,
        "options": {"num_ctx": 8192, "use_mmap": False},
        "shift": False,
        "keep_alive": "5m",
    }


def test_v1_reads_no_options() -> None:
    assert asked(Wire.OPENAI_CHAT, b'{"options":{"num_ctx":1},"keep_alive":0}') is PLAIN[Wire.OPENAI_CHAT]


def test_embedding_models_are_loaded_by_their_own_route() -> None:
    need = asked(Wire.OLLAMA_EMBEDDINGS, b'{"prompt":"x","options":{"num_ctx":512}}')
    assert need.path == "/api/embed"
    assert msgspec.json.decode(load_body("m", need)) == {"model": "m", "input": [], "options": {"num_ctx": 512}}


@pytest.mark.parametrize(
    ("body", "unloads"),
    [
        (b'{"keep_alive":0}', True),
        (b'{"keep_alive":"0s","messages":[]}', True),
        (b'{"keep_alive":0,"prompt":""}', True),
        (b'{"keep_alive":0,"prompt":"x"}', False),
        (b'{"keep_alive":"1m"}', False),
        (b'{"note":"keep_alive"}', False),
    ],
)
def test_an_unload_is_told_from_a_last_request(body: bytes, unloads: bool) -> None:
    need = asked(Wire.OLLAMA_GENERATE, body)
    assert need.unloads is unloads
    assert b"keep_alive" not in load_body("m", need) or need.keep_alive_s  # 0 would make the load an unload


@pytest.mark.parametrize("body", [b"", b"[]", b'{"options":3,"keep_alive":0}', b'{"num_ctx":' + b"[" * 5000])
def test_what_cannot_be_read_is_left_to_ollama(body: bytes) -> None:
    assert asked(Wire.OLLAMA_CHAT, b'"num_ctx"' + body) == PLAIN[Wire.OLLAMA_CHAT]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"300", 300.0),
        (b"0", 0.0),
        (b"-1", math.inf),
        (b'"1h30m"', 5400.0),
        (b'"1.5s"', 1.5),
        (b'"-1s"', math.inf),
        (b'"0"', 0.0),
        (b'"soon"', None),
        (b'""', None),
        (b"true", None),
        (b"", None),
        (b"{", None),
    ],
)
def test_keep_alive_is_read_as_go_reads_it(value: bytes, seconds: float | None) -> None:
    assert duration_s(value) == seconds


@given(st.text())
def test_no_keep_alive_breaks_the_reader(text: str) -> None:
    duration_s(msgspec.json.encode(text))


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_what_is_loaded_is_read_with_its_time() -> None:
    body = (
        b'{"models":[{"name":"a:latest","model":"a:latest","expires_at":"2026-01-01T01:05:00.123456789+01:00",'
        b'"context_length":4096},{"name":"b","expires_at":"2319-01-01T00:00:00Z"},{"name":"c","expires_at":"x"}]}'
    )
    first, second, third = read_ps(body, NOW)
    assert (first.model, round(first.left_s), first.context_tokens) == ("a:latest", 300, 4096)
    assert (second.model, second.left_s > 1e9) == ("b", True)
    assert third == Loaded("c", 300.0)
    assert read_ps(b'{"models":null}', NOW) == []
    with pytest.raises(AttemptFailed):
        read_ps(b"<html>", NOW)


# --- the table of what is warm ----------------------------------------------------------------------------------------

CTX: Fixed = (("num_ctx", b"8192"),)


def warmth() -> Warmth:
    return Warmth(canonical)


def test_a_success_keeps_a_model_warm_for_its_time() -> None:
    table = warmth()
    table.proved("A:latest", (), None, 0.0)
    assert table.fits("a", (), 299.0)
    assert not table.fits("a", (), 300.0)
    table.proved("a", (), 10.0, 300.0)
    assert not table.fits("a", (), 310.0)
    table.proved("a", (), math.inf, 400.0)
    assert table.fits("a", (), 1e9)
    table.proved("a", (), 0.0, 400.0)
    assert not table.fits("a", (), 400.0)


def test_another_load_option_is_another_runner() -> None:
    table = warmth()
    table.proved("a", CTX, None, 0.0)
    assert table.fits("a", CTX, 1.0)
    assert not table.fits("a", (), 1.0)


def test_of_a_runner_that_somebody_else_loaded_the_context_is_known() -> None:
    table = warmth()
    table.listed([Loaded("a", 100.0, 8192)], 0.0)
    assert table.fits("a", CTX, 1.0)
    assert table.fits("a", (), 1.0)
    assert not table.fits("a", (("num_ctx", b"4096"),), 1.0)
    assert not table.fits("a", CTX, 101.0)


def test_what_is_no_longer_listed_is_cold() -> None:
    table = warmth()
    table.proved("a", (), None, 0.0)
    table.listed([], 60.0)
    assert not table.fits("a", (), 60.0)


def test_a_model_that_just_served_and_is_not_listed_shares_a_runner() -> None:
    """Else it would be loaded again after every look, and the two models would take the runner from each other."""
    table = warmth()
    table.proved("twin", (), None, 10.0)
    table.listed([Loaded("a", 100.0)], 11.0)
    table.listed([Loaded("a", 100.0)], 60.0)
    assert table.fits("twin", (), 61.0)
    table.listed([Loaded("a", 100.0)], 311.0)
    assert table.find("twin", 311.0) is None


def test_one_that_is_about_to_be_unloaded_is_not_made_warm() -> None:
    table = warmth()
    table.listed([Loaded("a", -1.0)], 0.0)
    assert not table.fits("a", (), 0.0)


def test_somebody_else_loading_it_anew_is_noticed() -> None:
    table = warmth()
    table.proved("a", (), None, 0.0)
    table.listed([Loaded("a", 300.0, 4096)], 1.0)
    assert table.fits("a", (), 2.0)
    table.listed([Loaded("a", 300.0, 8192)], 60.0)
    assert table.fits("a", CTX, 61.0)
