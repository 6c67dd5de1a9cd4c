"""One decision, taken by the library's own engine over the store's flags, and what it rests on in words."""

import asyncio
import contextlib
from collections.abc import Iterator
from secrets import token_hex
from typing import Any

from msgspec import Struct

from memos_llm.cli import failures
from memos_llm.cli.opening import require_store
from memos_llm.cli.output import percent
from memos_llm.cli.probing import LIMIT_S
from memos_llm.config import Settings
from memos_llm.core.call import Operation
from memos_llm.core.decision import Arm, Decision, Reason
from memos_llm.core.flags import GLOBAL, PPM, format_share
from memos_llm.core.policy import Policy
from memos_llm.core.ports import StateStore
from memos_llm.library import Router
from memos_llm.router.split import GROUP, slot
from memos_llm.wiring import Runtime, open_runtime


class Explanation(Struct, frozen=True, kw_only=True):
    """The decision, and the call and numbers that it was taken on. `share_ppm` is the scope's, latches applied."""

    decision: Decision
    policy: Policy
    component: str
    session: str
    model: str
    slot_ppm: int
    share_ppm: int


async def explained(
    settings: Settings, store: StateStore, *, component: str | None, session: str | None, model: str | None
) -> Explanation:
    """Probe, then decide.

    Raises:
        NotOffered: no provider can do it.
        StoreUnreachable: the flags in force are not to be had.
    """
    runtime = await open_runtime(settings, kind="cli", ephemeral=True, store=store)
    try:
        flags = require_store(runtime.live)
        await _probe(runtime)
        policy = runtime.policy()
        model = model or await _some_model(runtime)
        component = component or policy.component(model, Operation.CHAT)
        session = session or f"example-{token_hex(4)}"
        decision = Router(runtime).explain(component=component, session=session, model=model)
        return Explanation(
            decision=decision,
            policy=policy,
            component=component,
            session=session,
            model=model,
            slot_ppm=slot(flags.salt, GROUP, session.encode()),
            share_ppm=flags.share_ppm(component),
        )
    finally:
        await runtime.aclose()


async def _probe(runtime: Runtime) -> None:
    """A provider that does not answer in time stays unknown, which is what a process that just started thinks too."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LIMIT_S):
            await asyncio.gather(*(transport.probe() for transport in runtime.transports.values()))


async def _some_model(runtime: Runtime) -> str:
    configured = next(iter(runtime.policy().catalogue.models), None)
    if configured is None:
        raise failures.usage("no models are configured, so name one: --model NAME")
    return configured


def document(found: Explanation) -> dict[str, Any]:
    decision = found.decision
    first, *_ = decision.targets
    return {
        "arm": decision.arm.value,
        "provider": first.provider,
        "model": first.model,
        "targets": [{"provider": target.provider, "model": target.model} for target in decision.targets],
        "shadow": decision.shadow and {"provider": decision.shadow.provider, "model": decision.shadow.model},
        "reason": decision.reason.value,
        "epoch": decision.epoch,
        "revision": decision.revision,
        "component": found.component,
        "session": found.session,
        "logical_model": found.model,
        "scope": decision.scope,
        "slot": found.slot_ppm / PPM,
        "share": format_share(found.share_ppm),
        "diverted": [{"provider": passed.provider, "reason": passed.reason} for passed in decision.diverted],
    }


def view(found: Explanation) -> Iterator[str]:
    decision = found.decision
    first, *others = decision.targets
    yield f"{first.provider} serves it, as {first.model} ({decision.arm.value} arm, reason {decision.reason.value})"
    yield f"  why        {because(found)}"
    yield f"  call       component {found.component}, session {found.session}, model {found.model}"
    if others:
        yield f"  then       {', '.join(f'{target.provider} ({target.model})' for target in others)}"
    yield f"  flags      revision {decision.revision}, scope {decision.scope}, epoch {decision.epoch}"


def because(found: Explanation) -> str:
    """One sentence."""
    decision, policy = found.decision, found.policy
    scope = "everything" if decision.scope == GLOBAL else decision.scope
    baseline, candidate = policy.baseline, policy.candidate or "no candidate"
    pinned = policy.pins.get(found.component, baseline)
    sentences = {
        Reason.SPLIT: _split(found, scope),
        Reason.PIN: f"the configuration pins {found.component} to {pinned}",
        Reason.LATCHED: f"{scope} is latched after a rollback, so all of it goes to {baseline}",
        Reason.UNMAPPED_MODEL: f"{found.model} has no name on {candidate}: `models` does not map it",
        Reason.NOT_OFFERED: f"{candidate} cannot do what this call asks for",
        Reason.DIVERTED: _diverted(found),
    }
    return sentences.get(decision.reason, decision.reason.value)


def _split(found: Explanation, scope: str) -> str:
    if found.policy.candidate is None:
        return "there is no candidate, so there is nothing to split"
    inside = found.decision.arm is Arm.CANDIDATE
    return (
        f"slot {found.slot_ppm / PPM:.6f} of the session is {'below' if inside else 'not below'} the share "
        f"{format_share(found.share_ppm):g} of {scope} ({percent(format_share(found.share_ppm))}) "
        f"-> {found.decision.arm.value}"
    )


def _diverted(found: Explanation) -> str:
    passed = ", ".join(f"{one.provider} is {one.reason}" for one in found.decision.diverted)
    return f"assigned to the {found.decision.arm.value} arm, but {passed}: it goes to the next in the chain"
