"""What a `shift` was asked for, read and checked before anything is opened; what it refuses names the way out."""

from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING

from memos_llm.cli import failures

if TYPE_CHECKING:
    from memos_llm.config import Settings

_OPTIONS = ("component", "reason", "require-all", "new-index")


def share(arguments: Sequence[str], settings: "Settings | None") -> tuple[str, str]:
    """Provider and share out of `--<candidate> 0.3` or `--<candidate>=0.3`, which typer cannot know of.

    Without settings (a gateway knows them) any name may be the candidate's: the gateway says.
    """
    from memos_llm.core.flags import parse_share

    name = "CANDIDATE" if settings is None else candidate(settings)
    options = _options(arguments, name)
    if settings is None and len(options) == 1:
        name = options[0][0]
    value = _value(options, name, settings)
    try:
        parse_share(value)
    except ValueError as error:
        raise failures.usage(f"--{name}: {error}") from None
    return name, value


def candidate(settings: "Settings") -> str:
    """The provider that shares are set for."""
    if settings.candidate is None:
        raise failures.usage("no candidate is configured: name the provider you move to under `candidate`")
    return settings.candidate


def provider(name: str, settings: "Settings") -> str:
    """A configured provider's name."""
    if name not in settings.providers:
        close = get_close_matches(name, settings.providers, 1)
        guess = f"did you mean {close[0]}? " if close else ""
        raise failures.usage(f"there is no provider {name!r}: {guess}choices: {', '.join(settings.providers)}")
    return name


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


def _value(options: Sequence[tuple[str, str]], name: str, settings: "Settings | None") -> str:
    for given, _ in options:
        if settings is not None and given != name:
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


def check_scope(component: str | None, *, new_index: bool = False) -> None:
    """What `--component` and `--new-index` may be."""
    from memos_llm.core.call import COMPONENT
    from memos_llm.core.flags import EMBEDDING, GLOBAL

    if component not in (None, GLOBAL) and not COMPONENT.fullmatch(component or ""):
        raise failures.usage(f"--component {component!r}: letters, digits, and . _ : -, 64 at most")
    if new_index and component != EMBEDDING:
        raise failures.usage("--new-index goes with --component embedding only")
