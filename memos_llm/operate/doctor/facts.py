"""What was found, as plain data: what the rules read. Filled by `look` and `deep`; a test writes its own."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from msgspec import Struct

from memos_llm.core.flags import Flags
from memos_llm.core.ports import Instance
from memos_llm.operate.documents import Status, WindowState
from memos_llm.operate.vectors import Comparison

if TYPE_CHECKING:
    from memos_llm.config import Settings


class ConfigFacts(Struct, frozen=True, kw_only=True):
    """The configuration.

    Attributes:
        file: None when there is none: then the built-in defaults are in force.
        errors: one for each thing that is wrong; then there are no settings.
        aliases: name of the migration report as it is spelt → the setting that it is.
        pending: settings that are given and not in force. exposed: why `serve` would refuse to listen; empty: nothing.
    """

    file: str | None = None
    errors: tuple[str, ...] = ()
    aliases: Mapping[str, str] = {}
    pending: tuple[str, ...] = ()
    exposed: str = ""


class StoreFacts(Struct, frozen=True, kw_only=True):
    """The store, as it looks from this process.

    Attributes:
        shown: its URL without a password. kind: sqlite, memory, …
        path: of the file, empty for other kinds. exists: it is there. mode, directory_mode: permission bits, or None.
        file_system: its type, empty when not known.
        error: why it cannot be read; write_error: why it cannot be written. Empty: it can.
        flags: None when it is new. known: the last good flags of this host, of revision 0 when there are none.
        regressed: why `flags` cannot follow `known`; empty: they can.
        windows: both arms against their limits, as the store's counts have them.
    """

    shown: str
    kind: str
    path: str = ""
    exists: bool = True
    directory_writable: bool = True
    mode: int | None = None
    directory_mode: int | None = None
    file_system: str = ""
    error: str = ""
    write_error: str = ""
    flags: Flags | None = None
    instances: tuple[Instance, ...] = ()
    known_revision: int = 0
    regressed: str = ""
    windows: tuple[WindowState, ...] = ()


class Loaded(Struct, frozen=True, kw_only=True):
    """One row of Ollama's `/api/ps`: bytes, of which `size_vram` are on a GPU."""

    model: str
    size: int = 0
    size_vram: int = 0
    context_tokens: int | None = None
    left_s: float = 0.0


class Shown(Struct, frozen=True, kw_only=True):
    """What Ollama's `/api/show` says of a model. `num_ctx` is the Modelfile's."""

    capabilities: tuple[str, ...] = ()
    trained_tokens: int | None = None
    num_ctx: int | None = None


class Load(Struct, frozen=True, kw_only=True):
    """How busy a vLLM is, by its `/metrics`: requests, and the part of the KV cache in use (0…1)."""

    running: float = 0.0
    waiting: float = 0.0
    kv_cache: float | None = None
    asleep: bool = False


class EndpointFacts(Struct, frozen=True, kw_only=True):
    """One server.

    Attributes:
        models: what it says that it serves, None when it did not say; `configured` what the file says.
        models_status: the status with which it refused to say, 0 for none (it said, or did not answer); 200 when it
            answered something else than a list of models.
        models_fault: why it did not say, in a word.
        contexts: vLLM: the longest context of each model. task: vLLM: generate, embed, or empty for not known.
        load: vLLM: None when it did not say. loaded: Ollama: None when it did not say.
        shown: Ollama: by the model's own name; those that are mapped or configured.
    """

    url: str
    up: bool
    detail: str = ""
    version: str = ""
    latency_s: float = 0.0
    models: tuple[str, ...] | None = None
    configured: tuple[str, ...] = ()
    models_status: int = 0
    models_fault: str = ""
    contexts: Mapping[str, int] = {}
    task: str = ""
    load: Load | None = None
    loaded: tuple[Loaded, ...] | None = None
    shown: Mapping[str, Shown] = {}


class ProviderFacts(Struct, frozen=True, kw_only=True):
    """One enabled provider; `local`: all of its servers are on this machine. Kinds that are not HTTP have none."""

    name: str
    kind: str
    has_key: bool
    endpoints: tuple[EndpointFacts, ...]
    local: bool = False


class Talk(Struct, frozen=True, kw_only=True):
    """How one small request of `--deep` ended on one side.

    Attributes:
        status: HTTP, 0 for none. fault: why there is no answer, in words without the prompt; empty: there is one.
        first_s: to the first content.
    """

    fault: str = ""
    status: int = 0
    first_s: float | None = None
    text: str = ""
    reasoning: bool = False
    tool_calls: bool = False
    finish_reason: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None


class DeepFacts(Struct, frozen=True, kw_only=True):
    """What `--deep` found of one model. Keys are providers; `vectors` is None when it embeds nothing, or failed."""

    chats: Mapping[str, Talk] = {}
    tools: Talk | None = None
    schema: Talk | None = None
    vectors: Comparison | None = None
    vectors_fault: str = ""


class GatewayFacts(Struct, frozen=True, kw_only=True):
    """What a gateway says of itself: its health document, its status, or why there is none."""

    url: str
    health: str = ""
    ready: bool | None = None
    status: Status | None = None
    fault: str = ""


class Facts(Struct, frozen=True, kw_only=True):
    """Everything. `now` and `at` are Unix seconds.

    Attributes:
        settings: None when the configuration is wrong, or when there is none on this side of a gateway.
        store: None when it was not looked at: `gateway` speaks for its own.
        gpus: as `/api/v1/models/gpu/status` lists them.
        wanted_ppm: the share of `--for`.
        deep: whether generations were asked for; `talks`: by the model's logical name.
        webhooks: with `deep`: host → why it cannot be reached, empty when it can.
    """

    at: float
    version: str
    config: ConfigFacts = ConfigFacts()
    settings: "Settings | None" = None
    store: StoreFacts | None = None
    providers: tuple[ProviderFacts, ...] = ()
    gpus: tuple[Mapping[str, object], ...] = ()
    gateway: GatewayFacts | None = None
    wanted_ppm: int | None = None
    deep: bool = False
    talks: Mapping[str, DeepFacts] = {}
    webhooks: Mapping[str, str] = {}

    def provider(self, name: str | None) -> ProviderFacts | None:
        return next((one for one in self.providers if one.name == name), None)
