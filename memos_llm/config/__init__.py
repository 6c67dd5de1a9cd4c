"""The configuration: one YAML file and the environment become `Settings`, or a `ConfigError` that says where and why.

    file bytes ── document ── aliases ──┐
    environment ─ environment ─ aliases ┴─ merged ── filled ── schema ── checks ── Settings ── Policy

`parse` is a pure function of (file bytes, environment), so a reload can validate a whole file and then swap it.
Logic never reads settings: it is given `Settings.policy()` and `Settings.provider_specs()`, which are plain data.
"""

from memos_llm.config.introspect import Setting, describe_settings
from memos_llm.config.load import SEARCH_PATHS, find, load, parse
from memos_llm.config.pending import pending
from memos_llm.config.settings import Settings
from memos_llm.config.source import Source

__all__ = ["SEARCH_PATHS", "Setting", "Settings", "Source", "describe_settings", "find", "load", "parse", "pending"]
