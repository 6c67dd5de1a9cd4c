"""What must hold between settings: each check yields (key, what is wrong). `run` reports all of them at once."""

from collections.abc import Iterator
from importlib.metadata import entry_points

from memos_llm.config import schema
from memos_llm.config.document import Document, Key
from memos_llm.config.environment import DEFAULT_PORTS
from memos_llm.config.problems import joined, nearest
from memos_llm.config.urls import canonical_host, identity
from memos_llm.core.catalogue import is_embedding
from memos_llm.core.policy import FOLLOW_SHARE

Problems = Iterator[tuple[Key, str]]

KINDS = ("ollama", "vllm", "litellm")
ENTRY_POINTS = "memos_llm.providers"  # a third party's kinds
ROLES = ("baseline", "candidate")
RESERVED_NAMES = frozenset({FOLLOW_SHARE, *ROLES, "none", *schema.Model.model_fields})
OF_KIND = {"keep_warm": "ollama", "own_loads": "ollama", "native_chat": "ollama", "model_prefix": "litellm"}


def run(root: schema.Root, document: Document) -> None:
    """Raises:
    ConfigError: naming every key that does not fit the others.
    """
    lines = [document.line(key, message) for check in CHECKS for key, message in check(root)]
    if lines:
        raise joined(lines)


def _provider_names(root: schema.Root) -> Problems:
    for name in root.providers:
        key = ("providers", name)
        if name in RESERVED_NAMES:
            yield key, f"is a word of ours; reserved: {', '.join(sorted(RESERVED_NAMES))}"
        elif not all(c.isascii() and (c.isalnum() or c in "-_") for c in name) or not name[0].isalnum():
            yield key, "a provider's name is made of letters, digits, - and _"


def _kinds(root: schema.Root) -> Problems:
    for name, provider in root.providers.items():
        if provider.kind in KINDS:
            continue
        known = [*KINDS, *(entry.name for entry in entry_points(group=ENTRY_POINTS))]
        if provider.kind not in known:
            yield (
                ("providers", name, "kind"),
                f"{provider.kind!r} is not a kind of provider; {nearest(provider.kind, known)}",
            )


def _kind_settings(root: schema.Root) -> Problems:
    for name, provider in root.providers.items():
        for setting, kind in OF_KIND.items():
            given = getattr(provider, setting) != schema.Provider.model_fields[setting].default
            if given and provider.kind in KINDS and provider.kind != kind:
                yield ("providers", name, setting), f"is a setting of the kind {kind}, and {name} is {provider.kind}"


def _addresses(root: schema.Root) -> Problems:
    for name, provider in root.providers.items():
        key = ("providers", name, "base_url")
        if provider.base_url and provider.endpoints:
            yield key, "give base_url (one server) or endpoints (several), not both"
        needed = provider.enabled and provider.kind in DEFAULT_PORTS
        if needed and not provider.base_url and not provider.endpoints:
            yield key, f"is required: where {name} listens, such as http://localhost:{DEFAULT_PORTS[provider.kind]}"


def endpoints(name: str, provider: schema.Provider) -> Iterator[tuple[Key, schema.Endpoint]]:
    """A provider's servers and the keys that name them."""
    if provider.base_url:
        yield ("providers", name, "base_url"), schema.Endpoint(url=provider.base_url)
    for index, endpoint in enumerate(provider.endpoints):
        yield ("providers", name, "endpoints", str(index), "url"), endpoint


def _all_endpoints(root: schema.Root) -> Iterator[tuple[Key, schema.Endpoint]]:
    for name, provider in root.providers.items():
        if provider.enabled:
            yield from endpoints(name, provider)


def _duplicate_endpoints(root: schema.Root) -> Problems:
    seen: dict[tuple[str, int, str], Key] = {}
    for key, endpoint in _all_endpoints(root):
        first = seen.setdefault(identity(endpoint.url), key)
        if first != key:
            yield key, f"{endpoint.url} is already {'.'.join(first)}"


