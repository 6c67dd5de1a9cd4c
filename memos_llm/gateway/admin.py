"""The admin API, `/admin/v1/…`: the control plane's verbs over HTTP, as JSON."""

from starlette.routing import BaseRoute

from memos_llm.wiring import Runtime


def routes(runtime: Runtime) -> list[BaseRoute]:
    """Every route under `/admin/v1`."""
    return []
