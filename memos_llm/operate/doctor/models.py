"""Each mapped model: is it on both sides, is its context as long there, is it the same kind of model?"""

from collections.abc import Iterator, Mapping

from msgspec import Struct

from memos_llm.core.catalogue import Model, canonical, is_embedding
from memos_llm.operate.doctor.checks import Check, Group, counted, listed
from memos_llm.operate.doctor.facts import EndpointFacts, Facts, Loaded, ProviderFacts, Shown

GROUP = Group("models")
LEAST_CTX = 4096  # Ollama's num_ctx on a machine with little GPU memory; more on others (since 0.15.5)
EMBEDDING = "embedding"


class Pair(Struct, frozen=True, kw_only=True):
    """A model on baseline and candidate, each with its endpoints that are up and serve it, or may."""

    model: Model
    baseline: ProviderFacts
    candidate: ProviderFacts
    here: str
    there: str

    @property
    def loaded(self) -> Loaded | None:
        rows = (row for one in self.baseline.endpoints for row in one.loaded or ())
        return next((row for row in rows if canonical(row.model) == canonical(self.here)), None)

    @property
    def shown(self) -> Shown | None:
        return next((one.shown[self.here] for one in self.baseline.endpoints if self.here in one.shown), None)

    @property
    def there_on(self) -> tuple[EndpointFacts, ...]:
        return tuple(one for one in self.candidate.endpoints if one.up and self.there in (one.models or ()))

    @property
    def there_at_all(self) -> bool:
        """Not known to be missing on either side."""
        return False not in (serves(self.baseline, self.here), serves(self.candidate, self.there))

    @property
    def embeds(self) -> bool:
        """By what Ollama says of it, else by its name."""
        if self.shown is not None and self.shown.capabilities:
            return EMBEDDING in self.shown.capabilities
        return is_embedding(self.model.name)


def pairs(facts: Facts) -> Iterator[Pair]:
    settings = facts.settings
    policy = settings.policy() if settings else None
    if policy is None or policy.candidate is None:
        return
    baseline, candidate = facts.provider(policy.baseline), facts.provider(policy.candidate)
    if baseline is None or candidate is None:
        return
    for model in policy.catalogue.models.values():
        here, there = model.on.get(policy.baseline), model.on.get(policy.candidate)
        if here is not None and there is not None:
            yield Pair(model=model, baseline=baseline, candidate=candidate, here=here.name, there=there.name)


def on_baseline(facts: Facts) -> Iterator[Check]:
    settings = facts.settings
    provider = facts.provider(settings.baseline) if settings else None
    if settings is None or provider is None:
        return
    for model in settings.catalogue().models.values():
        own = model.on.get(provider.name)
        if own is not None:
            id = f"model.baseline.{model.name}"
            yield from _there(provider, id, model.name, own.name, _start(provider, own.name))


def on_candidate(facts: Facts) -> Iterator[Check]:
    for pair in pairs(facts):
        others = tuple(sorted({name for one in pair.candidate.endpoints for name in one.models or ()}))
        fix = _start(pair.candidate, pair.there)
        if others:
            fix += f", or map models.{pair.model.name}.{pair.candidate.name} to what it serves ({listed(others, 3)})"
        yield from _there(pair.candidate, f"model.candidate.{pair.model.name}", pair.model.name, pair.there, fix)


def _start(provider: ProviderFacts, name: str) -> str:
    return f"`ollama pull {name}` there" if provider.kind == "ollama" else f"start vLLM with --served-model-name {name}"


def _there(provider: ProviderFacts, id: str, model: str, name: str, fix: str) -> Iterator[Check]:
    if not provider.endpoints:
        return
    told = f"{model}, {name} there" if model != name else name
    has = serves(provider, name)
    if has:
        yield GROUP.ok(id, f"{provider.name} has {told}")
    elif has is None:
        yield GROUP.skipped(id, f"{provider.name}: the server that may have {told} does not say so (see providers)")
    else:
        yield GROUP.fail(id, f"{provider.name} does not have {told}", fix)


def serves(provider: ProviderFacts, name: str) -> bool | None:
    """Whether a provider has one of its own names; None: it is not asked, or an endpoint that might did not say."""
    if not provider.endpoints:
        return None
    fold = canonical if provider.kind == "ollama" else str
    known = {fold(one) for end in provider.endpoints for one in end.models or ()}
    silent = [end for end in provider.endpoints if end.models is None]
    if fold(name) in known:
        return True
    return None if any(not end.configured or name in end.configured for end in silent) else False


def context(facts: Facts) -> Iterator[Check]:
    for pair in pairs(facts):
        lengths = [one.contexts[pair.there] for one in pair.there_on if pair.there in one.contexts]
        if not lengths or pair.baseline.kind != "ollama":
            continue
        yield _context(pair, min(lengths))


