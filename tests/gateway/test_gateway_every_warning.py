"""Every warning that the code can give, read from `x-memos-warnings` as a caller does: its token, and no other.

One gateway before both emulators. Each case is a request at the share at which its back end answers; a new warning
without a case fails.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from stack import ME, document, open_gateway, settings

from memos_llm.core.commands import Shift, Verify
from memos_llm.core.flags import EMBEDDING, GLOBAL, PPM, Verification
from memos_llm.dialects.codecs import report
from memos_llm.emulators import OllamaEmulator, VllmEmulator
from memos_llm.wiring import Runtime

CHAT, TEXT, VECTORS = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
NATIVE, GENERATE = "/api/chat", "/api/generate"
CONTEXT = 4096  # tokens, of vLLM's models
PINS = {"synthesis": "native", "analysis": "filler"}
PREFIX = {"ollama": "", "vllm": "", "native": "/c/synthesis", "filler": "/c/analysis"}
USER = [{"role": "user", "content": "hi"}]
TOOLS = [{"type": "function", "function": {"name": "f"}}]
MODELS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"vllm": "org/plain", "filler": "fim"},
    "switched": {"vllm": {"name": "org/switched", "thinking": "enable_thinking"}},
    "other-switch": {"vllm": {"name": "org/other-switch", "thinking": "thinking"}},
    "filled": {"vllm": "org/filled", "defaults": {"temperature": 0.8}},
    "embedder": {"vllm": "org/embedder"},
    "unproven": {"vllm": "org/unproven"},
    "only-there": {"vllm": "org/only-there"},
}
ONLY_VLLMS = "only-there"
EMBEDDERS = ["embedder", "unproven"]
BASE: Mapping[str, dict[str, Any]] = {
    CHAT: {"model": "plain", "messages": USER},
    NATIVE: {"model": "plain", "messages": USER},
    TEXT: {"model": "plain", "prompt": "p"},
    GENERATE: {"model": "plain", "prompt": "p"},
    VECTORS: {"model": "embedder", "input": "x"},
    "/api/embeddings": {"model": "embedder", "prompt": "x"},
}


class Case(NamedTuple):
    """A request, the provider that answers it, what is told beside its own token, and what Ollama suffers."""

    provider: str
    path: str
    body: Mapping[str, Any]
    besides: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()


def ollama(path: str = CHAT, **body: Any) -> Case:
    return Case("ollama", path, body)


def vectors(**body: Any) -> Case:
    """Of Ollama: the model's vectors on vLLM are not proven."""
    return ollama(VECTORS, model="unproven", **body)


def vllm(path: str = NATIVE, *besides: str, **body: Any) -> Case:
    return Case("vllm", path, body, besides)


def text(**body: Any) -> Case:
    """Of vLLM, which takes a prompt as it is."""
    return vllm(TEXT, "approximated:prompt", **body)


def option(name: str, value: Any) -> Case:
    return vllm(options={name: value})


