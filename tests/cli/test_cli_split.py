"""`shift`, `rollback`, `rearm`, `status`, `history`, `explain`: they say the same, and refuse with a way out."""

from pathlib import Path

import pytest
from cli_driver import Llmctl, write_config
from stack import Stack


@pytest.fixture
def alone(tmp_path: Path) -> Llmctl:
    """On a store that nobody follows."""
    return Llmctl(write_config(tmp_path))


@pytest.fixture
def fleet(stack: Stack, tmp_path: Path) -> Llmctl:
    """Beside a gateway and two emulated back ends (`tests/stack.py`)."""
    return Llmctl(tmp_path / "memos_llm.yaml")


async def test_shift_status_history_and_explain_agree(fleet: Llmctl, stack: Stack) -> None:
    shifted = await fleet.json("shift", "--vllm", "0.3", "--reason", "first step")
    status, history = await fleet.json("status"), await fleet.json("history")

    assert shifted["scope"] == "*"
    assert shifted["provider"] == "vllm"
    assert shifted["share"] == 0.3
    assert shifted["unconfirmed"] == []
    assert [one["kind"] for one in status["instances"]] == ["gateway"]
    assert shifted["confirmed"] == [one["id"] for one in status["instances"]]
    assert status["revision"] == shifted["revision"] == stack.runtime.live.current().revision
    assert status["shares"]["*"] == {"vllm": 0.3}
    newest = history["entries"][0]
    assert newest["revision"] == shifted["revision"]
    assert (newest["command"], newest["share_before"], newest["share_after"]) == ("shift", 0.0, 0.3)
    assert newest["reason"] == "first step"
    assert newest["actor"]

    decisions = [await fleet.json("explain", "--session", f"s{n}", "--model", "qwen3:8b") for n in range(8)]
    for decision in decisions:
        assert decision["revision"] == shifted["revision"]
        assert decision["reason"] == "split"
        assert (decision["arm"] == "candidate") == (decision["slot"] < 0.3)
        assert decision["provider"] == {"candidate": "vllm", "baseline": "ollama"}[decision["arm"]]
        assert decision["targets"][0] == {"provider": decision["provider"], "model": decision["model"]}
    again = await fleet.json("explain", "--session", "s0", "--model", "qwen3:8b")
    assert again == decisions[0]


async def test_the_gateway_decides_what_explain_says(fleet: Llmctl, stack: Stack) -> None:
    await fleet.json("shift", "--vllm", "50%")
    for session in ("a", "b", "c", "d"):
        said = await fleet.json("explain", "--session", session, "--component", "synthesis", "--model", "qwen3:8b")
        async with stack.client() as client:
            body = {"model": "qwen3:8b", "messages": [{"role": "user", "content": "hi"}]}
            headers = {"x-memos-session": session, "x-memos-component": "synthesis"}
            answer = await client.post("/v1/chat/completions", json=body, headers=headers)
        assert answer.headers["x-memos-provider"] == said["provider"]


async def test_rollback_latches_until_a_rearm_which_restores_nothing(fleet: Llmctl) -> None:
    await fleet.json("shift", "--vllm", "1")
    back = await fleet.json("rollback", "--reason", "bad answers")
    assert back["share"] == 0.0
    (latch,) = (await fleet.json("status"))["latched"]
    assert (latch["scope"], latch["provider"]) == ("*", "vllm")
    assert latch["holddown_until"] == latch["since"]

    refused = await fleet("shift", "--vllm", "0.1")
    assert refused.code == 3
    assert "llmctl rearm" in refused.err
    assert (await fleet.json("explain", "--session", "s"))["reason"] == "latched"

    armed = await fleet.json("rearm")
    assert armed["share"] == 0.0
    assert (await fleet.json("status"))["latched"] == []
    assert (await fleet.json("shift", "--vllm", "0.1"))["share"] == 0.1


async def test_rearm_needs_a_healthy_candidate_and_force_does_not_help(fleet: Llmctl, stack: Stack) -> None:
    await fleet.json("rollback")
    stack.vllm.faults.set("refuse")
    for arguments in (["rearm"], ["rearm", "--force", "--reason", "I know better"]):
        refused = await fleet(*arguments)
        assert refused.code == 3
        assert "not healthy" in refused.err
    stack.vllm.faults.clear()
    assert (await fleet("rearm")).code == 0


async def test_a_component_has_a_share_of_its_own_until_the_next_shift_of_everything(fleet: Llmctl) -> None:
    await fleet.json("shift", "--vllm", "0.1")
    await fleet.json("shift", "--vllm=0.6", "--component", "synthesis")
    shares = (await fleet.json("status"))["shares"]
    assert shares["*"] == {"vllm": 0.1}
    assert shares["synthesis"] == {"vllm": 0.6}

    ran = await fleet("shift", "--vllm", "0.2")
    assert "synthesis (60%)" in ran.err
    assert (await fleet.json("status"))["shares"]["synthesis"] == {"vllm": 0.2}