def _own_address(root: schema.Root) -> Problems:
    ours = canonical_host(root.gateway.host), root.gateway.port
    for key, endpoint in _all_endpoints(root):
        if identity(endpoint.url)[:2] == ours:
            yield key, f"{endpoint.url} is our own address (gateway.host, gateway.port): requests would go in circles"


def _roles(root: schema.Root) -> Problems:
    named = [
        (("baseline",), root.baseline),
        (("candidate",), root.candidate),
        (("shadow", "provider"), root.shadow.provider),
    ]
    named += [(("fallback",), name) for name in root.fallback]
    for key, name in named:
        if name is not None and name not in root.providers:
            yield key, f"{name!r} is not a configured provider; {nearest(name, root.providers)}"
    if root.candidate == root.baseline:
        yield ("candidate",), f"is {root.candidate!r}, as the baseline is: they must be two providers"
    if len(set(root.fallback)) != len(root.fallback):
        yield ("fallback",), "names a provider twice"


def _baseline_enabled(root: schema.Root) -> Problems:
    baseline = root.providers.get(root.baseline)
    if baseline is not None and not baseline.enabled:
        yield ("providers", root.baseline, "enabled"), "the baseline cannot be disabled"


def _pins(root: schema.Root) -> Problems:
    choices = [FOLLOW_SHARE, *ROLES, *root.providers]
    for component, value in root.routing.components.items():
        key = ("routing", "components", component)
        if value not in choices:
            yield key, f"{value!r} is neither a role nor a configured provider; {nearest(value, choices)}"
        elif value == "candidate" and root.candidate is None:
            yield key, "there is no candidate configured"


def _rules(root: schema.Root) -> Problems:
    for index, rule in enumerate(root.routing.component_rules):
        if rule.model is None and rule.operation is None:
            yield ("routing", "component_rules", str(index)), "must say model, operation, or both"


def _guarded(root: schema.Root) -> Problems:
    """Limits of what does not exist would never be looked at."""
    fallbacks = (name for entry in root.models.values() for name in entry.fallbacks)
    models = tuple(dict.fromkeys((*root.models, *fallbacks)))
    for kind, given, known in (
        ("providers", root.rollback.providers, tuple(root.providers)),
        ("models", root.rollback.models, models),
    ):
        for name in given:
            if name not in known:
                what = "provider" if kind == "providers" else "model"
                yield ("rollback", kind, name), f"{name!r} is not a configured {what}; {nearest(name, known)}"


def _models(root: schema.Root) -> Problems:
    choices = [*schema.Model.model_fields, *root.providers]
    for model, entry in root.models.items():
        for provider, own in entry.on.items():
            key = ("models", model, provider)
            if provider not in root.providers:
                yield key, f"unknown key: neither a setting nor a configured provider; {nearest(provider, choices)}"
            elif own is None and provider == root.baseline:
                yield key, "the baseline must have every model: give its name there, or leave the key out"
        if model in entry.fallbacks:
            yield ("models", model, "fallbacks"), "a model cannot be its own fallback"
        if entry.fallbacks and is_embedding(model):
            yield ("models", model, "fallbacks"), "an embedding model has none: vectors of two models never mix"


RESERVED_IDS = frozenset({"anonymous", "admin-token"})  # whom the history names where no key was given


def _key_ids(root: schema.Root) -> Problems:
    seen: set[str] = set()
    for index, entry in enumerate(root.gateway.api_keys):
        key = ("gateway", "api_keys", str(index))
        if entry.id in seen:
            yield (*key, "id"), f"{entry.id!r} is there twice"
        if entry.id in RESERVED_IDS or not entry.id.isprintable():
            yield (*key, "id"), f"{entry.id!r} is no name for a key: the history must tell it from our own"
        if entry.sha256 in seen:
            yield (*key, "sha256"), "is there twice: one key has one id and one list of scopes"
        seen |= {entry.id, entry.sha256}


CHECKS = (
    _provider_names,
    _kinds,
    _kind_settings,
    _addresses,
    _duplicate_endpoints,
    _own_address,
    _roles,
    _baseline_enabled,
    _pins,
    _guarded,
    _rules,
    _models,
    _key_ids,
)
