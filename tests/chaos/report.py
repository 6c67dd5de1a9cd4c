"""The summary of a run, for people."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from chaos.run import Report


def summary(report: Report, keep: Path | None) -> str:
    return "\n".join(_lines(report, keep))


def _lines(report: Report, keep: Path | None) -> Iterator[str]:
    facts, total = report.facts, sum(report.verdicts.values())
    yield ""
    yield f"chaos: seed {report.seed}, {report.seconds:g} s, {report.workers} clients, {report.wall_s:g} s in all"
    yield f"  requests    {total}: {_counts(report.verdicts)}"
    yield f"  by wire     {_counts(report.wires)}"
    yield f"  served by   {_counts(report.served)}"
    yield f"  errors      {_counts(report.excuses) or 'none'} (each explained)"
    yield f"  broken      {sum(report.broke.values())}: {_counts(report.broke)}"
    if report.missed:
        yield f"  missed      {_counts(report.missed)} (the server was down already)"
    yield f"  steered     {_counts(report.steered)}; {facts.get('changes')} changes of the flags"
    yield f"  full disk   {facts.get('disk')}"
    for name in ("rss_kb", "sockets", "files", "tasks", "phases_s"):
        values = facts.get(name, {})
        yield f"  {name:<11} " + ", ".join(f"{key} {value}" for key, value in values.items())
    yield f"  metrics     {_counts(facts.get('metrics', {}))}"
    yield f"  log         {_counts(facts.get('log', {}))}"
    yield f"  stalls      {facts.get('machine_stalls_s') or 'none'} (of this machine, seconds)"
    yield f"  violations  {len(report.violations)}"
    for text in report.violations[:40]:
        yield f"    {text}"
    if report.violations:
        again = f"--seed {report.seed} --seconds {report.seconds:g} --workers {report.workers}"
        yield f"  evidence in {keep}; again: scripts/chaos {again}"


def _counts(counts: Mapping[str, object]) -> str:
    return ", ".join(f"{value} {key}" for key, value in sorted(counts.items()))
