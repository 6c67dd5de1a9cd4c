"""`llmctl`: thin commands over `operate`, the control plane's verbs; nothing is decided here.

    command  shared options, one place for them     output   the one place that prints
    failures errors → one line and an exit code     opening  settings, store, live flags of one command
    desk     where a verb is done: on the store …   remote   … or by a running gateway
    init serve status shift history incidents explain config keys store embeddings emulate demo: the commands

What a command needs is imported inside it, so that `--help` and the quick commands stay quick.
"""

from memos_llm.cli.app import main

__all__ = ["main"]
