"""The driver: decide, run the chain to the commit point, hand out the answer.

Nothing here knows a dialect: errors are raised and the edge renders them.
"""

import time
from collections.abc import Callable

from memos_llm.core.call import Call, Target
from memos_llm.core.decision import Decision, Offer
from memos_llm.core.errors import LLMError
from memos_llm.core.events import Bus, KeyConcentrated
from memos_llm.core.flags import Flags
from memos_llm.core.policy import Policy
from memos_llm.core.ports import Clock, Codecs, LiveFlags, Routes
from memos_llm.router import split
from memos_llm.router.answer import Answer
from memos_llm.router.buffers import Buffers
from memos_llm.router.chain import RetryBudget
from memos_llm.router.concentration import Concentration
from memos_llm.router.decide import NOBODY, Chains, decide
from memos_llm.router.run import CANCELLED, Run

WATCH_EVERY = 8  # a key that carries a fifth of the traffic shows in a part of it, too


class Engine:
    """Runs calls. One per process; `routes` are read once per call, so that a reload never splits one.

    Args:
        wall: Unix seconds, for maintenance, which ends by itself.
    """

    def __init__(
        self,
        *,
        routes: Callable[[], Routes],
        live: LiveFlags,
        codecs: Codecs,
        bus: Bus,
        clock: Clock,
        wall: Clock = time.time,
    ) -> None:
        self.routes, self.live, self.codecs, self.bus, self.clock = routes, live, codecs, bus, clock
        self._wall = wall
        self.budget, self.buffers = RetryBudget(), Buffers()
        self._concentration = Concentration()
        self._requests = 0
        self._chains_of: Policy | None = None
        self._chains: Chains = {}

    def decide(self, call: Call) -> Decision:
        """The decision for a call, nothing sent.

        Raises:
            NotOffered: no provider can do what it asks for.
        """
        return self._decide(call, self.live.current(), self.routes())

    async def open(self, call: Call) -> Answer:
        """Run the chain to the commit point. The answer must be read to its end or closed.

        Raises:
            LLMError: no target answered, or the request itself was refused.
        """
        flags, routes = self.live.current(), self.routes()
        decision = self._decide(call, flags, routes)
        self._requests += 1
        if routes.policy.candidate is not None and self._requests % WATCH_EVERY == 0:
            self._watch(call, flags)
        run = Run(call, decision, routes, self.codecs, self.bus, self.clock, self.budget, self.buffers)
        try:
            return Answer(run, *await run.commit())
        except BaseException as error:  # raised again: every request that started is told to have ended
            run.end(run.failed if isinstance(error, LLMError) else CANCELLED)
            raise

    def _decide(self, call: Call, flags: Flags, routes: Routes) -> Decision:
        policy, transports = routes
        if policy is not self._chains_of:
            self._chains_of, self._chains = policy, {}

        def offer(target: Target) -> Offer | None:
            transport = transports.get(target.provider)
            return None if transport is None else transport.offer(target.model)

        drained = flags.maintained(self._wall()) if flags.maintenance else NOBODY
        return decide(call, flags, policy, offer, self._carries, self._chains, drained=drained)

    def _watch(self, call: Call, flags: Flags) -> None:
        fingerprint = split.fingerprint(flags.salt, call.key)
        share = self._concentration.note(fingerprint, call.accepted_at)
        if share is not None:
            self.bus.emit(KeyConcentrated(fingerprint=fingerprint, share=share))

    def _carries(self, call: Call, offer: Offer) -> bool:
        return self.codecs.find(call, offer) is not None
