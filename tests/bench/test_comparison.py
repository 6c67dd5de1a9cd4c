"""`llmctl bench`: from samples to figures, from figures to ratios with their doubt, and the words for both."""

import csv
import io

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from memos_llm.bench import cells
from memos_llm.bench.comparison import (
    FEW,
    Figures,
    Ratio,
    Sample,
    Turn,
    compare,
    figures,
    loads,
    percentile,
    ratio,
    tokens_per_s,
)
from memos_llm.bench.prompts import DEFAULT, chars, marked, text_of
from memos_llm.bench.remarks import summary, warnings
from memos_llm.bench.report import CSV_COLUMNS, Level, ModelReport, Report, Settings, Side, as_csv, as_json, as_markdown


def sample(ttft_s: float = 0.1, whole_s: float = 1.1, tokens: int | None = 11, error: str = "") -> Sample:
    if error:
        return Sample(prompt=0, prompt_chars=9, whole_s=whole_s, error=error)
    return Sample(prompt=0, prompt_chars=9, whole_s=whole_s, ttft_s=ttft_s, last_s=whole_s, output_tokens=tokens)


def turn(provider: str, number: int = 0, *samples: Sample, wall_s: float = 2.0, cpu_s: float = 0.1) -> Turn:
    return Turn(
        model="m",
        provider=provider,
        concurrency=max(1, len(samples)),
        round=number,
        wall_s=wall_s,
        warm_up_s=0.1,
        client_cpu_s=cpu_s,
        samples=samples or (sample(),),
    )


# Figures


def test_tpot_is_the_time_between_first_and_last_text_over_all_tokens_but_the_first() -> None:
    assert sample(ttft_s=0.5, whole_s=1.5, tokens=11).tpot_s == pytest.approx(0.1)


@pytest.mark.parametrize("one", [sample(tokens=1), sample(tokens=None), sample(error="timeout")])
def test_there_is_no_tpot_without_two_counted_tokens(one: Sample) -> None:
    assert one.tpot_s is None


def test_a_rate_counts_the_tokens_of_all_clients_over_the_wall_time_of_all_rounds() -> None:
    turns = [turn("a", n, sample(tokens=30), sample(tokens=10), wall_s=2.0 + n) for n in range(2)]
    assert tokens_per_s(turns) == pytest.approx(80 / 5)


def test_the_time_of_failures_counts_and_their_tokens_do_not() -> None:
    found = figures([turn("a", 0, sample(tokens=30), sample(error="server 500"), wall_s=3.0)])
    assert found.per_s == pytest.approx(10)
    assert (found.requests, found.answered, found.errors) == (2, 1, {"server 500": 1})
    assert found.whole_p50_s == pytest.approx(1.1)


def test_one_answer_without_its_count_leaves_no_rate_rather_than_a_wrong_one() -> None:
    found = figures([turn("a", 0, sample(tokens=30), sample(tokens=None))])
    assert found.per_s is None
    assert found.without_usage == 1


def test_a_provider_that_answered_nothing_has_no_figures() -> None:
    found = figures([turn("a", 0, sample(error="timeout"), sample(error="connect"))])
    assert found.answered == 0
    assert (found.per_s, found.ttft_p50_s, found.whole_p95_s, found.tpot_p50_s) == (None, None, None, None)
    compared = compare([turn("b")], [turn("a", 0, sample(error="timeout"))])
    assert compared is not None
    assert compared.per_s is None


@pytest.mark.parametrize(("count", "late", "few"), [(FEW - 1, 19, True), (FEW, 19, False), (100, 95, False)])
def test_a_95th_percentile_needs_20_answers_else_the_greatest_is_shown_as_such(
    count: int, late: int, few: bool
) -> None:
    found = figures([turn("a", 0, *(sample(whole_s=float(n)) for n in range(1, count + 1)))])
    assert (found.whole_p95_s, found.few) == (late, few)
    assert cells.spread(0.05, 1.92, few=few).endswith("*") is few


@given(values=st.lists(st.floats(0, 1e6), min_size=1), part=st.floats(0.01, 1))
def test_a_percentile_is_a_value_that_enough_of_them_do_not_exceed(values: list[float], part: float) -> None:
    found = percentile(values, part)
    assert found in values
    assert sum(value <= found for value in values) >= part * len(values) - 1e-6
    assert sum(value < found for value in values) < part * len(values) + 1e-6


# Ratios


def rounds(provider: str, walls: list[float]) -> list[Turn]:
    return [turn(provider, n, sample(tokens=100), wall_s=wall_s) for n, wall_s in enumerate(walls)]


def test_a_ratio_is_of_the_rates_over_all_rounds_and_lies_in_its_interval() -> None:
    compared = compare(rounds("b", [1.0, 1.1, 0.9, 1.0, 1.0, 1.0]), rounds("a", [5.0, 5.0, 5.2, 4.8, 5.0, 5.0]))
    assert compared is not None
    found = compared.per_s
    assert found is not None
    assert found.value == pytest.approx(5.0)
    assert found.low is not None
    assert found.high is not None
    assert 4.5 < found.low < found.value < found.high < 5.8
    assert found.clear


