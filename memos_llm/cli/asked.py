"""What a `shift` was asked for, read and checked before anything is opened; what it refuses names the way out."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from memos_llm.cli import failures

if TYPE_CHECKING:
    from memos_llm.config import Settings

EVERYTHING, EMBEDDING = "*", "embedding"
_OPTIONS = ("component", "reason", "require-all", "new-index")


def candidate(settings: "Settings") -> str:
    """The provider that shares are set for."""
    if settings.candidate is None:
        raise failures.usage("no candidate is configured: name the provider you move to under `candidate`")
    return settings.candidate


def share_ppm(arguments: Sequence[str], settings: "Settings") -> int:
    """The share out of `--<candidate> 0.3` or `--<candidate>=0.3`, which typer cannot know of."""
    from memos_llm.core.errors import Refused
    from memos_llm.core.flags import parse_share

    name = candidate(settings)
    value = _value(_options(arguments, name), name, settings)
    if not settings.providers[name].enabled:
        raise Refused(f"{name} is switched off: set providers.{name}.enabled to true first")
    try:
        return parse_share(value)
    except ValueError as error:
        raise failures.usage(f"--{name}: {error}") from None


def _options(arguments: Sequence[str], name: str) -> list[tuple[str, str]]:
    """Names and values; a value that was left out is empty."""
    options, rest = [], list(arguments)
    while rest:
        option, equals, value = rest.pop(0).partition("=")
        if not option.startswith("--"):
            raise failures.usage(f"{option!r} is not an option: {_how(name)}")
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        options.append((option[2:], value))
    return options


def _value(options: Sequence[tuple[str, str]], name: str, settings: "Settings") -> str:
    for given, _ in options:
        if given != name:
            raise failures.usage(_not_the_candidate(given, name, settings))
    if not options:
        raise failures.usage(f"no share was given: {_how(name)}")
    if len(options) > 1:
        raise failures.usage(f"one share at a time: {_how(name)}")
    if not options[0][1]:
        raise failures.usage(f"--{name} needs a share: {_how(name)}")
    return options[0][1]


def _how(name: str) -> str:
    return f"write `llmctl shift --{name} 0.3`"


def _not_the_candidate(name: str, candidate: str, settings: "Settings") -> str:
    if name == settings.baseline:
        return f"{name} is the baseline and gets what {candidate} leaves: write --{candidate} and its share"
    if name in settings.providers:
        return f"{name} is not the candidate: shares are set for {candidate} (`candidate` in the configuration)"
    close = get_close_matches(name, (*_OPTIONS, candidate), 1)
    guess = f"did you mean --{close[0]}? " if close else ""
    return f"no such option: --{name}; {guess}the share's option is --{candidate}, the candidate"


def scope(component: str | None) -> str:
    """The scope that `--component` names; everything without it."""
    from memos_llm.core.call import COMPONENT

    if component is None:
        return EVERYTHING
    if component != EVERYTHING and not COMPONENT.fullmatch(component):
        raise failures.usage(f"--component {component!r}: letters, digits, and . _ : -, 64 at most")
    return component


def check_new_index(new_index: bool, scope: str) -> None:
    if new_index and scope != EMBEDDING:
        raise failures.usage("--new-index goes with --component embedding only")


def doubts(scope: str, settings: "Settings") -> Iterator[str]:
    """What makes a share of this scope look like a mistake, though it is none for certain."""
    pinned = settings.policy().pins.get(scope)
    if pinned is not None:
        yield (
            f"{scope} is pinned to {pinned} by the configuration: its share has no effect until "
            f"routing.components.{scope} is `share`"
        )
    known = settings.components()
    if scope != EVERYTHING and scope not in known:
        close = get_close_matches(scope, known, 1)
        yield f"the configuration names no component {scope}" + (f"; did you mean {close[0]}?" if close else "")