async def test_a_dead_candidate_shows_as_diverted_and_down(fleet: Llmctl, stack: Stack) -> None:
    await fleet.json("shift", "--vllm", "1")
    stack.vllm.faults.set("refuse")
    said = await fleet.json("explain", "--session", "s", "--model", "qwen3:8b")
    assert (said["reason"], said["arm"], said["provider"]) == ("diverted", "candidate", "ollama")
    assert said["diverted"] == [{"provider": "vllm", "reason": "down"}]
    providers = (await fleet.json("status"))["providers"]
    assert (providers["vllm"]["up"], providers["ollama"]["up"]) == (False, True)
    assert "DOWN" in (await fleet("status")).out


async def test_status_says_when_file_and_store_differ(fleet: Llmctl) -> None:
    assert "routing.share" not in (await fleet("status")).out
    await fleet.json("shift", "--vllm", "0.3")
    status = await fleet("status")
    assert "routing.share is 0%" in status.out
    assert "store's 30%" in status.out


async def test_require_all_fails_on_an_instance_that_does_not_follow(alone: Llmctl) -> None:
    from memos_llm.config import load
    from memos_llm.core.ports import Instance
    from memos_llm.store import open_store

    store = open_store(load(alone.config, {}).store_url)
    await store.heartbeat(Instance(id="stuck", kind="gateway", revision=0, at=0.0))
    for arguments, code in (([], 0), (["--require-all"], 4)):
        ran = await alone("shift", "--newbox", "0.1", "--wait", "0.2", "--json", *arguments)
        assert ran.code == code
        assert ran.json["unconfirmed"] == ["stuck"]
        assert "stuck" in ran.err
    await store.aclose()


async def test_works_without_a_gateway_and_says_that_nothing_follows(alone: Llmctl) -> None:
    ran = await alone("shift", "--newbox", "30%")
    assert ran.code == 0
    assert "nothing follows this store" in ran.err
    assert (await alone.json("status"))["shares"]["*"] == {"newbox": 0.3}
    assert len((await alone.json("history", "--limit", "1"))["entries"]) == 1


async def test_a_new_store_is_shown_and_not_written(alone: Llmctl) -> None:
    assert (await alone.json("status"))["revision"] == 0
    assert (await alone.json("history"))["entries"] == []
    assert (await alone.json("explain"))["arm"] == "baseline"
    assert (await alone.json("status"))["revision"] == 0


async def test_a_pin_is_shown_and_warned_of(alone: Llmctl) -> None:
    ran = await alone("shift", "--newbox", "0.5", "--component", "verification")
    assert "pinned to ollama" in ran.err
    assert (await alone.json("status"))["shares"]["verification"] == {"ollama": 1.0}


async def test_a_misspelt_component_is_warned_of(alone: Llmctl) -> None:
    ran = await alone("shift", "--newbox", "0.5", "--component", "synthsis")
    assert ran.code == 0
    assert "did you mean synthesis?" in ran.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--newbox", "30"], 2, "0.3 or 30%"),
        (["--newbox", "1.5"], 2, "0.015"),
        (["--newbox", "-0.1"], 2, "outside 0 to 1"),
        (["--newbox", "nan"], 2, "outside 0 to 1"),
        (["--newbox", "some"], 2, "0.3"),
        (["--newbox"], 2, "--newbox 0.3"),
        ([], 2, "--newbox 0.3"),
        (["0.3"], 2, "--newbox 0.3"),
        (["--third", "0.3"], 2, "newbox"),
        (["--ollama", "0.3"], 2, "--newbox"),
        (["--nosuch", "0.3"], 2, "--newbox"),
        (["--compnent", "synthesis", "--newbox", "0.3"], 2, "--component"),
        (["--newbox", "0.3", "--third", "0.3"], 2, "third is not the candidate"),
        (["--newbox", "0.3", "--newbox", "0.4"], 2, "one share at a time"),
        (["--newbox", "0.3", "synthesis"], 2, "'synthesis' is not an option"),
        (["--newbox", "0.3", "--component", "a/b"], 2, "--component"),
        (["--newbox", "0.3", "--new-index"], 2, "--component embedding"),
        (["--newbox", "0.3", "--component", "embedding"], 3, "never mix"),
    ],
)
async def test_shift_refuses_and_names_the_fix(alone: Llmctl, arguments: list[str], code: int, says: str) -> None:
    ran = await alone("shift", *arguments)
    assert ran.code == code, ran
    assert says in ran.err
    assert len(ran.err.splitlines()) == 1 or "pinned" in ran.err
    assert ran.out == ""
    assert (await alone.json("status"))["revision"] == 0, "a refused shift changed the flags"


async def test_rearm_of_what_is_not_latched_is_refused(fleet: Llmctl) -> None:
    ran = await fleet("rearm", "--component", "synthesis")
    assert ran.code == 3
    assert "not latched" in ran.err


async def test_rearm_with_force_needs_a_reason(fleet: Llmctl) -> None:
    await fleet.json("rollback")
    ran = await fleet("rearm", "--force")
    assert ran.code == 3
    assert "--reason" in ran.err


async def test_explain_says_in_words_why(fleet: Llmctl) -> None:
    await fleet.json("shift", "--vllm", "1")
    assert "below the share 1 of everything" in (await fleet("explain", "--session", "s", "--model", "qwen3:8b")).out
    assert "does not map it" in (await fleet("explain", "--model", "llama3.2:3b")).out
    bare = await fleet("explain")
    assert bare.code == 0
    assert "--session" in bare.err
