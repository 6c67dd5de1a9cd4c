"""From a client's wire to a back end's and back; one file per direction, `table` says which serves when."""

from memos_llm.dialects.codecs.table import CODECS

__all__ = ["CODECS"]
