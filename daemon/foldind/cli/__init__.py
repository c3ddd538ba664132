"""The command line of the daemon."""

import json
import sys
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from foldind.cli.evaluation import evaluate
from foldind.cli.options import Base, State, Summed
from foldind.cli.rules import rules
from foldind.cli.session import errors, sentences, wide_console

app = typer.Typer(
    name="foldind",
    help="""Hold one merged model, and keep folding fine-tuned checkpoints into it.

    First `foldind init` makes a state folder from the base model, then `foldind serve` serves it. The client submits
    checkpoints: `foldin submit`.""",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(value: bool) -> None:
    if value:
        typer.echo(f"foldind {version('foldin')}")
        raise typer.Exit


@app.callback()
def main(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""
    if not find_spec("torch"):
        errors.print(
            "foldind: only the client is installed here, and the daemon needs more; from a checkout: "
            "pip install -c deploy/constraints.txt '.[daemon]'",
            markup=False,
        )
        raise typer.Exit(1)


@app.command()
def init(
    base: Base,
    state: State,
    rule: Annotated[
        str | None,
        typer.Option(help="Merge rule, fixed for good; `foldind rules` lists all, with their options. [opcm]"),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of the merged state's singular-value mass that counts as taken, in [0, 1). [0.5]"),
    ] = None,
    cross_blocks: Annotated[
        str | None,
        typer.Option(
            help="`keep` the blocks between taken and free directions, as the authors' code does, or `drop` them. "
            "[keep]"
        ),
    ] = None,
    projection: Annotated[
        str | None,
        typer.Option(
            help="`exact`, or `leading`, which needs a fraction of the products and of the disk space, and differs by "
            "a few percent. [exact]"
        ),
    ] = None,
    density: Annotated[
        float | None, typer.Option(help="Share of each task vector's elements that ties, dare and breadcrumbs keep.")
    ] = None,
    outliers: Annotated[
        float | None, typer.Option(help="Share of the largest elements that breadcrumbs leaves out. [0.01]")
    ] = None,
    floor: Annotated[float | None, typer.Option(help="Smallest weight of an element in fisher. [1e-6]")] = None,
    shrink: Annotated[
        float | None, typer.Option(help="Factor of regmean for the off-diagonal elements of Gram matrices. [0.9]")
    ] = None,
    max_rank: Annotated[
        int | None,
        typer.Option(
            help="Highest rank of tensors that only adapters changed. They then always stay factored, and higher ranks "
            "are truncated and reported. Without a limit they are held whole once that takes less. [0: no limit]"
        ),
    ] = None,
    summed: Summed = None,
    backend: Annotated[
        str | None, typer.Option(help="Linear algebra: `torch` or `numpy`. [the faster one, which is measured]")
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            help="Threads per matrix product. With one thread, every processor works on a tensor of its own. More "
            "threads need less memory, and suffer on a busy machine. [1]"
        ),
    ] = None,
) -> None:
    """Make a state folder from a base model.

    The base is copied (sharing its blocks if the file system can). The settings cannot be changed later, because they
    decide the bytes of every merge. Example: `foldind init --base ./bert-base --state ./state`
    """
    from foldind.config import merge_settings
    from foldind.state.creation import check_places, create_state
    from foldind.worker.choice import choose_backend

    with sentences(), errors.status("starting") as status:
        settings = merge_settings(
            rule=rule,
            density=density,
            outliers=outliers,
            floor=floor,
            shrink=shrink,
            alpha=alpha,
            cross_blocks=cross_blocks,
            projection=projection,
            max_rank=max_rank,
            summed=summed or None,
            backend=backend,
            threads=threads,
        )
        check_places(base, state)
        if backend is None:
            status.update("measuring linear algebra")
            choice = choose_backend(settings.threads)
            settings = settings.model_copy(update={"backend": choice.name})
            errors.print(f"linear algebra of {choice.name}: {choice.figures}", markup=False)
        plan = create_state(base, state, settings, status.update)
    counts = Counter(tensor.treatment for tensor in plan.tensors)
    errors.print(f"{state} is ready; tensors: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    errors.print(f"Next: foldind serve --state {state}", markup=False)


@app.command()
def serve(
    state: State,
    grpc: Annotated[
        str | None, typer.Option(help="Address of gRPC; port 0 picks a free port. [127.0.0.1:7070]")
    ] = None,
    http: Annotated[
        str | None,
        typer.Option(
            help="Address of the model for clients of the Hugging Face Hub, the status page, /metrics, /healthz and "
            "/readyz; port 0 picks a free port; '' disables HTTP. [127.0.0.1:7072]"
        ),
    ] = None,
    model_id: Annotated[
        str | None, typer.Option(help="The model's name over HTTP, OWNER/NAME. [foldin/merged]")
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(
            help="Pattern of tensors (task heads) that submissions may have in addition to the base's, and that are "
            "left out; may be repeated."
        ),
    ] = None,
    allowed_root: Annotated[
        list[Path] | None,
        typer.Option(help="Folder from which checkpoints may be submitted by path; may be repeated."),
    ] = None,
    inbox: Annotated[
        Path | None,
        typer.Option(
            help="Folder to watch. A checkpoint dropped into it, as a .safetensors file or a folder, is submitted, and "
            "then moved to its subfolder `accepted` or `rejected`, beside a receipt."
        ),
    ] = None,
    publication: Annotated[
        str | None,
        typer.Option(
            help="How the state becomes the merged model from the next version on, such as `flat:2.0`; `foldind rules` "
            "lists all. [the publication of the merge rule]"
        ),
    ] = None,
    publish: Annotated[
        list[str] | None,
        typer.Option(
            help="The form of new versions: `model`, or `adapter`, a PEFT LoRA adapter of the merged update; may be "
            "repeated, for both. [model]"
        ),
    ] = None,
    adapter_rank: Annotated[int | None, typer.Option(help="Highest rank of the adapter; 0 sets no limit. [64]")] = None,
    gate: Annotated[
        str | None,
        typer.Option(
            help="Shell command that every new version has to pass before the alias `stable` names it. The command "
            'finds the version in $FOLDIN_SNAPSHOT, prints scores as a JSON object, such as {"ACC": 0.83}, and '
            "fails by its exit status. [none]"
        ),
    ] = None,
    keep_snapshots: Annotated[
        int | None,
        typer.Option(help="How many of the newest snapshots to keep, besides those that an alias names. [10]"),
    ] = None,
    lease: Annotated[
        float | None, typer.Option(help="Seconds for which a superseded snapshot at least stays readable. [3600]")
    ] = None,
    shutdown_grace: Annotated[
        float | None, typer.Option(help="Seconds that a running merge gets to finish on SIGTERM. [20]")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error. [info]")] = None,
    log_format: Annotated[
        str | None, typer.Option(help="`console`, or `json` for one JSON object a line. [console]")
    ] = None,
) -> None:
    """Serve a state folder until SIGTERM or Ctrl-C.

    Settings come from flags, else from environment variables (FOLDIN_GRPC, FOLDIN_IGNORE as a JSON list, ...), else
    from `[serve]` in the state folder's foldin.toml. Example: `foldind serve --state ./state --grpc 0.0.0.0:7070`
    """
    from foldind.app import serve as serve_state

    with sentences():
        serve_state(
            state,
            grpc=grpc,
            http=http,
            model_id=model_id,
            ignore=ignore or None,
            allowed_roots=allowed_root or None,
            inbox=inbox,
            publication=publication,
            publish=publish or None,
            adapter_rank=adapter_rank,
            gate=gate,
            keep_snapshots=keep_snapshots,
            lease=lease,
            shutdown_grace=shutdown_grace,
            log_level=log_level,
            log_format=log_format,
        )


@app.command()
def plan(
    base: Base,
    summed: Summed = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show what a merge would do with every tensor of a base model.

    *projected*: linear layers, whose updates are made orthogonal to the updates before. *summed*: all other trained
    tensors. *tied*: the same as another tensor. *frozen*: copied from the base. Example: `foldind plan --base ./base`
    """
    from foldind.checkpoints.checkpoint import open_checkpoint
    from foldind.checkpoints.plan import SUMMED_PATTERNS, make_plan

    with sentences():
        found = make_plan(open_checkpoint(base), summed or SUMMED_PATTERNS)
    if as_json:
        typer.echo(json.dumps(json.loads(found.to_json())["tensors"], indent=1))
        return
    table = Table("tensor", "dtype", "shape", "treatment", "tied to")
    for tensor in found.tensors:
        shape = " x ".join(map(str, tensor.shape))
        table.add_row(tensor.name, tensor.dtype, shape, tensor.treatment, tensor.tied_to)
    console = wide_console()
    console.print(table)
    counts = Counter(tensor.treatment for tensor in found.tensors)
    console.print(", ".join(f"{count} {kind}" for kind, count in counts.items()))


@app.command()
def fsck(state: State) -> None:
    """Verify every digest in a state folder, and the ledger against the disk.

    No daemon may serve the folder meanwhile. Prints each finding, and exits with status 1 if there is any.

    Example: `foldind fsck --state ./state`
    """
    from foldind.state.fsck import check_state

    with sentences(), errors.status("checking") as status:
        findings = check_state(state, lambda what: status.update(f"checking {what}"))
    for finding in findings:
        typer.echo(finding)
    if findings:
        errors.print(f"{len(findings)} finding{'s' if len(findings) > 1 else ''}")
        sys.exit(1)
    errors.print(f"{state} is in order")


app.command()(rules)
app.command()(evaluate)
