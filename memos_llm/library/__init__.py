"""The engine in process: `Router` for asyncio, `SyncRouter` for everything else.

The same decisions as in the gateway, from the same flags. Calls are made in OpenAI's words and travel on whatever wire
of the back end carries most of them; `component` names the pipeline stage and `session` the conversation that must not
change arms.
"""

from memos_llm.library.calls import CallOptions, Place
from memos_llm.library.router import BoundRouter, Router
from memos_llm.library.sync import SyncRouter

__all__ = ["BoundRouter", "CallOptions", "Place", "Router", "SyncRouter"]
