"""`llmctl`: thin commands over the library, the control plane and the store; nothing is decided here.

    command  shared options, one place for them     output   the one place that prints
    failures errors → one line and an exit code     opening  settings, store, live flags, probes of one command
    init serve status shift rearm history explain emulate config demo: the commands, one file per group

What a command needs is imported inside it, so that `--help` and the quick commands stay quick.
"""

from memos_llm.cli.app import main

__all__ = ["main"]
