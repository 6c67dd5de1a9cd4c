"""Each server: does it answer, what is it, does it take our key, what does it serve; and the GPU under them."""

from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from memos_llm.core.call import Quirk
from memos_llm.core.catalogue import canonical
from memos_llm.operate.doctor.checks import Check, Group, counted, listed
from memos_llm.operate.doctor.facts import EndpointFacts, Facts, ProviderFacts
from memos_llm.providers.quirks import quirks

GROUP = Group("providers")
FOR_GOOD_S = 30 * 86400.0  # a keep_alive below 0 ends in the year 2319
SLOW_S = 1.0  # a probe is two or three small GETs
REFUSED = (401, 403)
SOMETHING_ELSE = 200
ROOM_GB = 2.0  # of GPU memory: less is no room for a second server's model

WAYS: Mapping[str, str] = {
    "refused": "nothing listens there: start it, or mend the address",
    "dns": "its name is not known here: mend the address, or DNS",
    "tls": "TLS fails: look at the certificate, and whether it is http or https",
    "unreachable": "no way there: look at the network and its firewalls",
    "connect timeout": "no way there: look at the network and its firewalls",
    "timeout": "it is busy or hangs: look at its log; a loaded server may be slow to answer, and still serve",
    "no answer": "it is busy or hangs: look at its log; a loaded server may be slow to answer, and still serve",
    "server 503": "vLLM's engine is dead: restart it",
    "truncated": "it hangs up without an answer: something else may listen there, or it has just died",
    "malformed": "something else listens there: mend the address",
}
"""What a probe's detail contains → what to do; the first that fits."""

STARTS: Mapping[str, str] = {"ollama": "`ollama serve`", "vllm": "`vllm serve MODEL --port {port}`"}

QUIRKS: Mapping[Quirk, tuple[str, str]] = {
    Quirk.OLD_REASONING: ("it reads a history's reasoning as `reasoning_content`", "0.12"),
    Quirk.GUIDED: ("it still reads `guided_json` and its kin", "0.12"),
    Quirk.STRICT_LENGTH: ("it refuses prompt + max_tokens beyond the context", "0.32"),
}
"""What a quirk means, and the release that is without it; the codecs make do with each."""


def takes_us(one: EndpointFacts) -> bool:
    """Whether it is up, is what it is said to be, and does not refuse the key, as far as is known."""
    return one.up and one.models_status not in (*REFUSED, SOMETHING_ELSE)


def _each(facts: Facts) -> Iterator[tuple[ProviderFacts, int, EndpointFacts]]:
    for provider in facts.providers:
        for number, one in enumerate(provider.endpoints):
            yield provider, number, one


def up(facts: Facts) -> Iterator[Check]:
    for provider in facts.providers:
        if not provider.endpoints:
            why = f"{provider.name}: of kind {provider.kind}, which is not probed: only a call shows whether it works"
            yield GROUP.skipped(f"endpoint.up.{provider.name}", why, "`llmctl doctor --deep` makes one")
    for provider, number, one in _each(facts):
        yield _up(provider, f"endpoint.up.{provider.name}.{number}", one)


def _up(provider: ProviderFacts, id: str, one: EndpointFacts) -> Check:
    at, ms = f"{provider.name} {one.url}", one.latency_s * 1000
    if not one.up:
        return GROUP.fail(id, f"{at} is down ({one.detail})", _start(provider.kind, one))
    if one.latency_s > SLOW_S:
        fix = "it is busy, or far: see its queue, and where the gateway is to run"
        return GROUP.warn(id, f"{at} answers, but slowly: {ms:.0f} ms for a probe", fix)
    return GROUP.ok(id, f"{at} answers ({ms:.0f} ms)")


def _start(kind: str, one: EndpointFacts) -> str:
    start = STARTS.get(kind, "")
    wants_start = start and "refused" in one.detail
    return f"{way(one.detail)} ({start.format(port=urlsplit(one.url).port)})" if wants_start else way(one.detail)


def way(detail: str) -> str:
    """What to do about a server that does not answer, by how it does not."""
    return next((fix for sign, fix in WAYS.items() if sign in detail), "look at its log")


