"""A store that was away while a process cut a share, and is asked before that process has noticed that it is back."""

import pytest
from checker import check
from stack import until
from test_live import HUMAN, Process, Switch, process

from memos_llm.core.commands import Rollback, Shift
from memos_llm.core.errors import Refused
from memos_llm.core.flags import GLOBAL
from memos_llm.core.verdicts import Evidence, Trigger

LONG_AGO_S = 5.0  # an epoch that begins so long after a cut would be judged by itself


def cut(p: Process, name: str, scope: str = GLOBAL) -> None:
    """One that judged the epoch in force, as the guard makes it."""
    evidence = Evidence(
        at=1.0, by=p.live.instance_id, scope=scope, trigger=Trigger.ERROR_RUN, rule="6 of 6", limit=0.05, n=6, k=6
    )
    epochs = {GLOBAL: p.live.current().scope(GLOBAL).epoch}
    p.live.cut(
        Rollback(
            provider="vllm",
            incident=name,
            scope=scope,
            trigger=Trigger.ERROR_RUN,
            automatic=True,
            epochs=epochs,
            evidence=evidence,
        )
    )


async def test_nobody_raises_through_a_process_what_it_cut_and_could_not_publish_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = Switch()
    async with process(store, seed_ppm=500_000) as p:
        store.down = True
        await until(lambda: not p.live.store_state.reachable)
        cut(p, "inc-cut")
        clock = p.live._clock
        monkeypatch.setattr(p.live, "_clock", lambda: clock() + LONG_AGO_S)
        store.down = False  # and before it is noticed
        with pytest.raises(Refused, match="latched"):
            await p.live.submit(Shift(provider="vllm", share_ppm=900_000), HUMAN)
        assert p.live.current().share_ppm("x") == 0
        _, history, (record,) = await check(store.inner)
        assert [line.command for line in history] == ["seed", "rollback"]
        assert record.id == "inc-cut"
