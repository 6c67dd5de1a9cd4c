"""What the name of a model says of it."""

import re

_EMBEDDING = re.compile(r"embed|bge-|e5-|minilm|gte-|arctic")


def is_embedding(name: str) -> bool:
    """Whether it is named like a model for embeddings."""
    return bool(_EMBEDDING.search(name.lower()))
