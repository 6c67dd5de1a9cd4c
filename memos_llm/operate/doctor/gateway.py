"""With `--gateway`: what the gateway says of itself. The back ends are looked at from here all the same."""

from collections.abc import Iterator

from memos_llm.operate.doctor.checks import Check, Group, counted, listed
from memos_llm.operate.doctor.facts import Facts
from memos_llm.operate.documents import Status

GROUP = Group("gateway")


def place(facts: Facts) -> Iterator[Check]:
    if facts.gateway is None:
        return
    if facts.settings is None:
        said = "the back ends are as the gateway sees them: there is no configuration here to ask them by"
        yield GROUP.skipped("gateway.place", said, "--config FILE, or run `llmctl doctor` on the gateway's host")
    else:
        yield GROUP.ok(
            "gateway.place",
            "the back ends below are asked from here, by the configuration here: the gateway may reach them otherwise",
        )


def answers(facts: Facts) -> Iterator[Check]:
    gateway = facts.gateway
    if gateway is None:
        return
    if not gateway.health:
        yield GROUP.fail(
            "gateway.health", f"{gateway.url} does not answer as a gateway", "`llmctl serve` there; check --gateway"
        )
        return
    seen = f"{gateway.url} says {gateway.health}, {'ready' if gateway.ready else 'not ready'}"
    if gateway.health == "unhealthy" or not gateway.ready:
        fix = "it has no back end to answer with, or shuts down: see the endpoints below"
        yield GROUP.fail("gateway.health", seen, fix)
    elif gateway.health != "healthy":
        yield GROUP.warn("gateway.health", seen, "one back end is down and another answers: see the endpoints below")
    else:
        yield GROUP.ok("gateway.health", seen)


def status(facts: Facts) -> Iterator[Check]:
    gateway = facts.gateway
    if gateway is None or not gateway.health:
        return
    now = gateway.status
    if now is None:
        yield GROUP.fail("gateway.status", gateway.fault, "without it flags, instances and breakers stay unknown")
        return
    yield GROUP.ok("gateway.status", f"version {now.version}, revision {now.revision}")
    yield from _store(now)
    yield from _config(now)
    yield from _followers(now)
    yield from _same(facts, now)
    yield from _endpoints(now)


def _store(now: Status) -> Iterator[Check]:
    if now.store.reachable and not now.store.regressed:
        yield GROUP.ok("gateway.store", "its store answers")
    elif now.store.regressed:
        fix = "`llmctl --gateway URL store adopt` shows what accepting it changes, --yes does it"
        yield GROUP.fail("gateway.store", f"its store has regressed: {now.store.detail}", fix)
    else:
        fix = "on its host: `llmctl doctor`; until then its last flags stay in force and cannot be changed"
        yield GROUP.fail("gateway.store", f"its store does not answer: {now.store.detail}", fix)


def _config(now: Status) -> Iterator[Check]:
    if now.config is None:
        return
    for number, error in enumerate(now.config.errors):
        fix = "the last good one is in force; mend the file: it is read again by itself"
        yield GROUP.fail(f"gateway.config.{number}", f"its configuration file is refused: {error}", fix)
    if now.config.waiting:
        yield GROUP.warn("gateway.config", f"changed, and not in force: {listed(now.config.waiting)}", "restart it")
    elif not now.config.errors:
        yield GROUP.ok("gateway.config", f"{now.config.path} is in force (generation {now.config.generation})")


def _followers(now: Status) -> Iterator[Check]:
    behind = tuple(f"{one.id} (revision {one.revision})" for one in now.instances if one.revision < now.revision)
    if behind:
        fix = "a second is usual; after that look at that process's log line `store`"
        yield GROUP.warn("gateway.instances", f"behind revision {now.revision}: {listed(behind, 3)}", fix)
    else:
        yield GROUP.ok("gateway.instances", f"{counted(len(now.instances), 'live instance')}, none behind")


def _same(facts: Facts, now: Status) -> Iterator[Check]:
    """A configuration here that is not the gateway's makes everything below about something else."""
    settings = facts.settings
    if settings is None:
        return
    here = {spec.name: {endpoint.url for endpoint in spec.endpoints} for spec in settings.provider_specs()}
    there = {name: {one.url for one in state.endpoints} for name, state in now.providers.items()}
    roles_here, roles_there = (settings.baseline, settings.policy().candidate), (now.baseline, now.candidate)
    other = tuple(
        name
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name) and (here.get(name) or there.get(name))
    )
    fix = "--config FILE with the gateway's own file, or run `llmctl doctor` on its host"
    if roles_here != roles_there:
        said = f"from {roles_there[0]} to {roles_there[1]} there, from {roles_here[0]} to {roles_here[1]} here"
        yield GROUP.warn("gateway.same", f"another configuration than here: {said}", fix)
    elif other:
        yield GROUP.warn("gateway.same", f"it reaches {listed(other)} under other addresses than here", fix)
    else:
        yield GROUP.ok("gateway.same", "it has the same providers as the configuration here")


def _endpoints(now: Status) -> Iterator[Check]:
    for name, state in now.providers.items():
        for number, one in enumerate(state.endpoints):
            id, at = f"gateway.endpoint.{name}.{number}", f"it sees {name} {one.url}"
            if one.up is None:
                yield GROUP.skipped(id, f"{at}: not probed yet")
            elif not one.up:
                yield GROUP.fail(id, f"{at}: DOWN ({one.detail})", "start it, or mend the way from the gateway to it")
            elif one.breaker not in (None, "closed"):
                fix = "its requests fail: the reasons are in `fallbacks_total`; it closes by itself when trials succeed"
                yield GROUP.warn(id, f"{at}: up, breaker {one.breaker}", fix)
            else:
                yield GROUP.ok(id, f"{at}: up {one.version}")


RULES = (place, answers, status)
