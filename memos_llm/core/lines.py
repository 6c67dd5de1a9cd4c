"""What others wrote (servers, callers, files), made fit to be shown and kept."""


def one_line(text: str) -> str:
    """Without line breaks and control characters: a terminal would obey them."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
