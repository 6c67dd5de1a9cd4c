"""Which right a route wants: one table over methods and paths.

Everything under `/api/` and `/v1/` that is not named here is inference: the back end that we come from decides what it
is. What changes a back end's models, or speaks for its owner in the cloud, takes an administrator.
"""

from memos_llm.gateway import console
from memos_llm.gateway.principal import Right

PROBED = frozenset({"/health", "/ready"})
"""Load balancers ask these by address, with whatever `Host`."""

OPEN = PROBED | {"/", "/api/v1/health/quick", "/api/v1/system/health/aggregate"} | console.PATHS
"""For everyone: whether the gateway lives, and a page without anything in it. (Ollama's own client asks `/` and cannot
be given a key, nor can a browser that is given an address.)"""

MANAGEMENT = (
    "/api/pull",
    "/api/push",
    "/api/create",
    "/api/copy",
    "/api/delete",
    "/api/blobs",
    "/api/me",
    "/api/signin",
    "/api/signout",
    "/api/user",
    "/api/experimental",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
)
"""Ollama's and vLLM's routes, whatever follows them."""

PULL = "/api/pull"
"""Asks by itself: of a known name it does nothing, of another it takes an administrator."""


def right_for(method: str, path: str) -> Right | None:
    """The right that a route wants; None where it asks by itself (pull, the admin API) or is `OPEN`."""
    if path in OPEN or (path == PULL and method == "POST"):
        return None
    if path.startswith(("/api/", "/v1/")):
        return Right.ADMIN if is_management(method, path) else Right.INFERENCE
    if path == "/metrics":
        return Right.METRICS
    return None if path.startswith("/admin/") else Right.INFERENCE


def is_management(method: str, path: str) -> bool:
    if method == "DELETE":  # of models, files, stored answers
        return True
    return path.startswith(MANAGEMENT) and any(path == each or path.startswith(f"{each}/") for each in MANAGEMENT)
