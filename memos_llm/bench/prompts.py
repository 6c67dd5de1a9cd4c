"""What is sent: a ready-made set of prompts of different lengths, and the mark that makes each of them new.

A server that keeps what it has computed of a prompt's beginning (prefix caching: vLLM by default, Ollama per slot)
answers a repeated prompt faster than any user would see. So every request begins with a mark of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]

_REPORT = """\
The pump station went offline at 02:14 on Tuesday. The night operator saw the pressure in the northern line fall from
six bar to two within four minutes and opened the bypass by hand. The first mechanic arrived at 02:51, found the main
breaker tripped and the motor housing too hot to touch, and decided not to switch it on again. At 03:20 the second
pump, which had been due for an overhaul since March, took over at seventy per cent of its rated flow. Two districts
had low pressure until 05:40; the hospital was never affected because its own tank was full. The spare bearing had
been ordered in April, delivered to the wrong depot, and booked as lost in June. It was found at noon behind a pallet
of valves. The motor was running again at 18:05, with a vibration sensor that the manufacturer lent for two weeks.
"""

_MINUTES = """\
Anna opened the meeting and asked for the state of the move to the new warehouse. Bilal said that the shelves in hall
two stand, that the scanners arrive on the ninth, and that the old lease ends on the thirtieth whatever happens. Chen
asked who pays if both halls are rented for another month; nobody knew, and Anna will ask the landlord. Dora reported
that a tenth of the labels cannot be read by the new scanners and proposed to print all of them again, which takes
three people two days. Bilal would rather print only those that fail. It was agreed to try his way with one aisle
first. Emre reminded everybody that the fire inspection has not been booked. Chen will do it today. On the budget,
forty thousand are left, of which twelve are for the forklift repair. Dora thinks that renting one is cheaper over the
summer and will bring figures on Monday. Anna closed the meeting after fifty minutes and thanked the night shift.
"""

_QUESTIONS = (
    "Explain in detail how a bicycle stays upright while it is ridden.",
    "Describe step by step how bread is made, from the grain to the loaf, and why each step matters.",
    "Write a long letter from a lighthouse keeper to her brother in the city.",
    "Compare trains, buses and trams for a town of two hundred thousand people. Give the reasons at length.",
    f"{_REPORT}\nWrite a detailed account of the causes of this outage, and what should be changed.",
    f"{_MINUTES}\nWrite out the decisions and open points, each with its owner, its risk and the next step, in detail.",
    f"{_MINUTES}\n{_REPORT}\nBoth texts are from one company. Discuss at length what they say about how it works.",
    f"{_REPORT}\n{_MINUTES}\n{_REPORT}\nRetell all of this as a story for the yearly report, leaving nothing out.",
)
"""Such that an answer is longer than the usual `--max-tokens`: then both sides write equally much."""

DEFAULT: tuple[Messages, ...] = tuple([{"role": "user", "content": question}] for question in _QUESTIONS)

WARM_UP: Messages = [{"role": "user", "content": "Say hello."}]


def marked(messages: Messages, mark: str) -> Messages:
    """The messages with a mark before the first text of all."""
    if not mark or not messages:
        return messages
    first, *rest = messages
    content = first.get("content")
    if isinstance(content, list):
        return [{**first, "content": [{"type": "text", "text": mark}, *content]}, *rest]
    return [{**first, "content": f"{mark} {content or ''}"}, *rest]


def text_of(messages: Messages) -> str:
    """What an embedding model is given of them."""
    return "\n".join(_texts(messages))


def chars(messages: Messages) -> int:
    """How long the text of them is."""
    return sum(map(len, _texts(messages)))


def _texts(messages: Messages) -> Iterable[str]:
    for message in messages:
        content = message.get("content")
        for part in content if isinstance(content, list) else [content]:
            text = part.get("text") if isinstance(part, Mapping) else part
            if isinstance(text, str):
                yield text
