"""How decoding JSON fails, wherever it came from: a caller, a back end, a file, a store."""

import msgspec

FAILURES = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises on bytes that are no JSON, of another type, or nested too deep."""
