"""Chaos: real processes, mixed traffic, a fault every few seconds, and a checker that takes nobody's word.

| file | one idea |
|---|---|
| `asking` | requests, and what each engine must answer: both a function of the seed |
| `wire` | one HTTP exchange, byte for byte, with all ways of leaving it |
| `reading` | what an answer says, in its client's dialect |
| `judging` | whether an answer is right, or its error explained |
| `truth` | what was broken and which shares were in force, when |
| `schedule` | what happens when: a function of the seed alone |
| `servers` | the emulators and the gateway as processes |
| `breaking` | carries the schedule out, and writes down what was broken |
| `steering` | shifts, rollbacks, reloads while it runs |
| `actors` | the clients |
| `ending` | what must be as at the start: connections, tasks, descriptors, memory, counters, logs, store |
| `run`, `__main__` | put together; `scripts/chaos` |
"""
