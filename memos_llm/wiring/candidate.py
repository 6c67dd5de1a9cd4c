"""A share that was set for one provider must not become another's because a file says so."""

from memos_llm.core.errors import ConfigError
from memos_llm.core.flags import EMBEDDING, PPM, Flags


def check(flags: Flags, wanted: str | None) -> None:
    """Raises:
    ConfigError: the configuration names a candidate, and there are shares that were set for another.
    """
    given = flags.given()
    if wanted is None or not given or flags.candidate in ("", wanted):
        return
    said = ", ".join(f"{name} {share_ppm / PPM:.4g}" for name, share_ppm in given.items())
    too = f", and again with `--component {EMBEDDING}`" if EMBEDDING in given else ""  # it follows nobody
    raise ConfigError(
        f"candidate: {wanted} would get what was set for {flags.candidate} ({said}): `llmctl shift --{wanted} 0` "
        f"first{too}, then start again, or save this file again"
    )
