"""The command `foldind evaluate`."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from foldind.cli.options import Base, Summed
from foldind.cli.session import errors, sentences
from foldind.evaluation.scores import Scored
from foldind.merging.catalog import CATALOG, PUBLICATIONS

INTERRUPTED = 130


def evaluate(
    base: Base,
    command: Annotated[
        str,
        typer.Option(
            help="Program that scores a model, and its arguments, quoted as in a shell, though none is run. {model} "
            "stands for the model's folder, {tasks} for the tasks to score with commas between them. It prints JSON: "
            '{"accuracy": {"TASK": 0.9}} or {"TASK": 0.9}, shares in 0..1.'
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the results.", file_okay=False)],
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="A fine-tuned checkpoint; may be repeated.")
    ] = None,
    tasks: Annotated[
        Path | None,
        typer.Option(
            help="Folder with one checkpoint per task, named like the task: model folders, adapters, .safetensors "
            "files.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Merge rule, NAME or NAME:OPTION=VALUE,OPTION=VALUE; may be repeated: the others are compared to the "
            f"first. Rules are {', '.join(CATALOG)}. Options are those of `[merge]` in foldin.toml, and `publication`, "
            f"how the state becomes the merged model: {', '.join(PUBLICATIONS)}, or the rule's own; with numbers as in "
            "`opcm:publication=scale:0.4`. "
            "[opcm]",
        ),
    ] = None,
    order: Annotated[
        list[str] | None,
        typer.Option(metavar="A,B,C", help="Order in which all tasks are merged; may be repeated. [as they are named]"),
    ] = None,
    shuffles: Annotated[
        int, typer.Option(min=0, help="Random orders besides; with more, the first stay the same.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Of the random orders.")] = 0,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that a run of the program may take; 0: any time.")] = 0,
    experts: Annotated[
        bool,
        typer.Option(help="Score every fine-tuned model on its task, for normalised accuracy and the gain kept."),
    ] = True,
    score: Annotated[
        Scored,
        typer.Option(
            help="On what the model is scored after each merge: `all` that was merged so far; the `newest` task, and "
            "in the end all: faster, with BWT and without curves; or `final`: in the end only, without both."
        ),
    ] = Scored.ALL,
    ignore: Annotated[
        list[str] | None,
        typer.Option(help="Pattern of tensors that checkpoints have beyond the base (task heads); may be repeated."),
    ] = None,
    summed: Summed = None,
    backend: Annotated[
        str | None, typer.Option(help="Linear algebra: `torch` or `numpy`. [the faster one, which is measured]")
    ] = None,
) -> None:
    """Merge a stream of checkpoints by several rules and orders, and measure what is kept.

    After every merge the model is scored on the tasks that it was merged from so far. DIR then has:

    - **table.md**, **summary.csv**: ACC, normalised ACC, gain kept, BWT, seconds a fold and size of the state by rule,
      and the difference to the first rule over the same orders;
    - **curves.csv**: accuracy by rule, order, step and task;
    - **accuracy.svg**, **heatmap-RULE.svg**: plots, where matplotlib is: `pip install matplotlib`;
    - **results.jsonl**: every score, as soon as it is there.

    Killed at any moment, the same command goes on where it was. With other rules, orders or shuffles and the same
    --out, it measures what is missing, and reports what is named now. The program is taken to be the same for as long
    as its command is. A merge needs disk space in DIR for two states (4 bytes a parameter each) and one model.

    Examples:

    `foldind evaluate --base ./base --tasks ./checkpoints --command 'python score.py {model} --tasks {tasks}'
    --out ./results`

    `foldind evaluate --base ./base --task a=./a --task b=./b.safetensors --task c=./c --rule opcm --rule opcm:alpha=0.3
    --order a,b,c --shuffles 5 --command 'python score.py {model} --tasks {tasks}' --out ./results`
    """
    import asyncio

    from foldind.checkpoints.plan import SUMMED_PATTERNS
    from foldind.evaluation.display import Display
    from foldind.evaluation.evaluate import Wanted
    from foldind.evaluation.evaluate import evaluate as run
    from foldind.evaluation.orders import choose_orders
    from foldind.evaluation.report import TABLE
    from foldind.evaluation.tasks import name_tasks

    with sentences():
        named = name_tasks(task or (), tasks)
        wanted = Wanted(
            base=base,
            tasks=named,
            rules=rule or ["opcm"],
            orders=choose_orders(list(named), order or (), shuffles, seed),
            command=command,
            timeout=timeout,
            experts=experts,
            scored=score,
            ignore=ignore or (),
            summed=summed or SUMMED_PATTERNS,
            backend=backend or "",
        )
        try:
            with _terminated_like_interrupted(), Display(errors) as display:
                told = asyncio.run(run(wanted, out, display))
        except KeyboardInterrupt:
            errors.print("foldind: interrupted; the same command goes on where it was", markup=False)
            raise typer.Exit(INTERRUPTED) from None
    typer.echo((out / TABLE).read_text())
    errors.print(told, markup=False)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM too end the worker and the user's program, and not leave them behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