CASES: Mapping[str, Case] = {
    "approximated:embedding": vllm("/api/embeddings"),
    "approximated:format": vllm(format={"type": "object"}),
    "approximated:frequency_penalty": option("frequency_penalty", 1),
    "approximated:min_p": option("min_p", 2),
    "approximated:num_predict": option("num_predict", CONTEXT + 1),
    "approximated:presence_penalty": option("presence_penalty", 1),
    "approximated:prompt": vllm(TEXT, max_tokens=5),
    "approximated:repeat_penalty": option("repeat_penalty", 1.1),
    "approximated:repetition_penalty": Case("native", CHAT, {"repetition_penalty": 1.1}),
    "approximated:temperature": option("temperature", 3),
    "approximated:think": vllm(model="switched", think="low"),
    "approximated:top_p": option("top_p", 0),
    "dropped:add_generation_prompt": ollama(add_generation_prompt=False),
    "dropped:allowed_token_ids": ollama(allowed_token_ids=[1]),
    "dropped:bad_words": ollama(bad_words=["x"]),
    "dropped:best_of": ollama(TEXT, best_of=2),
    "dropped:chat_template": ollama(chat_template="x"),
    "dropped:chat_template_kwargs": ollama(chat_template_kwargs={"enable_thinking": False}),
    "dropped:continue_final_message": ollama(continue_final_message=True),
    "dropped:documents": ollama(documents=[{}]),
    "dropped:echo": ollama(TEXT, echo=True),
    "dropped:format": ollama(format="json"),
    "dropped:function_call": ollama(function_call={"name": "f"}),
    "dropped:functions": ollama(functions=[{}]),
    "dropped:guided_choice": vllm(CHAT, guided_choice=["a"]),
    "dropped:guided_grammar": vllm(CHAT, guided_grammar="a"),
    "dropped:guided_json": ollama(guided_json={"type": "object"}),
    "dropped:guided_regex": ollama(TEXT, guided_regex="a"),
    "dropped:ignore_eos": ollama(ignore_eos=True),
    "dropped:images": vllm(GENERATE, raw=True, images=["aaaa"]),
    "dropped:include_reasoning": ollama(include_reasoning=False),
    "dropped:include_stop_str_in_output": ollama(include_stop_str_in_output=True),
    "dropped:keep_alive": ollama(keep_alive=0),
    "dropped:length_penalty": ollama(length_penalty=2),
    "dropped:logit_bias": ollama(logit_bias={"1": 1}),
    "dropped:logprobs": ollama(TEXT, logprobs=1),
    "dropped:messages": vectors(messages=USER),
    "dropped:min_p": ollama(min_p=0.1),
    "dropped:min_tokens": ollama(min_tokens=3),
    "dropped:mirostat": option("mirostat", 1),
    "dropped:mirostat_eta": option("mirostat_eta", 1),
    "dropped:mirostat_tau": option("mirostat_tau", 1),
    "dropped:modalities": ollama(modalities=["text", "audio"]),
    "dropped:n": ollama(n=2),
    "dropped:num_ctx": option("num_ctx", CONTEXT + 1),
    "dropped:num_keep": option("num_keep", 9),
    "dropped:options": ollama(options={"num_ctx": 5}),
    "dropped:parallel_tool_calls": ollama(tools=TOOLS, parallel_tool_calls=False),
    "dropped:penalize_newline": option("penalize_newline", True),
    "dropped:prompt_logprobs": ollama(prompt_logprobs=1),
    "dropped:reasoning": vllm(CHAT, reasoning={"effort": "none"}),
    "dropped:reasoning_effort": vllm(CHAT, model="other-switch", reasoning_effort="none"),
    "dropped:repeat_last_n": option("repeat_last_n", 9),
    "dropped:repeat_penalty": option("repeat_penalty", -1),
    "dropped:repetition_penalty": ollama(repetition_penalty=1.1),
    "dropped:response_format": ollama(response_format={"type": "structural_tag"}),
    "dropped:shift": vllm(shift=False),
    "dropped:skip_special_tokens": ollama(skip_special_tokens=False),
    "dropped:stop_token_ids": ollama(stop_token_ids=[1]),
    "dropped:structured_outputs": ollama(structured_outputs={"json": {}}),
    "dropped:system": Case(
        "filler", GENERATE, {"suffix": "x", "system": "s", "stream": False}, ("estimated:eval_duration",)
    ),
    "dropped:tfs_z": option("tfs_z", 0.5),
    "dropped:think": vllm(think=True),
    "dropped:thinking_token_budget": ollama(thinking_token_budget=5),
    "dropped:tool_choice": ollama(tools=TOOLS, tool_choice="none"),
    "dropped:top_k": ollama(top_k=4),
    "dropped:top_logprobs": vllm(top_logprobs=2),
    "dropped:truncate": vllm(truncate=False),
    "dropped:truncate_prompt_tokens": vectors(truncate_prompt_tokens=5),
    "dropped:typical_p": option("typical_p", 0.5),
    "dropped:use_activation": vectors(use_activation=False),
    "dropped:use_beam_search": ollama(use_beam_search=True),
    "estimated:eval_duration": vllm(stream=False),
    "ignored:keep_alive": vllm(GENERATE, model=ONLY_VLLMS, prompt="", keep_alive=0),
    "passed-on:unfinished": Case("ollama", NATIVE, {"stream": False}, faults=("eof_without_done",)),
    "repaired:defaults": vllm(CHAT, model="filled"),
    "repaired:dimensions": vllm(VECTORS, dimensions=5),
    "repaired:encoding_format": vllm(VECTORS, encoding_format=None),
    "repaired:max_completion_tokens": ollama(max_completion_tokens=5),
    "repaired:max_tokens": text(),
    "repaired:prompt": ollama(TEXT, prompt=["a", "b"]),
    "repaired:tools": vllm(CHAT, tools=[]),
    "repaired:truncate_prompt_tokens": vllm(VECTORS, input="x" * 5000),
}
SILENT: Mapping[str, Case] = {
    **{f"ollama {path}": ollama(path) for path in BASE},
    **{f"vllm {path}": vllm(path) for path in (CHAT, NATIVE, GENERATE, VECTORS)},
    "native": Case("native", CHAT, {"top_k": 4, "options": {"num_ctx": 9}}),
    "what both read": vllm(options={"temperature": 0.5, "top_k": 4, "seed": 1, "num_ctx": CONTEXT, "num_gpu": 1}),
}
"""Nothing is lost, and so nothing is told."""


