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
            help="Program that scores a model, with its arguments, quoted as in a shell; no shell runs it. {model} is "
            "the model's folder, {tasks} are the tasks to score, with commas between them. The program prints JSON: "
            '{"accuracy": {"TASK": 0.9}} or {"TASK": 0.9}, as shares from 0 to 1.'
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the results.", file_okay=False)],
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME=PATH", help="A fine-tuned checkpoint; may be repeated.")
    ] = None,
    tasks: Annotated[
        Path | None,
        typer.Option(
            help="Folder with one checkpoint per task, named like the task: a model folder, an adapter, or a "
            ".safetensors file.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
    rule: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RULE",
            help="Merge rule, NAME or NAME:OPTION=VALUE,OPTION=VALUE; may be repeated. All others are compared to the "
            f"first. Rules are {', '.join(CATALOG)}. Options are those of `[merge]` in foldin.toml, and `publication`, "
            f"which says how the state becomes the merged model: {', '.join(PUBLICATIONS)}, or the rule's own; with "
            "numbers as in `opcm:publication=scale:0.4`. [opcm]",
        ),
    ] = None,
    order: Annotated[
        list[str] | None,
        typer.Option(
            metavar="A,B,C", help="Order in which all tasks are merged; may be repeated. [the order of the tasks]"
        ),
    ] = None,
    shuffles: Annotated[
        int, typer.Option(min=0, help="Number of additional random orders. A larger number keeps the first ones.")
    ] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the random orders.")] = 0,
    timeout: Annotated[
        float, typer.Option(min=0, help="Seconds that one run of the program may take; 0 sets no limit.")
    ] = 0,
    experts: Annotated[
        bool,
        typer.Option(help="Score every fine-tuned model on its task, for normalised accuracy and the gain kept."),
    ] = True,
    score: Annotated[
        Scored,
        typer.Option(
            help="Tasks on which the model is scored after each merge. `all`: all tasks merged so far. `newest`: the "
            "newest task, and all tasks at the end; faster, with BWT but without curves. `final`: all tasks at the end "
            "only, without BWT and curves."
        ),
    ] = Scored.ALL,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern of tensors (task heads) that checkpoints have in addition to the base's; may be repeated."
        ),
    ] = None,
    summed: Summed = None,
    backend: Annotated[
        str | None, typer.Option(help="Linear algebra: `torch` or `numpy`. [the faster one, which is measured]")
    ] = None,
) -> None:
    """Merge a stream of checkpoints by several rules and orders, and measure how much of each task is kept.

    After every merge a program of yours scores the merged model on the tasks merged so far. The folder --out then has:

    - **table.md**, **summary.csv**: ACC, normalised ACC, gain kept, BWT, seconds a fold and size of the state by rule,
      and the difference to the first rule over the same orders;
    - **curves.csv**: accuracy by rule, order, step and task;
    - **accuracy.svg**, **heatmap-RULE.svg**: plots, if matplotlib is installed: `pip install matplotlib`;
    - **results.jsonl**: every score, as soon as it is measured.

    After an interruption or a kill, the same command goes on where it stopped. With other rules, orders or shuffles and
    the same --out, it measures only the missing scores, and reports only the rules and orders named now. The program
    counts as unchanged while its command is unchanged. A merge needs disk space in --out for two states (4 bytes a
    parameter each) and one model.

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
