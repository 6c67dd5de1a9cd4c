"""`--deep`: what a few short generations showed. Without it, one line that says what was not tried."""

from collections.abc import Iterator, Mapping

from memos_llm.operate.doctor.checks import Check, Group
from memos_llm.operate.doctor.facts import DeepFacts, Facts, Talk
from memos_llm.operate.doctor.models import Pair, pairs
from memos_llm.operate.doctor.servers import way

GROUP = Group("deep")

TOOL_FLAGS = "start vLLM with --enable-auto-tool-choice --tool-call-parser hermes (or the parser of that model)"
SCHEMA_FIX = "look at vLLM's log: its structured output back end (xgrammar) must be installed and know the schema"
THINK = "<think>"


def asked(facts: Facts) -> Iterator[Check]:
    if not facts.deep:
        why = "nothing was generated: whether chats, tools and structured output work was not tried"
        yield GROUP.skipped("deep", why, "`llmctl doctor --deep` sends a few short requests to each mapped model")
    elif facts.settings is None:
        why = "nothing was generated: there is no configuration that names the servers and models"
        yield GROUP.skipped("deep", why, "--config FILE, with one that is right")
    elif not any(pairs(facts)):
        yield GROUP.skipped(
            "deep", "nothing was generated: no model is mapped to an enabled candidate", "see configuration"
        )


def chat(facts: Facts) -> Iterator[Check]:
    for pair in pairs(facts) if facts.deep else ():
        name = pair.model.name
        found = facts.talks.get(name)
        if found is None:
            yield GROUP.skipped(f"deep.chat.{name}", f"{name}: not on both sides, and so not asked (see models)")
            continue
        for provider, talk in found.chats.items():
            yield _chat(f"deep.chat.{name}.{provider}", f"{provider}, {name}", talk)


def _chat(id: str, who: str, talk: Talk) -> Check:
    if talk.fault:
        return GROUP.fail(id, f"{who}: no answer to a short chat ({talk.fault})", chat_fix(talk))
    if not (talk.text or talk.reasoning):
        fix = "look at the server's log and the model's chat template"
        return GROUP.fail(id, f"{who}: a short chat ended without any content ({talk.finish_reason})", fix)
    first = "" if talk.first_s is None else f" after {talk.first_s:.2f} s"
    said = f"{who}: first content{first}, finish_reason {talk.finish_reason}"
    if talk.finish_reason not in ("stop", "length"):
        return GROUP.warn(id, said, "`stop` or `length` was to be expected: look at the server's log")
    return GROUP.ok(id, said)


def chat_fix(talk: Talk) -> str:
    if talk.status in (401, 403):
        return "the key is refused: set the provider's api_key"
    if talk.status == 404:
        return "the model, or the route, is not there: see the checks of the models"
    return "look at the server's log" if talk.status else way(talk.fault)


def thinking(facts: Facts) -> Iterator[Check]:
    for pair in pairs(facts):
        found = facts.talks.get(pair.model.name, DeepFacts())
        talk = found.chats.get(pair.candidate.name)
        if talk is None or talk.fault:
            continue
        id, name = f"deep.thinking.{pair.model.name}", f"{pair.candidate.name}, {pair.model.name}"
        split = pair.model.on[pair.candidate.name].settings.split_think_tags
        if THINK not in talk.text:
            yield GROUP.ok(id, f"{name}: no {THINK} in the content")
        elif split:
            yield GROUP.ok(id, f"{name}: {THINK} in the content, cut out by split_think_tags")
        else:
            setting = f"models.{pair.model.name}.{pair.candidate.name}.split_think_tags"
            fix = f"start vLLM with --reasoning-parser qwen3 (or that model's), or set {setting}: true"
            yield GROUP.warn(id, f"{name}: {THINK} stands in the content, where clients take it for the answer", fix)


def counts(facts: Facts) -> Iterator[Check]:
    for pair in pairs(facts):
        found = facts.talks.get(pair.model.name, DeepFacts())
        here, there = (_input(found.chats, name) for name in (pair.baseline.name, pair.candidate.name))
        if here is None or there is None:
            continue
        id = f"deep.tokens.{pair.model.name}"
        said = f"{pair.model.name}: one chat is {here} tokens on {pair.baseline.name}, {there} on {pair.candidate.name}"
        if here == there:
            yield GROUP.ok(id, said)
        else:
            fix = "their templates or tokenizers differ: compare `ollama show --template` with vLLM's --chat-template"
            yield GROUP.warn(id, said, fix)


def _input(chats: Mapping[str, Talk], provider: str) -> int | None:
    talk = chats.get(provider)
    return None if talk is None or talk.fault else talk.input_tokens


def tools(facts: Facts) -> Iterator[Check]:
    for pair in pairs(facts):
        found = facts.talks.get(pair.model.name, DeepFacts())
        chat, talk = found.chats.get(pair.candidate.name), found.tools
        id, name = f"deep.tools.{pair.model.name}", f"{pair.candidate.name}, {pair.model.name}"
        if talk is not None:
            yield _tools(id, name, talk, pair)
        elif chat is not None and not chat.fault:
            yield GROUP.skipped(id, f"{name}: on {pair.baseline.name} it takes no tools either")


def _tools(id: str, name: str, talk: Talk, pair: Pair) -> Check:
    if not talk.fault:
        return GROUP.ok(id, f"{name}: tools are accepted")
    if talk.status == 400:
        vllm = pair.candidate.kind == "vllm"
        who, flags = ("vLLM", TOOL_FLAGS) if vllm else (pair.candidate.kind, f"if a vLLM answers there: {TOOL_FLAGS}")
        stays = f"; until then {pair.baseline.name} answers calls with tools"
        return GROUP.fail(id, f"{name}: {who} refuses tools (400)", flags + stays)
    return GROUP.fail(id, f"{name}: no answer to a call with a tool ({talk.fault})", chat_fix(talk))


def structured(facts: Facts) -> Iterator[Check]:
    for pair in pairs(facts):
        talk = facts.talks.get(pair.model.name, DeepFacts()).schema
        if talk is None:
            continue
        id, name = f"deep.schema.{pair.model.name}", f"{pair.candidate.name}, {pair.model.name}"
        if talk.fault:
            yield GROUP.fail(id, f"{name}: no answer to a request with a JSON schema ({talk.fault})", SCHEMA_FIX)
        else:
            yield GROUP.ok(id, f"{name}: a JSON schema is accepted")


def vectors(facts: Facts) -> Iterator[Check]:
    for pair in pairs(facts):
        found, name = facts.talks.get(pair.model.name, DeepFacts()), pair.model.name
        id, fix = f"deep.vectors.{name}", f"`llmctl embeddings verify {name} --file TEXTS` shows how far apart they are"
        if found.vectors_fault:
            yield GROUP.fail(id, f"{name}: {found.vectors_fault}", "see the checks of the models, and the server's log")
        elif found.vectors is not None and found.vectors.equal:
            yield GROUP.ok(
                id, f"{name}: {found.vectors.why}", "a look, no proof: `llmctl embeddings verify` records one"
            )
        elif found.vectors is not None:
            yield GROUP.warn(id, f"{name}: the vectors are not the same ({found.vectors.why})", fix)


RULES = (asked, chat, thinking, counts, tools, structured, vectors)
