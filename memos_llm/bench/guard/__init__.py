"""How sure the guard is: how often it takes back a candidate that is well, and how soon one that is not.

`exact` is computed. The others draw requests and hand them to the production code: `counts` by the second to the window
rule, `faults` one by one to both error rules, `bursts` by the second to both latency rules, and `scenes` as events to
the recorder, on a clock of its own (`traffic`). `run` has the plan, `results` what comes of it, `plots` the pictures.
"""
