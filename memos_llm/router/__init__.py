"""Which provider answers a call, and running the chain until one does.

`split` and `decide` are pure; `chain` says what to try next and for how long; `attempt` is one try up to and past its
commit point; `engine` is the one driver. Providers, stores and metrics are reached through `core.ports` only.
"""
