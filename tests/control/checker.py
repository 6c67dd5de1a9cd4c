"""Reads a store back and says what is inconsistent in it, whoever wrote it and in whatever order.

- revisions without gaps, each with one line of the history, the newest being the flags';
- no share above 0 in a latched scope, at any revision;
- every latch has an incident that is there; every incident has its line, and latched what was not latched;
- no two incidents for one latch; no evidence twice.
"""

from collections import Counter
from collections.abc import Sequence

from memos_llm.core.commands import JOINED_S, Audit, Incident
from memos_llm.core.flags import EMBEDDING, GLOBAL, Flags
from memos_llm.core.ports import StateStore

ALL = 10_000_000


async def check(store: StateStore) -> tuple[Flags, Sequence[Audit], Sequence[Incident]]:
    """Assert all of it; returns what is there, history and incidents oldest first."""
    flags = await store.load()
    assert flags is not None
    history = tuple(reversed(await store.history(ALL)))
    incidents = tuple(reversed(await store.incidents(ALL)))
    assert [line.revision for line in history] == list(range(1, flags.revision + 1))
    latched = replay(history, incidents)
    assert {name for name, scope in flags.scopes.items() if scope.latch} >= latched
    check_flags(flags, {record.id for record in incidents})
    check_evidence(incidents)
    return flags, history, incidents


def replay(history: Sequence[Audit], incidents: Sequence[Incident]) -> set[str]:
    """Which scopes the history leaves latched, as far as its lines name them."""
    records = {record.revision: record for record in incidents}
    assert len(records) == len(incidents), "one incident a revision"
    assert len({record.id for record in incidents}) == len(incidents)
    latched: set[str] = set()
    for line in history:
        record = records.pop(line.revision, None)
        if record is not None:
            assert (line.command, line.provider, line.at) == ("rollback", record.provider, record.at)
            assert line.scope in (record.scope, *record.also)
            assert not latched & {record.scope, *record.also}, "a second incident for one latch"
        if line.command == "rollback":
            if record is None and line.scope not in latched:
                assert any(line.at - JOINED_S < one.at <= line.at for one in incidents), "a latch without an incident"
            latched |= {line.scope, *((record.scope, *record.also) if record else ())}
        elif line.command == "rearm":
            assert line.scope in latched
            latched.discard(line.scope)
        shut = line.scope in latched or (GLOBAL in latched and line.scope != EMBEDDING)
        assert not (shut and line.share_after > 0), f"a share above 0 while latched, at revision {line.revision}"
    assert not records, "incidents without a line of the history"
    return latched


def check_flags(flags: Flags, incidents: set[str]) -> None:
    """One document by itself."""
    everything = flags.scope(GLOBAL).latch is not None
    for name, scope in flags.scopes.items():
        if scope.latch is not None:
            assert scope.latch.incident in incidents, "a latch whose incident is not there"
        if scope.latch is not None or (everything and name != EMBEDDING):
            assert flags.share_ppm(name) == 0


def check_evidence(incidents: Sequence[Incident]) -> None:
    for record in incidents:
        seen = Counter((one.by, one.at, one.scope, one.trigger) for one in record.evidence)
        assert not [one for one, times in seen.items() if times > 1], "evidence twice"
