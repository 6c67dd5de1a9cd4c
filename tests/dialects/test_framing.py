"""Events are the same whatever the chunk boundaries, and no byte is lost."""

import pytest
from dialect_streams import OLLAMA_STREAM, VLLM_STREAM, cut
from hypothesis import given, settings
from hypothesis import strategies as st

from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind
from memos_llm.dialects.framing import Event, Framer, NdjsonFramer, SseFramer

LINES = st.lists(
    st.sampled_from(
        ["data: a", "data:b", "data: grüß 🚀", "data", ": note", "event: x", "id: 1", "", "data:  two", "\ufeff", "dat"]
    ),
    max_size=12,
)
SSE = st.tuples(LINES, st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=13, max_size=13)).map(
    lambda t: "".join(line + end for line, end in zip(*t, strict=False)).encode()
)


def events(framer: Framer, chunks: list[bytes]) -> list[Event]:
    found = [event for piece in chunks for event in framer.feed(piece)]
    return found + framer.close()


def payloads(found: list[Event]) -> list[bytes]:
    return [event.data for event in found if event.data is not None]


@settings(max_examples=300)
@given(SSE, st.data())
def test_sse_events_do_not_depend_on_the_cuts_and_keep_every_byte(data: bytes, draw: st.DataObject) -> None:
    places = draw.draw(st.lists(st.integers(0, len(data)), max_size=6))
    whole, pieces = events(SseFramer(), [data]), events(SseFramer(), cut(data, places))
    assert b"".join(event.raw for event in pieces) == b"".join(event.raw for event in whole) == data
    assert payloads(pieces) == payloads(whole)


@settings(max_examples=200)
@given(st.lists(st.sampled_from([b"{}", b"", b" ", b'{"a":"\xc3\xbc"}', b"\r"]), max_size=9), st.data())
def test_ndjson_events_do_not_depend_on_the_cuts_and_keep_every_byte(lines: list[bytes], draw: st.DataObject) -> None:
    data = b"\n".join(lines)
    places = draw.draw(st.lists(st.integers(0, len(data)), max_size=6))
    pieces = events(NdjsonFramer(), cut(data, places))
    assert b"".join(event.raw for event in pieces) == data
    assert payloads(pieces) == [line.strip() for line in lines if line.strip()]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_every_line_end_ends_an_event_at_once(end: str) -> None:
    raw = f"event: x{end}: note{end}data: one{end}data:two{end}id{end}{end}".encode()
    assert SseFramer().feed(raw) == [Event(raw, b"one\ntwo")]


def test_one_carriage_return_line_feed_is_no_blank_line() -> None:
    framer = SseFramer()
    assert framer.feed(b"data: a\r") == []
    assert framer.feed(b"\n") == []
    assert payloads(framer.feed(b"data: b\r\n\r\n")) == [b"a\nb"]


def test_comments_and_blank_lines_have_no_payload() -> None:
    assert [event.data for event in SseFramer().feed(b": keep-alive\n\n\n\ndata: x\n\n")] == [None, None, b"x"]


@pytest.mark.parametrize(("framer", "data"), [(SseFramer, VLLM_STREAM), (NdjsonFramer, OLLAMA_STREAM)])
def test_every_single_cut_gives_the_same_events(framer: type[SseFramer], data: bytes) -> None:
    whole = events(framer(), [data])
    for place in range(len(data)):
        assert events(framer(), cut(data, [place])) == whole


@pytest.mark.parametrize(
    ("framer", "fits", "big"),
    [(SseFramer, b"data: 1\n\n", b"data: 123456\n\n"), (NdjsonFramer, b"[1]\n", b"[1,2,3,4,5]\n")],
)
def test_an_oversize_event_fails_after_what_came_before_it(framer: type[SseFramer], fits: bytes, big: bytes) -> None:
    for first, then in ((fits + big, b""), (fits, big), (fits + big[:-1], b""), (fits + big + fits, b"")):
        cutter = framer(max_event_bytes=10)
        assert [event.raw for event in cutter.feed(first)] == [fits]
        with pytest.raises(AttemptFailed) as failed:
            cutter.feed(then)
        assert (failed.value.outcome.kind, failed.value.outcome.code) == (Kind.MALFORMED, "oversize")
        with pytest.raises(AttemptFailed):
            cutter.close()
