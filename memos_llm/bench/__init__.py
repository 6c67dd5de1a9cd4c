"""What the product costs: CPU time per unit of work, against a bare pass-through, interleaved in one run.

`run` drives rounds; `subjects` are the processes that are measured and `upstream` is what they call; `load` is the
client; `results` turns samples into figures, a table and a verdict. Absolute figures are this machine's of this
minute: only ratios within one run are judged. Entry: `scripts/bench`. Linux only (CPU clocks of other processes).

Beside it, what `llmctl bench` measures: one back end against another. `providers` drives turns, `prompts` is what is
sent; `comparison` makes figures and ratios, `cells` and `remarks` say them, `gather` and `report` put them in files.
"""
