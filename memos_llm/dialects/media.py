"""What a base64 image of an Ollama call really is. Ollama takes WAV and MP3 in the same place."""

import binascii
from typing import NamedTuple

_HEAD_CHARS = 24  # 18 bytes, more than any signature below needs


class Media(NamedTuple):
    """`mime` of an image; `audio` is the format's short name, empty for an image."""

    mime: str
    audio: str = ""


def sniff(base64_text: str) -> Media:
    """Tell the kind from the first bytes; what nothing else claims is image/jpeg, as Ollama has it."""
    try:
        head = binascii.a2b_base64(clean(base64_text[: 2 * _HEAD_CHARS])[:_HEAD_CHARS])
    except (binascii.Error, ValueError):
        head = b""
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12], _JPEG)
    return next((media for signature, media in _SIGNATURES if head.startswith(signature)), _JPEG)


def is_base64(text: str) -> bool:
    """Whether Ollama would take it: standard alphabet, padded, line ends ignored, no `data:` in front."""
    try:
        binascii.a2b_base64(clean(text), strict_mode=True)
    except (binascii.Error, ValueError):
        return False
    return True


def clean(base64_text: str) -> str:
    """Without the line ends that Go's decoder skips."""
    return base64_text.replace("\r", "").replace("\n", "")


_JPEG = Media("image/jpeg")
_RIFF = {b"WEBP": Media("image/webp"), b"WAVE": Media("audio/wav", "wav")}
_SIGNATURES = (
    (b"\x89PNG", Media("image/png")),
    (b"\xff\xd8\xff", _JPEG),
    (b"GIF8", Media("image/gif")),
    (b"ID3", Media("audio/mpeg", "mp3")),
    (b"\xff\xfb", Media("audio/mpeg", "mp3")),
    (b"\xff\xf3", Media("audio/mpeg", "mp3")),
    (b"\xff\xf2", Media("audio/mpeg", "mp3")),
)