def _context(pair: Pair, there: int) -> Check:
    id, (here, source, sure) = f"model.context.{pair.model.name}", window(pair.loaded, pair.shown)
    said = f"{pair.model.name}: {pair.baseline.name} {source}, {pair.candidate.name} {there} tokens"
    if here is None or (not sure and there >= LEAST_CTX):
        return GROUP.ok(id, said)
    if there < here:
        longer = f"until then what is longer is a 400 there, and {pair.baseline.name} answers it"
        fix = f"start vLLM with --max-model-len {here}; {longer}"
        return GROUP.warn(id, said, fix)
    return GROUP.ok(id, said)


def window(loaded: Loaded | None, shown: Shown | None) -> tuple[int | None, str, bool]:
    """Ollama's context in tokens, in words where that comes from, and whether it is what is in force.

    Loaded with it, else the Modelfile's, else unknown: by the GPU's memory, at least `LEAST_CTX`, at most as trained.
    """
    if loaded is not None and loaded.context_tokens:
        return loaded.context_tokens, f"{loaded.context_tokens} tokens as loaded", True
    if shown is None:
        return None, "not known", False
    if shown.num_ctx:
        return shown.num_ctx, f"{shown.num_ctx} tokens (num_ctx of its Modelfile)", True
    if shown.trained_tokens:
        least = min(LEAST_CTX, shown.trained_tokens)
        return least, f"{least} to {shown.trained_tokens} tokens (not loaded: its server decides)", False
    return None, "not known", False


def kind(facts: Facts) -> Iterator[Check]:
    """Embeds or generates, on both sides the same."""
    for pair in pairs(facts):
        tasks = {one.task for one in pair.there_on if one.task}
        id = f"model.kind.{pair.model.name}"
        if pair.embeds and tasks == {"generate"}:
            fix = f"start a vLLM for it (--runner pooling), or take models.{pair.model.name}.{pair.candidate.name} away"
            yield GROUP.fail(
                id, f"{pair.model.name} embeds, and {pair.candidate.name}'s server of it only generates", fix
            )
        elif not pair.embeds and tasks == {"embed"}:
            fix = f"start a vLLM that generates, or take models.{pair.model.name}.{pair.candidate.name} away"
            yield GROUP.fail(id, f"{pair.model.name} chats, and {pair.candidate.name}'s server of it only embeds", fix)
        elif pair.embeds and pair.model.fallbacks:
            fix = f"take models.{pair.model.name}.fallbacks away: vectors of two models never mix"
            yield GROUP.fail(id, f"{pair.model.name} embeds, and has fallbacks ({listed(pair.model.fallbacks)})", fix)
        elif tasks:
            yield GROUP.ok(id, f"{pair.model.name} {'embeds' if pair.embeds else 'generates'} on both sides")


def verified(facts: Facts) -> Iterator[Check]:
    """By the flags: `--deep` measures anew."""
    proofs = _proofs(facts)
    for pair in pairs(facts):
        if not pair.embeds:
            continue
        proof = proofs.get(pair.model.name)
        id, name = f"model.vectors.{pair.model.name}", pair.model.name
        if proof == (pair.here, pair.there):
            yield GROUP.ok(id, f"{name}: its vectors were verified equal")
        else:
            fix = f"`llmctl embeddings verify {name} --file TEXTS` opens its share"
            yield GROUP.warn(id, f"{name}: not verified, stays on {pair.baseline.name} whatever the share", fix)


def _proofs(facts: Facts) -> Mapping[str, tuple[str, str]]:
    if facts.store is not None:
        flags = facts.store.flags
        return {name: (proof.baseline, proof.candidate) for name, proof in (flags.verified if flags else {}).items()}
    status = facts.gateway.status if facts.gateway else None
    rows = status.embeddings if status else ()
    return {row.model: (row.baseline, row.candidate) for row in rows if row.verified is not None}


def unconfigured(facts: Facts) -> Iterator[Check]:
    """Installed on the baseline, and not in the configuration: they stay, and nobody has said so."""
    settings = facts.settings
    provider = facts.provider(settings.baseline) if settings else None
    if settings is None or provider is None:
        return
    catalogue = settings.catalogue()
    installed = dict.fromkeys(name for one in provider.endpoints for name in one.models or ())
    others = tuple(name for name in installed if catalogue.resolve(name) is None)
    if others:
        stay = f"{provider.name} has {counted(len(others), 'model')} more than the configuration: {listed(others)}"
        yield GROUP.ok("model.unconfigured", f"{stay}; calls for them stay there")


RULES = (on_baseline, on_candidate, context, kind, verified, unconfigured)
