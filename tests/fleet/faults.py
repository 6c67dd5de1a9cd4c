"""The whole table: what a candidate can do wrong, and what must come of it by the default rules.

Where several triggers would be right it depends on the traffic which is first, and all of them are named.
"""

from fleet.fleet import LLAMA, QWEN
from fleet.proving import Fault

RUN = ("error_run",)
ERRORS = ("error_run", "error_rate")
SLOWNESS = ("latency_run", "latency_p95")
OF_QWEN = ("synthesis", "analysis", "agent")

TABLE = [
    Fault(name="bursts of 500s, 1 s on, 1 s off", spec="status:code=500,every_s=1", triggers=RUN),
    Fault(name="10 % are 500s", spec="status:code=500,rate=0.1", triggers=ERRORS, by_chance=True),
    Fault(name="refused", spec="refuse", triggers=("error_run", "health")),
    Fault(name="refused, little traffic", spec="refuse", triggers=("health",), rate_then=0.5),
    Fault(name="cut before content", spec="cut_before_content:rate=0.6", triggers=RUN),
    Fault(name="cut in midstream", spec="cut_mid_stream:rate=0.6", triggers=RUN),
    Fault(name="malformed from the start", spec="malformed:rate=0.6,after=0", triggers=RUN),
    Fault(name="malformed in midstream", spec="malformed:rate=0.6", triggers=RUN),
    Fault(name="401", spec="status:code=401", triggers=RUN),
    Fault(name="model missing", spec="model_missing", triggers=RUN),
    Fault(name="503, the queue is full", spec="queue_full", triggers=RUN),
    Fault(name="400 for tools: no --enable-auto-tool-choice", spec="no_auto_tools", triggers=ERRORS, scope=("agent",)),
    Fault(name="one model fails", spec="status:code=500,rate=0.6", models=(LLAMA,), triggers=ERRORS,
          scope=("classification",)),
    Fault(name="the other model fails", spec="status:code=500,rate=0.6", models=(QWEN,), triggers=ERRORS,
          scope=OF_QWEN),
    Fault(name="flapping, 10 s on, 10 s off", spec="status:code=500,every_s=10", triggers=RUN),
    Fault(name="flapping, with no limit on errors", spec="status:code=500,every_s=10", triggers=("breaker_open",),
          rules={"error_rate": None}),
    Fault(name="drift, 1 s slower each second", spec="drift:seconds=60", triggers=SLOWNESS),
    Fault(name="hangs, /health is well, clients leave after 10 s", spec="hang_engine",
          triggers=("timeouts", "latency_run", "health"), patience_s=10.0),
]  # fmt: skip
