"""What a cause of being on the baseline means now, and what is to be done about it: one table, `CAUSES`.

The configuration and the flags of now are looked at too: what was not mapped yesterday may be today.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

from memos_llm.core.call import OPERATIONS, Operation, Wire
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM, Flags
from memos_llm.core.inventory import FELL_BACK, LOAD, OTHER, Line
from memos_llm.core.policy import Policy

READY, MOVES, HANGS = "ready", "moves", "hangs"


class Advice(NamedTuple):
    """`state` of the three above; `why`: the cause that holds now; `todo`: a sentence, empty if nothing."""

    state: str
    why: str
    todo: str


class Case(NamedTuple):
    """One line's calls with one cause. `codes`: how the candidate's tries ended, the most frequent first."""

    line: Line
    policy: Policy
    flags: Flags
    candidate: str
    needs: tuple[str, ...]
    codes: tuple[str, ...]


def advise(
    cause: str, line: Line, policy: Policy, flags: Flags, *, needs: tuple[str, ...], codes: tuple[str, ...]
) -> Advice:
    """What calls that the baseline answered for this cause need to do without it."""
    if policy.candidate is None:
        return Advice(HANGS, "no-candidate", "name the provider you move to under `candidate` in the configuration")
    judge = CAUSES.get(cause)
    if judge is None:  # a newer version's
        return Advice(HANGS, cause, "")
    return judge(Case(line, policy, flags, policy.candidate, needs, codes))


def todo_for_all(todos: Iterable[tuple[str, int]]) -> Iterator[str]:
    """Each sentence once, those that concern the most requests first."""
    sums: dict[str, int] = {}
    for todo, n in todos:
        sums[todo] = sums.get(todo, 0) + n
    for todo, n in sorted(sums.items(), key=lambda pair: -pair[1]):
        if todo:
            yield f"{todo} ({n:,} request{'' if n == 1 else 's'})"


def _split(case: Case) -> Advice:
    if _is_vectors(case.line):
        return _vectors(case)
    name, scope = case.flags.effective(case.line.component)
    if scope.latch is not None:
        return _latched(case)
    if case.line.model != OTHER and not _is_mapped(case):
        return _unmapped(case)
    if (scope.share_ppm or 0) == PPM:
        return Advice(MOVES, "split", f"wait: the share of {_everything(name)} is 100% by now")
    return Advice(MOVES, "split", f"raise the share: `llmctl shift --{case.candidate} SHARE{_option(name)}`")


def _vectors(case: Case) -> Advice:
    policy, flags, candidate = case.policy, case.flags, case.candidate
    model = policy.catalogue.resolve(case.line.model)
    here, there = (model.on.get(policy.baseline), model.on.get(candidate)) if model else (None, None)
    if model is None or there is None:
        return _unmapped(case)
    scope = flags.effective(EMBEDDING)[1]
    if scope.latch is not None:
        return _latched(case)
    proven = here is not None and flags.proof(model.name, here.name, there.name) is not None
    if not proven and not scope.new_index:
        return Advice(
            HANGS,
            "embeddings-unverified",
            f"prove its vectors equal: `llmctl embeddings verify {model.name} --file F`; or build the index anew: "
            f"`llmctl shift --{candidate} 1 --component {EMBEDDING} --new-index`",
        )
    if (scope.share_ppm or 0) == PPM:
        return Advice(MOVES, "split", f"wait: the share of {EMBEDDING} is 100% by now")
    return Advice(MOVES, "split", f"move the embeddings: `llmctl shift --{candidate} 1 --component {EMBEDDING}`")


def _latched(case: Case) -> Advice:
    name, scope = case.flags.effective(EMBEDDING if _is_vectors(case.line) else case.line.component)
    if scope.latch is None:
        return _split(case)
    todo = f"mend {case.candidate}, then `llmctl rearm{_option(name)}` and raise the share"
    return Advice(HANGS, "latched", todo)


def _pin(case: Case) -> Advice:
    component, policy = case.line.component, case.policy
    at = EMBEDDING if _is_vectors(case.line) and component not in policy.pins else component
    pinned = policy.pins.get(at)
    if pinned == policy.baseline:
        return Advice(HANGS, "pin", f"the configuration pins it: set `routing.components.{at}` to `share`")
    return _split(case) if pinned is None else Advice(MOVES, "pin", f"wait: it is pinned to {pinned} by now")


def _unmapped(case: Case) -> Advice:
    if _is_mapped(case):
        return _split(case)
    name = case.line.model
    if name == OTHER:  # callers' own spellings, beyond the bound
        todo = (
            f"more names of models than are counted singly: map them for {case.candidate}, or have callers use others"
        )
        return Advice(HANGS, "unmapped-model", todo)
    return Advice(
        HANGS,
        "unmapped-model",
        f'map the model: `models: {{"{name}": {{{case.candidate}: NAME-THERE}}}}`, or have its callers use another',
    )


def _not_offered(case: Case) -> Advice:
    what = f"{', '.join(case.needs)} of " if case.needs else ""
    api = case.line.wire if case.line.wire in _WIRES else "these"
    todo = f"{case.candidate} does not offer {what}{api} calls for {case.line.model}: change the call, or keep it there"
    return Advice(HANGS, "not-offered", todo)


def _load(case: Case) -> Advice:
    return Advice(READY, "load", "")


def _unverified(case: Case) -> Advice:
    return _vectors(case)


def _passthrough(case: Case) -> Advice:
    return Advice(
        HANGS,
        "passthrough",
        _SAID.get(_family(case.line.route), _UNREAD).format(route=case.line.route, baseline=case.policy.baseline),
    )


def _override(case: Case) -> Advice:
    return Advice(HANGS, "override", f"its caller asks for {case.policy.baseline} by x-memos-provider: have it stop")


def _diverted(case: Case) -> Advice:
    return Advice(
        HANGS, "diverted", f"{case.candidate} was down or failing, and {case.policy.baseline} stood in: mend it"
    )


def _fell_back(case: Case) -> Advice:
    refused = any(code.startswith("incompatible") for code in case.codes)
    how = f" ({', '.join(case.codes[:3])})" if case.codes else ""
    mend = "mend its flags (tool parser, context length)" if refused else "mend it"
    return Advice(
        HANGS,
        "incompatible" if refused else FELL_BACK,
        f"{case.candidate} {'refused' if refused else 'failed'} what {case.policy.baseline} then answered{how}: {mend}",
    )


CAUSES: Mapping[str, Callable[[Case], Advice]] = {
    "split": _split,
    "pin": _pin,
    "latched": _latched,
    "unmapped-model": _unmapped,
    "not-offered": _not_offered,
    "embeddings-unverified": _unverified,
    "passthrough": _passthrough,
    "override": _override,
    "diverted": _diverted,
    FELL_BACK: _fell_back,
    LOAD: _load,
}
"""By cause: every reason of a decision, and the two of `core.inventory`."""

_WIRES = frozenset(wire.value for wire in Wire)

_UNREAD = "{route} is passed on unread, and {baseline} alone answers it: have its callers use another route"
_TO_CHAT = "{route} is passed on unread: have its callers use /v1/chat/completions or /api/chat"
_MODELS = "{route} looks after the models of {baseline}: its callers stop with it"
_SAID: Mapping[str, str] = {
    "/v1/responses": _TO_CHAT,
    "/v1/messages": _TO_CHAT,
    **dict.fromkeys(("/api/pull", "/api/push", "/api/create", "/api/copy", "/api/delete", "/api/blobs"), _MODELS),
}


def _family(route: str) -> str:
    """`POST /api/blobs/…` → `/api/blobs`."""
    return "/".join(route.partition(" ")[2].split("/")[:3])


def _is_vectors(line: Line) -> bool:
    return line.wire in _WIRES and OPERATIONS[Wire(line.wire)] is Operation.EMBEDDINGS


def _is_mapped(case: Case) -> bool:
    model = case.policy.catalogue.resolve(case.line.model)
    return model is not None and model.target(case.candidate) is not None


def _everything(scope: str) -> str:
    return "everything" if scope == GLOBAL else scope


def _option(scope: str) -> str:
    return "" if scope == GLOBAL else f" --component {scope}"
