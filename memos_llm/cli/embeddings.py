"""`embeddings verify`: are the two sides' vectors of a model one space? The answer opens, or closes, its share."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memos_llm.cli import completion, failures
from memos_llm.cli.command import Cli, command

if TYPE_CHECKING:
    from collections.abc import Iterator

    from memos_llm.operate.vectors import Comparison

FEW = 50

app = typer.Typer(
    help="""Compare the embeddings of two back ends.

\b
Example:
  llmctl embeddings verify nomic-embed-text --file texts.txt
""",
    rich_markup_mode=None,
    no_args_is_help=False,
)


def verify(
    cli: Cli,
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model, as configured.", autocompletion=completion.models)
    ],
    file: Annotated[Path, typer.Option("--file", metavar="F", help="Texts: one a line, .jsonl, .csv; - for stdin.")],
    texts: Annotated[int, typer.Option("--texts", min=1, max=10_000, help="How many of them, at most.")] = 200,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Keep the result in the flags.")] = True,
) -> int:
    """Embed texts of yours on baseline and candidate, compare the vectors, record the result.

    Equal means: the same dimension, and every text's two vectors at a cosine of 0.999 or more. Then
    `llmctl shift --CANDIDATE 1 --component embedding` moves the model, and either side may answer for the other.
    Exit code 1 when they are not equal; an earlier proof is taken back then. The texts are sent to both back ends, and
    kept nowhere.

    \b
    Example:
      llmctl embeddings verify nomic-embed-text --file texts.txt
      llmctl embeddings verify bge-m3 --file corpus.jsonl --texts 500 --json
    """
    from msgspec import to_builtins

    from memos_llm.cli import texts as files
    from memos_llm.operate.changes import pair
    from memos_llm.operate.embedding import measure
    from memos_llm.operate.orders import VerifyOrder
    from memos_llm.operate.vectors import proof

    settings = cli.settings
    name, here, there = pair(settings.policy(), model)
    wanted = files.read(file, texts)
    if len(wanted) < FEW:
        cli.out.warn(f"{len(wanted)} texts are few for a proof: {FEW} or more, of the kind that you embed, say more")
    with cli.out.progress(2 * len(wanted), "embedding") as progress:
        found = cli.run(measure(settings, name, wanted, progress))
    recorded = None
    if record:
        order = VerifyOrder(model=name, proof=proof(found, here, there, time.time()), reason=found.why)
        change = cli.run(cli.desk.verify(order))
        recorded = change.revision
        for warning in change.warnings:
            cli.out.warn(warning)
    document: dict[str, Any] = {
        "model": name,
        "baseline": {"provider": settings.baseline, "model": here},
        "candidate": {"provider": settings.candidate, "model": there},
        **to_builtins(found),
        "recorded_revision": recorded,
    }
    cli.out.result(document, *_view(name, found, settings.baseline, settings.candidate or "", recorded))
    return failures.DONE if found.equal else failures.NEGATIVE


command(app, "verify", short_help="Are both sides' vectors the same?")(verify)


def _view(name: str, found: "Comparison", baseline: str, candidate: str, recorded: int | None) -> "Iterator[str]":
    yield f"{name}: {'EQUAL' if found.equal else 'NOT EQUAL'} ({found.why})"
    yield f"  texts      {found.texts}"
    yield f"  dimension  {baseline} {found.dimension_baseline}, {candidate} {found.dimension_candidate}"
    for side, norms in ((baseline, found.norms_baseline), (candidate, found.norms_candidate)):
        yield f"  norms      {side}: {norms.min:.4f} to {norms.max:.4f}, mean {norms.mean:.4f}"
    if found.cosine is not None:
        c = found.cosine
        yield f"  cosine     least {c.min:.6f}, p1 {c.p1:.6f}, p50 {c.p50:.6f}, mean {c.mean:.6f}"
    if found.overlap_at_10 is not None:
        yield f"  neighbours {found.overlap_at_10:.1%} of the 10 nearest are the same"
    if recorded is not None:
        kept = "recorded" if found.equal else "recorded as not equal"
        yield f"  {kept} (revision {recorded})"
    if found.equal:
        yield f"next: llmctl shift --{candidate} 1 --component embedding"
    elif found.dimension_baseline == found.dimension_candidate:
        yield f"  the least alike are texts {', '.join(str(place + 1) for place in found.worst)} of those read"
