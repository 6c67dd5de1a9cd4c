"""The ASGI application over an open runtime."""

import os
import time

from memos_llm.core.events import ConfigChanged, ConfigRejected, StoreState
from memos_llm.gateway import admin
from memos_llm.gateway.admin_token import admin_token
from memos_llm.gateway.app import App, Own
from memos_llm.gateway.auth import Doorkeeper
from memos_llm.gateway.health import HealthBoard
from memos_llm.gateway.inference import Inference
from memos_llm.gateway.meta import Meta
from memos_llm.gateway.rules import Rulebook
from memos_llm.wiring import STATE_DIR, Runtime


def build_app(runtime: Runtime, health: HealthBoard) -> App:
    """The ASGI application over an open runtime.

    Raises:
        ConfigError: the admin token's file cannot be trusted.
    """
    runtime.bus.subscribe("health", health.on_event, ConfigChanged, ConfigRejected, StoreState)
    health.on_event(runtime.live.store_state)
    meta = Meta(runtime.routes, time.time())
    return App(
        Rulebook(lambda: runtime.settings),
        Doorkeeper(admin_token(os.environ, STATE_DIR.expanduser()), runtime.clock),
        Inference(runtime.engine, runtime.bus, runtime.clock),
        runtime.routes,
        Own(meta, health, runtime.metrics.render, admin.routes(runtime, health.draining)),
        meta,
        runtime.bus,
    )