def version(facts: Facts) -> Iterator[Check]:
    for provider, number, one in _each(facts):
        if not one.up or provider.kind not in STARTS:
            continue
        id, at = f"endpoint.version.{provider.name}.{number}", f"{provider.name} {one.url}"
        found = tuple(said for quirk, said in QUIRKS.items() if quirk in quirks(provider.kind, one.version))
        if not one.version:
            fix = "what its release needs otherwise is not known: a proxy in front must let the version's path through"
            yield GROUP.warn(id, f"{at} does not say its version", fix)
        elif found:
            said = ", ".join(f"{text} (before {until})" for text, until in found)
            yield GROUP.ok(id, f"{at} is {one.version}: {said}; requests are written for it")
        else:
            yield GROUP.ok(id, f"{at} is {one.version}, with no quirk that is known")


def key(facts: Facts) -> Iterator[Check]:
    for provider, number, one in _each(facts):
        if not one.up:
            continue
        id, at = f"endpoint.key.{provider.name}.{number}", f"{provider.name} {one.url}"
        if one.models_status in REFUSED:
            had = "refuses the key" if provider.has_key else "asks for a key, and none is configured"
            fix = f"set providers.{provider.name}.api_key to what that server was started with (--api-key)"
            yield GROUP.fail(id, f"{at} {had} ({one.models_status})", fix)
        elif one.models is None:
            yield GROUP.skipped(id, f"{at} did not say what it serves, so whether it takes the key is not known")
        elif provider.kind == "vllm":
            yield GROUP.ok(id, f"{at} {'takes the key, or asks for none' if provider.has_key else 'asks for no key'}")


def models(facts: Facts) -> Iterator[Check]:
    for provider, number, one in _each(facts):
        if not one.up or one.models_status in REFUSED:
            continue
        id, at = f"endpoint.models.{provider.name}.{number}", f"{provider.name} {one.url}"
        if one.models_status == SOMETHING_ELSE:
            fix = f"something else listens there: mend the address, or start {provider.kind} there"
            yield GROUP.fail(id, f"{at} answers, but not as {provider.kind} does: {one.models_fault}", fix)
            continue
        if one.models is None:
            fix = "look at its log; a proxy in front must let /v1/models (Ollama: /api/tags) through"
            yield GROUP.warn(id, f"{at} does not say what it serves ({one.models_fault})", fix)
            continue
        served = {canonical(name) for name in one.models}
        missing = tuple(name for name in one.configured if canonical(name) not in served)
        if missing:
            fix = f"mend providers.{provider.name}.endpoints[{number}].models, or start the server with them"
            yield GROUP.fail(id, f"{at} does not serve {listed(missing)}, as the file says it does", fix)
        elif not one.models:
            yield GROUP.warn(
                id, f"{at} has no model", "`ollama pull MODEL`" if provider.kind == "ollama" else "see its log"
            )
        else:
            yield GROUP.ok(id, f"{at} serves {listed(one.models)}")


def replicas(facts: Facts) -> Iterator[Check]:
    """Servers of one model must be alike: which of them answers is nobody's choice."""
    for provider in facts.providers:
        up = [one for one in provider.endpoints if one.up]
        for name in sorted({name for one in up for name in one.models or ()}):
            same = [one for one in up if name in (one.models or ())]
            unlike = _unlike(same, name)
            id = f"endpoint.replicas.{provider.name}.{name}"
            if unlike:
                fix = "start them alike: which of them answers a conversation is not for the caller to choose"
                yield GROUP.warn(id, f"{provider.name}: {counted(len(same), 'server')} of {name} differ: {unlike}", fix)
            elif len(same) > 1:
                yield GROUP.ok(id, f"{provider.name}: {len(same)} servers of {name}, alike")


def _unlike(same: list[EndpointFacts], name: str) -> str:
    versions = sorted({one.version for one in same})
    lengths = sorted({one.contexts[name] for one in same if name in one.contexts})
    if len(versions) > 1:
        return f"versions {', '.join(versions)}"
    return f"contexts of {', '.join(str(length) for length in lengths)} tokens" if len(lengths) > 1 else ""


