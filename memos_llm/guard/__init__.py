"""Watches the candidate, and takes it back when it misbehaves.

`heard` keeps what is told on a request's way; `recorder` works it off and counts the requests of this process by the
second in which they started: `inflight` is what it remembers of each, `lanes` what those of one key have in common,
`runs` the sequential rules that they feed. `deltas` keeps what the store has not got yet, and `windows` adds up the
fleet's counts. `binomial`, `sequences` and `triggers` are the rules, pure functions and small state machines; `judge`
asks them all of all sums; `health` judges probes and breakers; `scope` says what a verdict takes back, and `act`
whether and how; `watch` is the one driver. Providers, stores and metrics are reached through `core.ports` and events
only.
"""
