"""The store: is it there, may it be written, does it hold what this host knows, and who follows it?"""

from collections.abc import Iterator

from memos_llm.core.flags import GLOBAL, SCHEMA, Flags
from memos_llm.operate.doctor.checks import Check, Group, counted, listed
from memos_llm.operate.doctor.facts import Facts, StoreFacts
from memos_llm.operate.orders import percent

GROUP = Group("store")
OTHERS = 0o077  # permission bits of group and others
CHANGES = 0o022  # those of them that allow a change


def readable(facts: Facts) -> Iterator[Check]:
    store = facts.store
    if store is None:
        return
    if store.error:
        yield GROUP.fail("store.opens", store.error, "mend it, or name another with `store` or --store")
    elif store.kind == "memory":
        yield GROUP.warn(
            "store.opens",
            "memory://: each process has flags of its own, lost when it ends",
            "sqlite:///… for more than a trial; until then only `llmctl --gateway URL` reaches a gateway's flags",
        )
    elif not store.exists:
        if store.directory_writable:
            yield GROUP.ok("store.opens", f"{store.shown}: new; `llmctl serve` or the first shift makes it")
        else:
            yield GROUP.fail(
                "store.opens",
                f"{store.shown}: is not there, and its directory cannot be written",
                "check the directory's owner and mode, or name another store",
            )
    else:
        held = f"revision {store.flags.revision}" if store.flags else "no flags yet"
        on = f" on {store.file_system}" if store.file_system else ""
        yield GROUP.ok("store.opens", f"{store.shown}{on}: {held}")


def _opened(facts: Facts) -> StoreFacts | None:
    """Where there is one of more than this process, and it can be read."""
    store = facts.store
    return store if store is not None and store.kind != "memory" and store.exists and not store.error else None


def writable(facts: Facts) -> Iterator[Check]:
    store = _opened(facts)
    if store is None or (store.flags is not None and store.flags.schema > SCHEMA):  # that is said, and not written to
        return
    if store.write_error:
        yield GROUP.fail("store.writable", store.write_error, "until then nothing can be shifted, or rolled back")
    else:
        yield GROUP.ok("store.writable", "it can be written: a row of ours was, and taken out again")


def modes(facts: Facts) -> Iterator[Check]:
    store = facts.store
    if store is None or store.mode is None:
        return
    above = store.directory_mode or 0
    sticky = above & 0o1000  # /tmp: others may write there, and not replace what is another's
    if store.mode & CHANGES or (above & CHANGES and not sticky):
        yield GROUP.fail(
            "store.mode",
            f"mode {store.mode:04o} in a directory of {above:04o}: others here may decide where traffic goes",
            f"chmod 600 {store.path}; chmod 700 its directory",
        )
    elif store.mode & OTHERS:
        yield GROUP.warn(
            "store.mode",
            f"mode {store.mode:04o}: others on this machine may read the history and the salt",
            f"chmod 600 {store.path}",
        )
    else:
        yield GROUP.ok("store.mode", f"mode {store.mode:04o}, its owner's alone")


def schema(facts: Facts) -> Iterator[Check]:
    store = _opened(facts)
    if store is None or store.flags is None:
        return
    if store.flags.schema > SCHEMA:
        yield GROUP.fail(
            "store.schema",
            f"schema {store.flags.schema}: a newer memos_llm wrote it, this one knows {SCHEMA} and only reads",
            "upgrade memos_llm here",
        )
    else:
        yield GROUP.ok("store.schema", f"schema {store.flags.schema}")


def regressed(facts: Facts) -> Iterator[Check]:
    store = facts.store
    if store is None or store.error or store.kind == "memory":
        return
    if store.regressed:
        yield GROUP.fail(
            "store.regressed",
            f"the store is not what this host has seen: {store.regressed}",
            "`llmctl store adopt` shows what accepting it changes, --yes does it; running gateways keep what they know",
        )
    elif store.known_revision:
        yield GROUP.ok("store.regressed", f"it follows revision {store.known_revision}, the last that this host knows")


def share(facts: Facts) -> Iterator[Check]:
    store, settings = _opened(facts), facts.settings
    if store is None or store.flags is None or settings is None:
        return
    flags = store.flags
    if settings.candidate and flags.candidate not in ("", settings.candidate) and flags.given():
        yield GROUP.fail(
            "store.share",
            f"its shares were set for {flags.candidate}, and the configuration's candidate is {settings.candidate}: "
            "no gateway starts so",
            f"`llmctl shift --{settings.candidate} 0`, or put `candidate: {flags.candidate}` back",
        )
        return
    yield GROUP.ok("store.share", _shares(flags, settings.share_ppm, settings.candidate or "a candidate"))


def _shares(flags: Flags, configured_ppm: int, candidate: str) -> str:
    now = flags.share_ppm(GLOBAL)
    own = tuple(
        f"{name} {percent(flags.share_ppm(name))}"
        for name, scope in flags.scopes.items()
        if scope.share_ppm is not None
    )
    rest = tuple(one for one in own if not one.startswith(f"{GLOBAL} "))
    seed = f" (the file's {percent(configured_ppm)} seeds a new store only)" if now != configured_ppm else ""
    return f"{percent(now)} to {candidate}{seed}{'; ' + listed(rest) if rest else ''}"


def followers(facts: Facts) -> Iterator[Check]:
    store = _opened(facts)
    if store is None:
        return
    live = tuple(one for one in store.instances if not one.ephemeral)
    revision = store.flags.revision if store.flags else 0
    behind = tuple(f"{one.id} (revision {one.revision})" for one in live if one.revision < revision)
    if not live:
        yield GROUP.warn(
            "store.followers",
            "no gateway and no library follows this store: a shift would move nothing",
            "`llmctl serve` starts a gateway; if one runs, it has another store",
        )
    elif behind:
        yield GROUP.warn(
            "store.followers",
            f"{len(behind)} of {counted(len(live), 'live instance')} behind revision {revision}: {listed(behind, 3)}",
            "a second is usual; after that look at that process's log line `store`, or restart it",
        )
    else:
        yield GROUP.ok("store.followers", f"{counted(len(live), 'live instance')}, none behind revision {revision}")


RULES = (readable, writable, modes, schema, regressed, share, followers)