def test_what_drifts_over_both_sides_is_not_in_the_interval() -> None:
    drifting = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    compared = compare(rounds("b", drifting), rounds("a", [3 * wall_s for wall_s in drifting]))
    assert compared is not None
    assert compared.per_s is not None
    assert msgspec.structs.astuple(compared.per_s) == pytest.approx((3, 3, 3))


def test_few_rounds_have_no_interval_and_equal_sides_show_no_clear_difference() -> None:
    alone = compare(rounds("b", [1.0] * 5), rounds("a", [2.0] * 5))
    assert alone is not None
    assert alone.per_s == Ratio(value=2.0)
    same = compare(rounds("b", [1.0, 2.0, 1.5, 1.2, 1.0, 1.1]), rounds("a", [2.0, 1.0, 1.2, 1.5, 1.1, 1.0]))
    assert same is not None
    assert same.per_s is not None
    assert not same.per_s.clear


def test_only_rounds_that_both_sides_have_are_compared() -> None:
    compared = compare(rounds("b", [1.0]), rounds("a", [2.0, 50.0]))
    assert compared is not None
    assert compared.per_s is not None
    assert compared.per_s.value == 2
    assert compare([], rounds("a", [1.0])) is None


@examples(max_examples=40)  # each draws two thousand times
@given(
    walls=st.lists(st.tuples(st.floats(0.1, 100), st.floats(0.1, 100)), min_size=6, max_size=8),
    seed=st.integers(0, 9),
)
def test_an_interval_is_within_the_rounds_own_ratios_and_repeats(walls: list[tuple[float, float]], seed: int) -> None:
    pairs = list(zip(rounds("b", [b for b, _ in walls]), rounds("a", [a for _, a in walls]), strict=True))
    found = ratio(tokens_per_s, pairs, seed)
    assert found == ratio(tokens_per_s, pairs, seed)
    assert found is not None
    own = [a / b for b, a in walls]
    assert found.low is not None
    assert found.high is not None
    assert min(own) - 1e-9 <= found.low <= found.high <= max(own) + 1e-9


# Loads


def test_what_stands_out_over_the_quickest_warm_up_is_a_load() -> None:
    assert loads([12.4, 0.1, 0.11, None, 8.1, 0.12]) == pytest.approx([12.3, 8.0])
    assert loads([0.1, 0.3, 0.2]) == []
    assert loads([2.0, 3.0, 2.5]) == []
    assert loads([]) == []


# Words


def settings(**changes: object) -> Settings:
    usual = Settings(
        providers=("a", "b"),
        concurrency=(1, 16),
        runs=10,
        max_tokens=128,
        timeout_s=300.0,
        temperature=0.0,
        unique_prompts=True,
        prompts="ready-made",
        prompt_chars=(9,),
    )
    return msgspec.structs.replace(usual, **changes)


def side(name: str, host: str, max_inflight: int | None = None) -> Side:
    return Side(name=name, kind="vllm", endpoints=(f"http://{host}",), hosts=(host,), max_inflight=max_inflight)


APART = (side("a", "one"), side("b", "two"))


def level(a: list[Turn], b: list[Turn], clients: int = 16) -> Level:
    compared = compare(b, a)
    there = [msgspec.structs.replace(figures(turns), concurrency=clients) for turns in (a, b)]
    return Level(
        concurrency=clients,
        figures=tuple(there),
        comparisons=(msgspec.structs.replace(compared, concurrency=clients),) if compared else (),
    )


def report_of(*levels: Level, name: str = "m", loads_s: dict[str, list[float]] | None = None) -> ModelReport:
    return ModelReport(model=name, embeds=False, names={"a": "m", "b": "M"}, loads_s=loads_s or {}, levels=levels)


def many(provider: str, walls: list[float], **changes: object) -> list[Turn]:
    samples = [msgspec.structs.replace(sample(tokens=100), **changes) for _ in range(4)]
    return [turn(provider, n, *samples, wall_s=wall_s) for n, wall_s in enumerate(walls)]


SLOW, QUICK = [5.0, 5.2, 4.9, 5.0, 5.1, 5.0], [1.0, 1.0, 1.1, 1.0, 0.9, 1.0]


def test_the_summary_says_it_in_a_sentence_the_highest_level_first() -> None:
    doubtful = level(many("a", [1.0, 2.0, 1.5, 1.2, 1.1, 1.0]), many("b", [2.0, 1.0, 1.2, 1.5, 1.1, 1.0]), 1)
    first, second = summary([report_of(doubtful, level(many("a", SLOW), many("b", QUICK)))])
    assert first.startswith("at 16 clients b gives 5.0× (4.7–5.4) the tokens per second of a; at 1 client 1.00×")
    assert "no clear difference" in first
    assert second == "at 16 clients the first text comes after 100 ms from b, 100 ms from a (median)"


def test_what_cannot_be_compared_is_said_so() -> None:
    dead = level(many("a", SLOW, error="timeout"), many("b", QUICK))
    assert summary([report_of(dead)])[0] == "at 16 clients b and a cannot be compared"


