"""Whole and valid answers of either back end, as a function of a `Random`: what mutations and decoders start from."""

import json
import random
from typing import Any

Document = dict[str, Any]
Event = Document | str
"""A document, or `[DONE]`."""

DONE = "[DONE]"
WORDS = ("Hello", " world", " 🚀", " <b>&", "\n", ' "quoted"', " Grüße", " \u2028", "", " x" * 40)
AT = "2026-08-22T10:00:00.123456789Z"
COUNTS = {"prompt_eval_count": 11, "eval_count": 5}
TIMES = {"total_duration": 9, "load_duration": 2, "prompt_eval_duration": 3, "eval_duration": 4}


def events(rng: random.Random, wire: str, mark: str = "", model: str = "served/m") -> list[Event]:
    """A stream on a back end's wire, terminal included. Its text begins with `mark`."""
    words = [mark, *(rng.choice(WORDS) for _ in range(rng.randint(0, 4)))]
    if wire.startswith("ollama"):
        return _records(rng, words, model, chat=wire == "ollama.chat")
    return _chunks(rng, words, model, chat=wire == "openai.chat")


def whole(rng: random.Random, wire: str, mark: str = "", model: str = "served/m", inputs: int = 1) -> Document:
    """A non-streaming answer; `inputs` is how many texts were to be embedded."""
    if wire in ("ollama.embed", "ollama.embeddings", "openai.embeddings"):
        return _vectors(rng, wire, mark, model, inputs)
    text = mark + "".join(rng.choice(WORDS) for _ in range(rng.randint(0, 4)))
    if wire.startswith("ollama"):
        return _record(rng, text, model, chat=wire == "ollama.chat", done=True)
    choice: Document = {"index": 0, "finish_reason": rng.choice(["stop", "length"]), "logprobs": None}
    if wire == "openai.completion":
        choice["text"] = text
    else:
        choice["message"] = {"role": "assistant", "content": text} | _maybe(
            rng, reasoning="hm", tool_calls=[_called(0)]
        )
    kind = "text_completion" if wire == "openai.completion" else "chat.completion"
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": model, "choices": [choice], "usage": _usage()}


def written(wire: str, found: list[Event]) -> list[bytes]:
    """The events as the back end writes them."""
    if wire.startswith("ollama"):
        return [json.dumps(event, ensure_ascii=False).encode(errors="surrogatepass") + b"\n" for event in found]
    texts = (each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in found)
    return [b"data: " + text.encode(errors="surrogatepass") + b"\n\n" for text in texts]


def _maybe(rng: random.Random, **fields: Any) -> Document:
    return {name: value for name, value in fields.items() if rng.random() < 0.2}


# Ollama


def _records(rng: random.Random, words: list[str], model: str, *, chat: bool) -> list[Event]:
    thoughts = [{"thinking": "hm"}] if rng.random() < 0.3 else []
    found: list[Event] = [_record(rng, "", model, chat=chat, said=thought) for thought in thoughts]
    found += [_record(rng, word, model, chat=chat) for word in words]
    if chat and rng.random() < 0.3:
        call = {
            "id": "call_ab12cd34",
            "function": {"index": 0, "name": "f", "arguments": rng.choice([{"x": 1}, {}, None])},
        }
        found.append(_record(rng, "", model, chat=True, said={"tool_calls": [call]}))
    return [*found, _record(rng, rng.choice(["", "tail"]), model, chat=chat, done=True)]


def _record(
    rng: random.Random, text: str, model: str, *, chat: bool, said: Document | None = None, done: bool = False
) -> Document:
    answer: Document = {"model": model, "created_at": rng.choice([AT, "2026-08-22T10:00:00Z"])}
    said = said or {}
    if chat:
        answer["message"] = {"role": "assistant", "content": text, **said}
    else:
        answer |= {"response": text, **said}
    answer["done"] = done
    if rng.random() < 0.1:
        answer["logprobs"] = [{"token": "a", "logprob": -0.5, "bytes": [97]}]
    if done:
        answer |= {"done_reason": rng.choice(["stop", "length"]), **TIMES}
        answer |= COUNTS if rng.random() < 0.8 else {}
        answer |= {} if chat else _maybe(rng, context=[1, 2, 3])
    return answer


# vLLM, and Ollama's /v1


def _chunks(rng: random.Random, words: list[str], model: str, *, chat: bool) -> list[Event]:
    deltas: list[Document] = [{"role": "assistant", "content": ""}] if rng.random() < 0.8 else []
    if chat and rng.random() < 0.3:
        deltas.append({rng.choice(["reasoning", "reasoning_content"]): "hm"})
    deltas += [{"content": word} for word in words]
    if chat and rng.random() < 0.3:
        deltas += [{"tool_calls": [each]} for each in _fragments(rng)]
    finish = rng.choice(["stop", "length", "tool_calls"]) if chat else rng.choice(["stop", "length"])
    last = {"content": rng.choice(["", "tail"])} if rng.random() < 0.5 else {}
    found: list[Event] = [_chunk(delta, None, model, chat=chat) for delta in deltas]
    found.append(_chunk(last, finish, model, chat=chat))
    if rng.random() < 0.7:
        found.append({**_chunk({}, None, model, chat=chat), "choices": [], "usage": _usage()})
    return [*found, DONE]


def _chunk(delta: Document, finish: str | None, model: str, *, chat: bool) -> Document:
    said = {"delta": delta} if chat else {"text": delta.get("content", "")}
    choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish}
    kind = "chat.completion.chunk" if chat else "text_completion"
    return {"id": "chatcmpl-1", "object": kind, "created": 1, "model": model, "choices": [choice]}


def _called(index: int) -> Document:
    function = {"name": "f", "arguments": '{"x": 1}'}
    return {"index": index, "id": f"t{index}", "type": "function", "function": function}


def _fragments(rng: random.Random) -> list[Document]:
    if rng.random() < 0.5:
        return [_called(0), _called(1)]
    begun = {"index": 0, "id": "t0", "type": "function", "function": {"name": "f", "arguments": ""}}
    return [begun, *({"index": 0, "function": {"arguments": piece}} for piece in ('{"x"', ": 1}"))]


def _usage() -> Document:
    return {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def _vectors(rng: random.Random, wire: str, mark: str, model: str, inputs: int) -> Document:
    """One for each input. A vector has no text to hold the mark, so that its first number does."""
    vector = [float(int("0" + "".join(filter(str.isdigit, mark))) % 997 + 1), 2.0, rng.random()]
    if wire == "ollama.embed":
        times = {"total_duration": 9, "load_duration": 2, "prompt_eval_count": 1}
        return {"model": model, "embeddings": [vector] * inputs, **times}
    if wire == "ollama.embeddings":
        return {"embedding": vector}
    data = [{"object": "embedding", "index": index, "embedding": vector} for index in range(inputs)]
    return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": 1, "total_tokens": 1}}
