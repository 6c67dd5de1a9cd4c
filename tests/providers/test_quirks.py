"""Which releases have which quirks."""

import pytest

from memos_llm.core.call import Quirk
from memos_llm.providers.quirks import CHANGES, quirks

OLD = Quirk.OLD_REASONING | Quirk.GUIDED | Quirk.STRICT_LENGTH


@pytest.mark.parametrize(
    ("version", "found"),
    [
        ("0.8.5.post1", OLD),
        ("0.11.2", OLD),
        ("v0.11.0rc3", OLD),
        ("0.11.1rc2.dev3+gabc", OLD),
        ("0.12.0", Quirk.STRICT_LENGTH),
        ("0.30.1", Quirk.STRICT_LENGTH),
        ("0.31.0", Quirk.STRICT_LENGTH),
        ("0.32.0", Quirk.NONE),
        ("0.33.0", Quirk.NONE),
        ("1.0", Quirk.NONE),
        ("0.0.0", Quirk.NONE),
        ("", Quirk.NONE),
        ("dev", Quirk.NONE),
    ],
)
def test_a_release_has_its_quirks_and_an_unknown_one_has_none(version: str, found: Quirk) -> None:
    assert quirks("vllm", version) == found
    assert quirks("ollama", version) is Quirk.NONE


def test_every_quirk_is_somebody_s() -> None:
    assert {change.quirk for changes in CHANGES.values() for change in changes} == set(Quirk)
