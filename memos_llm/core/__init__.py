"""The words of the product as types, and nothing else: no I/O, no third-party library but msgspec.

Everything above imports from here; this imports nothing of ours. A request becomes a `Call`, a call and the
current `Flags` become a `Decision`, each try at it an `Outcome`, and what happened is told as events.
"""