def test_figures_beyond_doubt_come_without_a_warning() -> None:
    assert warnings(settings(), APART, [report_of(level(many("a", SLOW), many("b", QUICK)))]) == []


@pytest.mark.parametrize(
    ("asked", "sides", "model", "says"),
    [
        (
            settings(),
            APART,
            report_of(level(many("a", SLOW[:3]), many("b", QUICK[:3]))),
            "3 rounds a level: too few for an interval; --runs 6 gives one",
        ),
        (settings(), APART, report_of(level(many("a", SLOW[:1]), many("b", QUICK[:1]))), "fewer than 20 answers"),
        (
            settings(),
            APART,
            report_of(level(many("a", SLOW), many("b", QUICK, error="server 500"))),
            "b at 16 clients: 24 of 24 failed (24 server 500); there are no figures",
        ),
        (
            settings(),
            APART,
            report_of(level(many("a", SLOW), many("b", QUICK, output_tokens=80))),
            "differ in length (a 100 and b 80 tokens",
        ),
        (
            settings(),
            APART,
            report_of(level(many("a", SLOW), many("b", QUICK, output_tokens=None))),
            "no token count for 24 of 24",
        ),
        (
            settings(),
            (side("a", "localhost"), side("b", "localhost")),
            report_of(level(many("a", SLOW), many("b", QUICK))),
            "both run on this machine",
        ),
        (
            settings(),
            (side("a", "gpu1", max_inflight=4), side("b", "gpu2")),
            report_of(level(many("a", SLOW), many("b", QUICK))),
            "a has max_inflight 4",
        ),
        (
            settings(),
            APART,
            report_of(level(many("a", SLOW), many("b", QUICK)), loads_s={"a": [12.0, 9.0]}),
            "a loaded m 2 times",
        ),
        (
            settings(unique_prompts=False),
            APART,
            report_of(level(many("a", SLOW), many("b", QUICK))),
            "--same-prompt",
        ),
        (
            settings(),
            APART,
            report_of(
                level(many("a", SLOW), [msgspec.structs.replace(one, client_cpu_s=0.95) for one in many("b", QUICK)])
            ),
            "95% of a core (b at 16 clients)",
        ),
    ],
)
def test_each_reason_for_doubt_is_told(asked: Settings, sides: list[Side], model: ModelReport, says: str) -> None:
    assert [told for told in warnings(asked, sides, [model]) if says in told], warnings(asked, sides, [model])


def test_equally_long_answers_and_places_enough_are_no_reason() -> None:
    sides = (side("a", "gpu1", max_inflight=16), side("b", "gpu2"))
    near = report_of(level(many("a", SLOW), many("b", QUICK, output_tokens=91)))
    assert warnings(settings(), sides, [near]) == []


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0253, "25.3 ms"), (0.0051, "5.10 ms"), (1.234, "1.23 s"), (12.34, "12.3 s"), (321.4, "321 s"), (None, "–")],
)
def test_times_have_three_digits_and_a_unit(value: float | None, shown: str) -> None:
    assert cells.seconds(value) == shown


# Files


def a_report() -> Report:
    turns = [*many("a", SLOW), *many("b", QUICK)]
    models = (report_of(level(many("a", SLOW), many("b", QUICK))),)
    return Report(
        version=1,
        started_at=0.0,
        interrupted=False,
        settings=settings(),
        environment={"cpus": 2, "gpus": []},
        providers=APART,
        models=models,
        summary=tuple(summary(models)),
        warnings=("beware",),
        turns=tuple(turns),
    )


def test_the_json_file_reads_back_as_the_report() -> None:
    report = a_report()
    assert msgspec.json.decode(as_json(report), type=Report) == report


def test_the_csv_file_has_a_line_for_each_provider_and_level() -> None:
    rows = list(csv.DictReader(io.StringIO(as_csv(a_report()))))
    assert [(row["provider"], row["concurrency"], row["requests"]) for row in rows] == [
        ("a", "16", "24"),
        ("b", "16", "24"),
    ]
    assert set(rows[0]) == set(CSV_COLUMNS)
    assert (rows[0]["per_s_ratio"], rows[1]["reference"]) == ("", "a")
    found: Figures = a_report().models[0].levels[0].figures[1]
    assert float(rows[1]["per_s"]) == found.per_s


def test_the_markdown_file_has_tables_summary_and_warnings() -> None:
    text = as_markdown(a_report())
    assert "| b | 0 of 24 |" in text
    assert "- beware" in text
    assert "at 16 clients b gives" in text


# Prompts


def test_each_request_begins_with_its_own_mark_whatever_its_messages_are() -> None:
    text = marked([{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}], "[x-1]")
    assert text[0]["content"] == "[x-1] be brief"
    parts = marked([{"role": "user", "content": [{"type": "text", "text": "look"}]}], "[x-1]")
    assert [part["text"] for part in parts[0]["content"]] == ["[x-1]", "look"]
    assert text_of(parts) == "[x-1]\nlook"
    assert marked(DEFAULT[0], "") is DEFAULT[0]


def test_the_ready_made_prompts_differ_in_length() -> None:
    lengths = sorted(map(chars, DEFAULT))
    assert lengths[-1] > 20 * lengths[0] > 0
