"""What stands against a shift: latches always, and with `--for SHARE` what that share needs."""

from collections.abc import Iterator

from memos_llm.core.flags import GLOBAL, PPM, Flags
from memos_llm.operate.doctor.checks import Check, Group, listed
from memos_llm.operate.doctor.facts import Facts, ProviderFacts
from memos_llm.operate.doctor.servers import takes_us
from memos_llm.operate.orders import percent

GROUP = Group("shift")
MUCH_PPM = PPM // 2  # from here on an idle baseline unloads its models


def latched(facts: Facts) -> Iterator[Check]:
    held = _latches(facts)
    if not held:
        return
    option = "" if GLOBAL in held else f" --component {held[0]}"
    places = listed(tuple("everything" if name == GLOBAL else name for name in held))
    seen = f"a rollback holds for {places}: the share is 0 there, and a shift is refused"
    fix = f"mend its cause (`llmctl incidents`), then `llmctl rearm{option}`"
    wanted = bool(facts.wanted_ppm)
    yield GROUP.fail("shift.latched", seen, fix) if wanted else GROUP.warn("shift.latched", seen, fix)


def wanted(facts: Facts) -> Iterator[Check]:
    settings, share_ppm = facts.settings, facts.wanted_ppm
    if share_ppm is None:
        return
    if settings is None:
        why = f"what a share of {percent(share_ppm)} needs was not looked at: there is no configuration to do it by"
        yield GROUP.skipped("shift.wanted", why, "--config FILE, with one that is right")
        return
    candidate = settings.policy().candidate
    if candidate is None:
        yield GROUP.fail("shift.wanted", "there is no enabled candidate to shift to", "set `candidate`, and enable it")
        return
    provider = facts.provider(candidate)
    if provider is not None and provider.endpoints and not any(map(takes_us, provider.endpoints)):
        why = "takes us" if any(one.up for one in provider.endpoints) else "is up"
        yield GROUP.fail(
            "shift.wanted",
            f"{percent(share_ppm)} to {candidate}, of which no endpoint {why}: none of it would be answered there",
            f"see providers: {candidate} must be up, take the key, and be what it is said to be",
        )
        return
    now = _share_ppm(facts)
    said = "" if now is None else f", {percent(now)} now"
    place = f"--gateway {facts.gateway.url} " if facts.gateway else ""
    step = "" if _latches(facts) else f"`llmctl {place}shift --{candidate} {share_ppm / PPM:g}` does it"
    yield GROUP.ok("shift.wanted", f"{percent(share_ppm)} to {candidate}{said}", step)


def way_back(facts: Facts) -> Iterator[Check]:
    """A rollback lands on the baseline: it must be up, and warm."""
    settings, share_ppm = facts.settings, facts.wanted_ppm
    if settings is None or not share_ppm:
        return
    baseline = facts.provider(settings.baseline)
    if baseline is None or not baseline.endpoints:
        return
    if not any(map(takes_us, baseline.endpoints)):
        yield GROUP.fail(
            "shift.way-back",
            f"{settings.baseline} is down, or refuses us: no way back, and nobody answers for {settings.candidate}",
            f"see providers: {settings.baseline} first",
        )
    elif share_ppm >= MUCH_PPM and _goes_cold(facts, baseline):
        yield GROUP.warn(
            "shift.way-back",
            f"at {percent(share_ppm)} {settings.baseline} unloads what it is not asked for: a rollback waits for loads",
            f"name the models in providers.{settings.baseline}.keep_warm",
        )
    else:
        yield GROUP.ok("shift.way-back", f"{settings.baseline} is up and can take everything back")


def _goes_cold(facts: Facts, baseline: ProviderFacts) -> bool:
    assert facts.settings is not None
    if baseline.kind != "ollama" or facts.settings.providers[baseline.name].keep_warm:
        return False
    candidate = facts.settings.candidate or ""
    return any(model.target(candidate) for model in facts.settings.catalogue().models.values())


def _flags(facts: Facts) -> Flags | None:
    return facts.store.flags if facts.store else None


def _share_ppm(facts: Facts) -> int | None:
    flags = _flags(facts)
    if flags is not None:
        return flags.share_ppm(GLOBAL)
    status = facts.gateway.status if facts.gateway else None
    if status is None:
        return None
    return round(PPM * status.shares.get(GLOBAL, {}).get(status.candidate or "", 0.0))


def _latches(facts: Facts) -> tuple[str, ...]:
    flags = _flags(facts)
    if flags is not None:
        return tuple(name for name, scope in flags.scopes.items() if scope.latch is not None)
    status = facts.gateway.status if facts.gateway else None
    return tuple(latch.scope for latch in status.latched) if status else ()


RULES = (latched, wanted, way_back)
