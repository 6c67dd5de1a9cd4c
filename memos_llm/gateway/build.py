"""The ASGI application over an open runtime."""

import time

from memos_llm.gateway.app import App
from memos_llm.gateway.health import HealthBoard
from memos_llm.gateway.inference import Inference
from memos_llm.gateway.meta import Meta
from memos_llm.wiring import Runtime


def build_app(runtime: Runtime, health: HealthBoard) -> App:
    """The ASGI application over an open runtime."""
    gateway = runtime.settings.gateway
    inference = Inference(
        runtime.engine,
        runtime.policy,
        runtime.bus,
        runtime.clock,
        max_concurrency=gateway.max_concurrency,
        max_body_bytes=gateway.max_body_bytes,
        body_timeout_s=gateway.body_timeout_s,
    )
    meta = Meta(runtime.policy, lambda: runtime.transports[runtime.policy().baseline], time.time())
    return App(inference, meta, health, runtime.metrics.render)
