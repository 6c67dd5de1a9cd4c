"""The control plane's verbs, each once: what the admin API and the command line say and do.

documents  the JSON documents that come back        orders   what may be asked for
standing   how things stand                          changes  shift, rollback, rearm, verify, adopt
records    history and incidents                     explain  where a call would go, and why
inventory  who calls what, and what still hangs on the baseline
board      what a running gateway has heard          probing  asking the providers now
vectors    whether two back ends' embeddings are one space          doctor   what a shift rests on, checked now

Nothing here prints, parses a command line or knows HTTP; the flags change through `control.Live` only.
"""
