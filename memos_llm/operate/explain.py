"""One decision, taken by the router's own function over the flags in force, and what it rests on. Nothing is sent."""

import os
import time
from collections.abc import Callable, Mapping

from memos_llm.core.call import Call, Operation, Target, Wire
from memos_llm.core.catalogue import is_embedding
from memos_llm.core.decision import Arm, Decision, Offer, Reason
from memos_llm.core.errors import BadRequest
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM, Flags, format_share
from memos_llm.core.policy import Policy
from memos_llm.core.ports import Clock, Routes
from memos_llm.dialects.codecs import CODECS
from memos_llm.operate.documents import Aim, Explained, Passed
from memos_llm.operate.orders import ExplainOrder, percent, scope_of
from memos_llm.router.decide import MAINTENANCE, Offers, decide
from memos_llm.router.split import GROUP, slot

WIRES: Mapping[Operation, Wire] = {
    Operation.CHAT: Wire.OPENAI_CHAT,
    Operation.EMBEDDINGS: Wire.OPENAI_EMBEDDINGS,
}


def explain(order: ExplainOrder, flags: Flags, policy: Policy, offers: Offers, *, wall: Clock = time.time) -> Explained:
    """Decide for a call that is like many: chat, or embeddings where component or model say so. `wall`: Unix seconds.

    Raises:
        BadRequest: the order cannot be read, or names no model where none is configured.
        NotOffered: no provider can do it.
    """
    model = order.model or next(iter(policy.catalogue.models), None)
    if model is None:
        raise BadRequest("no models are configured, so name one: model (on the command line --model NAME)")
    if order.component is not None and scope_of(order.component) == GLOBAL:
        raise BadRequest("component: name one component")
    vectors = order.component == EMBEDDING or (order.component is None and is_embedding(model))
    operation = Operation.EMBEDDINGS if vectors else Operation.CHAT
    component = order.component or policy.component(model, operation)
    session = order.session or f"example-{os.urandom(4).hex()}"
    call = _call(model, component, session, WIRES[operation])
    decision = decide(call, flags, policy, offers, _carried, drained=flags.maintained(wall()))
    slot_ppm = slot(flags.salt, GROUP, call.key)
    share_ppm = flags.share_ppm(EMBEDDING if vectors else component)
    first, *_ = decision.targets
    return Explained(
        arm=decision.arm.value,
        provider=first.provider,
        model=first.model,
        targets=tuple(Aim(target.provider, target.model) for target in decision.targets),
        shadow=None if decision.shadow is None else Aim(decision.shadow.provider, decision.shadow.model),
        reason=decision.reason.value,
        epoch=decision.epoch,
        revision=decision.revision,
        component=component,
        session=session,
        logical_model=model,
        operation=operation.value,
        scope=decision.scope,
        slot=slot_ppm / PPM,
        share=format_share(share_ppm),
        diverted=tuple(Passed(passed.provider, passed.reason) for passed in decision.diverted),
        why=_why(decision, policy, component, model, slot_ppm, share_ppm),
    )


def offers_of(routes: Routes) -> Offers:
    """What the transports offer now; asking changes nothing, not even a breaker."""

    def offer(target: Target) -> Offer | None:
        transport = routes.transports.get(target.provider)
        return None if transport is None else transport.offer(target.model)

    return offer


def _call(model: str, component: str, session: str, wire: Wire) -> Call:
    return Call(
        id="explain",
        wire=wire,
        head={},
        body=b"{}",
        model=model,
        stream=False,
        component=component,
        key=session.encode(errors="replace"),
        accepted_at=0.0,
        deadline=0.0,
    )


def _carried(call: Call, offer: Offer) -> bool:
    return CODECS.find(call, offer) is not None


def _why(decision: Decision, policy: Policy, component: str, model: str, slot_ppm: int, share_ppm: int) -> str:
    """One sentence."""
    scope = "everything" if decision.scope == GLOBAL else decision.scope
    baseline, candidate = policy.baseline, policy.candidate or "no candidate"
    sentences: Mapping[Reason, Callable[[], str]] = {
        Reason.SPLIT: lambda: _split(decision, policy, scope, slot_ppm, share_ppm),
        Reason.PIN: lambda: f"the configuration pins {component} to {policy.pins.get(component, baseline)}",
        Reason.LATCHED: lambda: f"{scope} is latched after a rollback, so all of it goes to {baseline}",
        Reason.UNMAPPED_MODEL: lambda: f"{model} has no name on {candidate}: `models` does not map it",
        Reason.NOT_OFFERED: lambda: f"{candidate} cannot do what this call asks for",
        Reason.DIVERTED: lambda: _diverted(decision),
        Reason.EMBEDDINGS_UNVERIFIED: lambda: (
            f"the vectors of {model} are not verified equal on {candidate}: `llmctl embeddings verify {model}`"
        ),
    }
    return sentences.get(decision.reason, lambda: decision.reason.value)()


def _split(decision: Decision, policy: Policy, scope: str, slot_ppm: int, share_ppm: int) -> str:
    if policy.candidate is None:
        return "there is no candidate, so there is nothing to split"
    if decision.scope == EMBEDDING:
        return f"the share of embedding is {percent(share_ppm)}: all of a model's vectors are on one side"
    inside = decision.arm is Arm.CANDIDATE
    return (
        f"slot {slot_ppm / PPM:.6f} of the session is {'below' if inside else 'not below'} the share "
        f"{format_share(share_ppm):g} of {scope} ({percent(share_ppm)}) -> {decision.arm.value}"
    )


def _diverted(decision: Decision) -> str:
    passed = ", ".join(
        f"{one.provider} is {'under maintenance' if one.reason == MAINTENANCE else one.reason}"
        for one in decision.diverted
    )
    return f"assigned to the {decision.arm.value} arm, but {passed}: it goes to the next in the chain"
