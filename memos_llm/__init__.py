"""Move LLM traffic between providers without breaking the agents that depend on it.

The public names load on first use, so that `import memos_llm` costs next to nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from memos_llm.core.version import VERSION

if TYPE_CHECKING:
    from memos_llm.core.call import Usage
    from memos_llm.core.errors import (
        BadRequest,
        ConfigError,
        ControlError,
        EmbeddingServiceError,
        Forbidden,
        InvalidResponse,
        LLMError,
        ModelNotFound,
        NotOffered,
        Overloaded,
        Refused,
        StoreUnreachable,
        StreamBroken,
        Timeout,
        Unauthorized,
        Unavailable,
    )
    from memos_llm.core.policy import ProviderSpec
    from memos_llm.core.ports import LLMProvider
    from memos_llm.core.responses import EmbeddingResponse, LLMResponse, Options, StreamChunk, ToolCall
    from memos_llm.library import Router, SyncRouter
    from memos_llm.providers.litellm import LiteLLMProvider
    from memos_llm.providers.typed import OllamaProvider, VllmProvider

__version__ = VERSION

_HOMES = {
    "memos_llm.core.errors": (
        "BadRequest",
        "ConfigError",
        "ControlError",
        "EmbeddingServiceError",
        "Forbidden",
        "InvalidResponse",
        "LLMError",
        "ModelNotFound",
        "NotOffered",
        "Overloaded",
        "Refused",
        "StoreUnreachable",
        "StreamBroken",
        "Timeout",
        "Unauthorized",
        "Unavailable",
    ),
    "memos_llm.core.call": ("Usage",),
    "memos_llm.core.policy": ("ProviderSpec",),
    "memos_llm.core.ports": ("LLMProvider",),
    "memos_llm.core.responses": ("EmbeddingResponse", "LLMResponse", "Options", "StreamChunk", "ToolCall"),
    "memos_llm.library": ("Router", "SyncRouter"),
    "memos_llm.providers.litellm": ("LiteLLMProvider",),
    "memos_llm.providers.typed": ("OllamaProvider", "VllmProvider"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "BadRequest",
    "ConfigError",
    "ControlError",
    "EmbeddingResponse",
    "EmbeddingServiceError",
    "Forbidden",
    "InvalidResponse",
    "LLMError",
    "LLMProvider",
    "LLMResponse",
    "LiteLLMProvider",
    "ModelNotFound",
    "NotOffered",
    "OllamaProvider",
    "Options",
    "Overloaded",
    "ProviderSpec",
    "Refused",
    "Router",
    "StoreUnreachable",
    "StreamBroken",
    "StreamChunk",
    "SyncRouter",
    "Timeout",
    "ToolCall",
    "Unauthorized",
    "Unavailable",
    "Usage",
    "VllmProvider",
    "__version__",
]


if not TYPE_CHECKING:  # a type checker would take any name for one of ours

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module 'memos_llm' has no attribute {name!r}")
        return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
