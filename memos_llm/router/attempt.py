"""One try at one target, up to its commit point and past it.

The commit point of a stream is the first content, reasoning or tool-call delta (or a finish without any); of a
non-streaming answer it is the whole, parsed answer. Preamble is held back until then (the codec bounds it). Before the
commit point every failure is an `AttemptFailed` and the chain may go on; after it the failure is the caller's to see.
"""

import asyncio
from collections.abc import Awaitable, Mapping, Sequence

from msgspec.structs import replace

from memos_llm.core.call import Call, Frame, Part, Target, Usage, WireRequest
from memos_llm.core.decision import Offer
from memos_llm.core.errors import AttemptFailed
from memos_llm.core.outcome import Kind, Outcome
from memos_llm.core.ports import Clock, Codec, Decoder, Reply, Transport
from memos_llm.router.buffers import Buffers
from memos_llm.router.chain import Try
from memos_llm.router.idle import IdleWatch

EOF_GRACE_S = 1.0  # for the end of the body once the terminal marker is there; the connection is reused only then
CONTENT, FINISH, END = int(Part.CONTENT), int(Part.FINISH), int(Part.END)
COMMITS = CONTENT | FINISH


class Attempt:
    """One try. Use `commit()` once, then `more()` until it returns an empty frame list, and `aclose()` always."""

    def __init__(
        self,
        call: Call,
        step: Try,
        transport: Transport,
        endpoint: str,
        codec: Codec,
        offer: Offer,
        clock: Clock,
        buffers: Buffers,
        started_at: float,
    ) -> None:
        self.target: Target = step.target
        self.endpoint = endpoint
        self.outcome: Outcome | None = None  # set when its end is told, which happens once
        self.ended_at: float | None = None
        self.warnings: tuple[str, ...] = ()
        self.usage: Usage | None = None
        self.first_content_at: float | None = None
        self.last_content_at: float | None = None
        self.complete = False  # the terminal marker was seen: whatever happens now, the caller has a whole answer
        self._finished = False
        self._eof = False
        self._call, self._step, self._transport, self._clock = call, step, transport, clock
        self._codec, self._offer = codec, offer
        self.started_at = started_at
        self._reply: Reply | None = None
        self._to_come: list[WireRequest] = []  # of a call that was taken apart
        self._between: list[Frame] = []  # what ended an answer of such a call, to be delivered with the next bytes
        self._decoder: Decoder | None = None
        self._idle: IdleWatch | None = None
        self._rest_until: float | None = None
        self._buffers, self._held_bytes = buffers, 0
        self._committed = False

    async def commit(self, request_id: str) -> list[Frame]:
        """The frames up to the commit point.

        Raises:
            AttemptFailed: anything that ended the attempt before it, a passed limit (`timeout`) among them.
        """
        limit = IdleWatch(self._step.until - self._clock())
        try:
            frames = await limit.read(lambda: self._until_committed(request_id))
        except TimeoutError:
            raise AttemptFailed(Outcome(kind=Kind.TIMEOUT, code=self._step.limit)) from None
        finally:
            limit.close()
        if self._reply is not None:
            self._reply.committed()
        self._committed = True
        return frames

    async def more(self, idle_s: float) -> Sequence[Frame]:
        """The frames of the next read; empty once the answer is complete.

        Raises:
            AttemptFailed: the back end broke off, sent an error event, or was silent for `idle_s`.
        """
        while not self._eof:
            try:
                frames = await self._rest() if self.complete else await self._next(idle_s)
            except TimeoutError:
                raise AttemptFailed(Outcome(kind=Kind.TIMEOUT, code="idle")) from None
            if frames:
                return frames
        return ()

    @property
    def status(self) -> int:
        return 200 if self._reply is None else self._reply.status

    @property
    def headers(self) -> Mapping[str, str]:
        """The back end's."""
        return {} if self._reply is None else self._reply.headers

    def silent(self) -> bool:
        """Whether its endpoint has given nobody any content since it began."""
        return self._transport.content_at(self.endpoint) < self.started_at

    def pass_on(self) -> None:
        """Its unfinished answer goes to the caller as it is."""
        self.warnings = (*self.warnings, "passed-on:unfinished")
        self._eof = True

    def end(self, now: float) -> None:
        """The attempt's time is over, whenever its end is told."""
        if self.ended_at is None:
            self.ended_at = now

    async def aclose(self) -> None:
        """Ends the attempt; before the end of the answer that aborts it upstream."""
        self._free()
        if self._idle is not None:
            self._idle.close()
        if self._reply is not None:
            await self._reply.aclose()

    async def _until_committed(self, request_id: str) -> list[Frame]:
        if not self._offer.known:
            await self._acquaint()
        request, self.warnings = self._codec.request(self._call, self.target, self._offer)
        request = replace(request, id=request_id, endpoint=self.endpoint)
        if request.more:
            further = enumerate(request.more, 2)
            self._to_come = [replace(request, body=body, more=(), id=f"{request_id}.{n}") for n, body in further]
        self._decoder = self._codec.decoder(self._call, self.target)
        await self._send(request)
        held: list[Frame] = []
        while not self._eof:
            frames = self._decoded(await self._read())
            if not frames:
                continue
            held += frames
            if any(frame.parts & COMMITS for frame in frames):
                break
        return held

    async def _acquaint(self) -> None:
        """Its context and its release decide what is sent; and of several endpoints about which nothing was known, one
        that does not have the model would refuse it, and its twin beside it has it.
        """
        transport, model = self._transport, self.target.model
        if self._call.passage is not None and not (model and len(transport.serving(model)) > 1):
            return
        self._offer = await transport.acquaint(model)
        if self.endpoint not in transport.serving(model):
            self.endpoint = transport.pick(model)

    async def _send(self, request: WireRequest) -> None:
        try:
            self._reply = await self._transport.open(request)
            self.endpoint = self._reply.endpoint  # who answers is judged, not who was meant to
        except AttemptFailed as error:
            if request.wire is not self._call.wire:  # an error body of another wire is nothing for this caller
                error.client_body = b""
            raise

    async def _next(self, idle_s: float) -> Sequence[Frame]:
        if self._idle is None:
            self._idle = IdleWatch(idle_s)
        try:
            chunk = await self._idle.read(self._read)
        except (TimeoutError, AttemptFailed):
            if not self._finished:
                raise
            chunk = b""  # the finish was delivered: whether the answer is whole is the decoder's to say
        return self._decoded(chunk)

    async def _rest(self) -> Sequence[Frame]:
        """Nothing after the terminal marker can hurt a whole answer: wait a moment for the end of the body, once."""
        if self._rest_until is None:
            self._rest_until = asyncio.get_running_loop().time() + EOF_GRACE_S
        try:
            async with asyncio.timeout_at(self._rest_until):
                return self._decoded(await self._read())
        except (TimeoutError, AttemptFailed):
            self._eof = True
            return ()

    def _read(self) -> Awaitable[bytes]:
        """Waits for nothing where the answer is known to have broken."""
        assert self._reply is not None
        assert self._decoder is not None
        if (failure := self._decoder.failure) is not None:
            raise failure
        return self._reply.read() if not self._to_come else self._read_on()

    async def _read_on(self) -> bytes:
        """The next bytes of a call that was taken apart: where one answer ends, the next request is sent."""
        assert self._reply is not None
        while not (chunk := await self._reply.read()) and self._to_come:
            self._between = [*self._between, *self._decoder_eof()]
            await self._reply.aclose()
            await self._send(self._to_come.pop(0))
            if self.first_content_at is not None:
                self._reply.committed()
        return chunk

    def _decoder_eof(self) -> Sequence[Frame]:
        assert self._decoder is not None
        return self._decoder.eof()

    def _decoded(self, chunk: bytes) -> Sequence[Frame]:
        assert self._decoder is not None
        if chunk:
            frames = self._decoder.feed(chunk)
            if not self.complete:  # else it is left out
                self._hold(chunk, frames)
        else:
            frames = self._decoder_eof()
            self._eof = self.complete = True
        if self._between:
            frames, self._between = [*self._between, *frames], []
        for frame in frames:
            self._note(frame)
        return frames

    def _hold(self, chunk: bytes, frames: Sequence[Frame]) -> None:
        """Until its answer is committed all of it is kept, afterwards what no event was made of yet."""
        if not (self._committed and frames):
            self._held_bytes = self._buffers.hold(len(chunk), self._held_bytes)
        elif self._held_bytes:
            self._free()

    def _free(self) -> None:
        self._buffers.free(self._held_bytes)
        self._held_bytes = 0

    def _note(self, frame: Frame) -> None:
        if frame.parts & CONTENT:
            self.last_content_at = self._clock()
            if self.first_content_at is None:
                self.first_content_at = self.last_content_at
        if frame.parts & FINISH:
            self._finished = True
        if frame.parts & END:
            self.complete = True
        if frame.usage is not None:
            self.usage = frame.usage