def warm(facts: Facts) -> Iterator[Check]:
    settings = facts.settings
    for provider, number, one in _each(facts):
        if provider.kind != "ollama" or not one.up or settings is None:
            continue
        id, at = f"endpoint.loaded.{provider.name}.{number}", f"{provider.name} {one.url}"
        wanted = settings.providers[provider.name].keep_warm
        if one.loaded is None:
            yield GROUP.warn(
                id, f"{at} does not say what is loaded: it may be loading a model right now", "look again soon"
            )
            continue
        here = {canonical(row.model) for row in one.loaded}
        cold = tuple(name for name in wanted if canonical(name) not in here)
        if cold and not _is_shared(facts):
            yield GROUP.ok(id, f"{at}: {listed(cold)} not loaded; kept warm from the first share on")
        elif cold:
            fix = "a running gateway loads it within a minute; if none does, `ollama ps` and Ollama's log say why"
            yield GROUP.warn(id, f"{at}: {listed(cold)} should be kept warm, and is not loaded", fix)
        else:
            names = tuple(f"{row.model} ({_left(row.left_s)})" for row in one.loaded)
            yield GROUP.ok(
                id, f"{at}: {'loaded: ' + listed(names) if names else 'nothing loaded; the first call waits'}"
            )


def _left(left_s: float) -> str:
    return "for good" if left_s > FOR_GOOD_S else f"{max(0.0, left_s) / 60:.0f} min left"


def load(facts: Facts) -> Iterator[Check]:
    for provider, number, one in _each(facts):
        if one.load is None:
            continue
        id, at, now = f"endpoint.load.{provider.name}.{number}", f"{provider.name} {one.url}", one.load
        cache = "" if now.kv_cache is None else f", KV cache {now.kv_cache:.0%} full"
        said = f"{at}: {now.running:.0f} running, {now.waiting:.0f} waiting{cache}"
        if now.asleep:
            yield GROUP.fail(id, f"{at} sleeps: it has given its GPU away", "wake it: POST /wake_up, or restart it")
        elif now.waiting and now.waiting >= now.running:
            yield GROUP.warn(id, said, "it has more than it can take: a smaller share, or another server of it")
        else:
            yield GROUP.ok(id, said)


def _is_shared(facts: Facts) -> bool:
    flags = facts.store.flags if facts.store else None
    return bool(flags and flags.given())


def memory(facts: Facts) -> Iterator[Check]:
    for provider, number, one in _each(facts):
        for row in one.loaded or ():
            if 0 < row.size_vram < row.size:
                part = 1 - row.size_vram / row.size
                yield GROUP.warn(
                    f"endpoint.memory.{provider.name}.{number}.{row.model}",
                    f"{provider.name} {one.url}: {part:.0%} of {row.model} is in main memory, not on the GPU: slow",
                    "free GPU memory: a smaller vLLM --gpu-memory-utilization, fewer models, a smaller num_ctx",
                )


def gpu(facts: Facts) -> Iterator[Check]:
    local = tuple(one.name for one in facts.providers if one.local and any(end.up for end in one.endpoints))
    if not facts.gpus:
        if local:
            why = "no GPU is seen from here (NVIDIA's library is asked where the extra is installed)"
            yield GROUP.skipped("gpu.memory", why, "pip install 'memos_llm[gpu]' on the GPU's host")
        return
    for card in facts.gpus:
        free_gb = float(str(card.get("free_vram_gb", 0.0)))
        id, said = (
            f"gpu.memory.{card.get('index')}",
            f"GPU {card.get('index')} {card.get('name')}: {free_gb:.1f} GiB free",
        )
        if len(local) > 1 and free_gb < ROOM_GB:
            yield GROUP.warn(
                id,
                f"{said}, and {listed(local)} share this machine: Ollama may load into main memory, vLLM may not start",
                "vLLM takes 90% at its start: give it less (--gpu-memory-utilization 0.6), or another GPU",
            )
        else:
            yield GROUP.ok(id, said)


RULES = (up, version, key, models, replicas, load, warm, memory, gpu)
