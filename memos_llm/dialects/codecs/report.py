"""What becomes of every field on its way to a back end, told from the rule tables themselves, for the README.

`markdown` is the text; `warnings` is every token that `x-memos-warnings` can hold, so that a test can provoke each.
"""

from collections.abc import Iterable, Iterator, Mapping

from memos_llm.core.call import Wire
from memos_llm.dialects.codecs import embed_to_openai, ollama_request, openai_request
from memos_llm.dialects.codecs.identity import RAW_PROMPT
from memos_llm.dialects.codecs.ollama_options import OPTIONS
from memos_llm.dialects.codecs.repairs import DEFAULTS, REPAIRS
from memos_llm.dialects.codecs.rules import SAID, Policy, Rule
from memos_llm.dialects.codecs.silence import EFFORT, SILENCES, Ignored

RULES: Mapping[str, Mapping[str, Rule]] = {
    "Ollama `/api/chat` to vLLM `/v1/chat/completions`": ollama_request.CHAT,
    "Ollama `/api/generate` to vLLM `/v1/chat/completions`": ollama_request.GENERATE,
    "Ollama `/api/generate` with `raw` or `suffix` to vLLM `/v1/completions`": ollama_request.VERBATIM,
    "Ollama `/api/embed` to vLLM `/v1/embeddings`": embed_to_openai.EMBED,
    "Ollama `/api/embeddings` to vLLM `/v1/embeddings`": embed_to_openai.EMBEDDINGS,
    "OpenAI chat to Ollama `/api/chat` (the library's calls, and where `native_chat` is set)": openai_request.CHAT,
}

MEANINGS: Mapping[Policy, str] = {
    Policy.MAPPED: "means the same there",
    Policy.APPROXIMATED: "near enough, and said: `approximated:<field>`",
    Policy.IGNORED: "left out silently: it shapes no answer",
    Policy.DROPPED: "left out, and said: `dropped:<field>`",
    Policy.REFUSED: "not offered there: the call goes to a provider that does it, whatever the share",
}

OTHERS: Mapping[str, str] = {
    ollama_request.ESTIMATED: "a non-streaming answer of vLLM does not show where the prompt ended",
    "ignored:keep_alive": "an unload of a model on vLLM, which has one model and keeps it",
    f"repaired:{DEFAULTS}": "the model's configured `defaults` filled in what the caller left open",
    embed_to_openai.RAW_LENGTH: "a vector of `/api/embeddings` points the same way on both sides, but Ollama leaves "
    "some models' vectors at another length than 1",
    f"dropped:{EFFORT}": "an effort of `none` on a vLLM model whose `thinking` is `thinking`: it thinks all the same",
    RAW_PROMPT: "vLLM takes the prompt of a completion as it is, Ollama puts it into the model's chat template",
    "passed-on:unfinished": "Ollama's repeat guard ended the answer, and no other target had a better one",
}
"""Warnings that belong to no field."""

ROUTES: Mapping[Wire, str] = {
    Wire.OPENAI_CHAT: "/v1/chat/completions",
    Wire.OPENAI_COMPLETION: "/v1/completions",
    Wire.OPENAI_EMBEDDINGS: "/v1/embeddings",
}


def markdown() -> str:
    """The tables, under headings of the fourth level."""
    parts = [
        _table(("", "what becomes of a field"), [(f"**{policy.value}**", text) for policy, text in MEANINGS.items()]),
        *(_section(title, rules) for title, rules in RULES.items()),
        _options(),
        _repairs(),
        *(_silence(kind) for kind in SILENCES),
        "#### Other warnings\n\n"
        + _table(("warning", "because"), [(f"`{name}`", why) for name, why in OTHERS.items()]),
    ]
    return "\n\n".join(parts) + "\n"


def warnings() -> tuple[str, ...]:
    """Every warning that can occur, sorted."""
    found = {f"repaired:{name}" for name in REPAIRS} | set(OTHERS)
    for rules in RULES.values():
        for name, rule in rules.items():
            found.update(_said(name, (rule.policy, *rule.says)))
    for name, option in OPTIONS.items():
        found.update(_said(name, (option.policy, *option.says)))
    for kind in SILENCES:
        found.update(f"dropped:{name}" for name in _silent(kind))
    return tuple(sorted(found))


def _said(name: str, policies: Iterable[Policy]) -> Iterator[str]:
    return (f"{policy.value}:{name}" for policy in policies if policy in SAID)


def _section(title: str, rules: Mapping[str, Rule]) -> str:
    rows = [
        (f"`{name}`", _fields(rule.to), _policies(rule.policy, rule.says), rule.note) for name, rule in rules.items()
    ]
    return f"#### {title}\n\n{_table(('field', 'becomes', 'how', ''), rows)}"


def _options() -> str:
    rows = [(f"`{name}`", _fields(o.field), _policies(o.policy, o.says), o.note) for name, o in OPTIONS.items()]
    return f"#### Ollama's `options` on vLLM\n\n{_table(('option', 'becomes', 'how', ''), rows)}"


def _repairs() -> str:
    rows = [(f"`repaired:{name}`", _routes(repair.wires), repair.note) for name, repair in REPAIRS.items()]
    return f"#### Repairs on a back end's own API\n\n{_table(('warning', 'on', 'why'), rows)}"


def _silent(kind: str) -> Mapping[str, Ignored]:
    return {name: field for silence in SILENCES[kind] for name, field in silence.fields.items()}


def _silence(kind: str) -> str:
    rows = [(f"`dropped:{name}`", _routes(field.wires)) for name, field in _silent(kind).items()]
    return f"#### What a provider of kind `{kind}` leaves out of OpenAI's API\n\n{_table(('warning', 'on'), rows)}"


def _policies(policy: Policy, says: tuple[Policy, ...]) -> str:
    return " or ".join(dict.fromkeys((policy.value, *(further.value for further in says))))


def _fields(names: str) -> str:
    return ", ".join(f"`{name}`" for name in names.split(", ") if name)


def _routes(wires: frozenset[Wire]) -> str:
    return ", ".join(f"`{path}`" for wire, path in ROUTES.items() if wire in wires)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |" for line in lines)