class Site(NamedTuple):
    """A gateway, and the emulators behind it."""

    runtime: Runtime
    client: httpx.AsyncClient
    ollama: OllamaEmulator
    vllm: VllmEmulator

    async def shift(self, share: float) -> None:
        for scope in (GLOBAL, EMBEDDING):
            await self.runtime.live.submit(Shift(provider="vllm", share_ppm=round(share * PPM), scope=scope), ME)

    async def told(self, case: Case) -> list[str]:
        """What the caller is told; fails unless the answer is whole and the case's provider gave it."""
        self.ollama.faults.set(*case.faults)
        body = {**BASE[case.path], **case.body}
        response = await self.client.post(f"{PREFIX[case.provider]}{case.path}", json=body)
        assert response.status_code == 200, response.text
        assert response.headers["x-memos-provider"] == case.provider, (case, response.text)
        return sorted(response.headers.get("x-memos-warnings", "").split(", "))


FILLED = (
    b'{"id":"cmpl-1","object":"text_completion","created":1,"model":"plain","choices":[{"index":0,"text":"x",'
    b'"finish_reason":"stop"}],"usage":{"prompt_tokens":1,"completion_tokens":1,"total_tokens":2}}'
)


async def fill_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A vLLM whose model takes a `suffix`, as few do: the emulated one refuses any."""
    head = await reader.readuntil(b"\r\n\r\n")
    await reader.readexactly(int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0]))
    writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/json\r\n")
    writer.write(b"content-length: %d\r\n\r\n%s" % (len(FILLED), FILLED))
    writer.close()


@asynccontextmanager
async def before_both(folder: Path) -> AsyncIterator[Site]:
    """A gateway at share 0, before an Ollama, another that is asked by its native wire, and vLLM's two servers."""
    texts, embedders = (
        [f"org/{name}" for name in MODELS if name not in EMBEDDERS],
        [f"org/{name}" for name in EMBEDDERS],
    )
    async with AsyncExitStack() as open_:
        enter = open_.enter_async_context
        ollama, other = [await enter(OllamaEmulator(port=0, models=MODELS.keys() - {ONLY_VLLMS})) for _ in range(2)]
        vllm = await enter(VllmEmulator(port=0, models=texts, max_model_len=CONTEXT, thinking=False))
        vectors = await enter(VllmEmulator(port=0, models=embedders, max_model_len=CONTEXT, task="embed"))
        config = document(ollama.url, "", folder, models=MODELS, routing={"components": PINS})
        config["providers"]["vllm"] = {"kind": "vllm", "endpoints": [{"url": vllm.url}, {"url": vectors.url}]}
        config["providers"]["native"] = {"kind": "ollama", "base_url": other.url, "native_chat": True}
        filler = await enter(await asyncio.start_server(fill_in, "127.0.0.1", 0))
        config["providers"]["filler"] = {
            "kind": "vllm",
            "base_url": f"http://127.0.0.1:{filler.sockets[0].getsockname()[1]}",
        }
        runtime, _, url = await enter(open_gateway(settings(folder, config)))
        await runtime.transports["vllm"].probe()  # it learns what is served where, and how long the contexts are
        proof = Verification(
            baseline="embedder", candidate="org/embedder", dimension=1024, cosine_min=1.0, texts=9, at=0.0
        )
        await runtime.live.submit(Verify(provider="vllm", model="embedder", proof=proof), ME)
        client = await enter(httpx.AsyncClient(base_url=url, timeout=20.0))
        yield Site(runtime, client, ollama, vllm)


async def test_every_warning_is_told_where_it_is_due_and_no_other(tmp_path: Path) -> None:
    due = {name: sorted([name, *case.besides]) for name, case in CASES.items()} | {name: [""] for name in SILENT}
    told: dict[str, list[str]] = {}
    async with before_both(tmp_path) as site:
        for share, provider in ((0.0, "ollama"), (1.0, "vllm"), (1.0, "native"), (1.0, "filler")):
            await site.shift(share)
            for name, case in {**CASES, **SILENT}.items():
                if case.provider == provider:
                    told[name] = await site.told(case)
    assert told == due


def test_no_warning_is_without_a_case_and_no_case_without_a_warning() -> None:
    assert set(CASES) == set(report.warnings())
