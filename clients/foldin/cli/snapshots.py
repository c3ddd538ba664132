"""Commands about snapshots, and `watch`, which follows either."""

from pathlib import Path
from typing import Annotated

import typer

from foldin.cli.options import AsJson, Server, examples, read_version
from foldin.cli.session import connected, emit, printable, warn
from foldin.cli.submissions import watch_submission
from foldin.lineage import change_of
from foldin.models import Snapshot

Ref = Annotated[str, typer.Argument(metavar="vN|ALIAS", help="A version or an alias.")]
Version = Annotated[
    int | None, typer.Argument(metavar="vN", parser=read_version, show_default=False, help="A version.")
]


def list_snapshots(server: Server = None, as_json: AsJson = False) -> None:
    """List the versions of the merged model, oldest first."""
    with connected(server, as_json) as client:
        snapshots = client.snapshots()
    if as_json:
        emit([snapshot.to_json() for snapshot in snapshots])
    else:
        from foldin.cli.rendering import print_snapshots

        print_snapshots(snapshots)


def show(
    ref: Ref = "latest",
    ancestors: Annotated[
        int, typer.Option(metavar="N", min=0, help="How many of the versions before it to show.")
    ] = 10,
    tensors: Annotated[bool, typer.Option("--tensors", help="Also show what its merge did to each tensor.")] = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Show one version: its content, its norms, its files, and what each version before it added.

    In JSON, `lineage` begins with this version and ends with the oldest version shown; the `parent` of the very first
    version is 0. With --tensors, `tensors` has the manifest's figures of each tensor, verified by SHA-256.
    """
    with connected(server, as_json) as client:
        from foldin.lineage import lineage_of
        from foldin.manifest import tensor_statistics

        snapshot = client.show(ref)
        version = f"v{snapshot.version}"
        steps = lineage_of(client, version, most=1 + ancestors)
        statistics = tensor_statistics(client, version) if tensors else None
    _warn_if_withdrawn(snapshot)
    if as_json:
        document = snapshot.to_json() | {"lineage": [step.to_json() for step in steps]}
        emit(document | ({"tensors": [tensor.to_json() for tensor in statistics]} if statistics is not None else {}))
    else:
        from foldin.cli.rendering import print_snapshot, print_statistics

        print_snapshot(snapshot, steps)
        if statistics is not None:
            print_statistics(statistics)


def pull(
    to: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            show_default=False,
            help="The folder to fill: a new one, an empty one, or one that was pulled before.",
        ),
    ],
    ref: Ref = "latest",
    form: Annotated[
        str, typer.Option("--as", metavar="model|adapter", help="A whole model, or a PEFT LoRA adapter of the base.")
    ] = "model",
    rank: Annotated[
        int | None,
        typer.Option(
            show_default=False,
            min=1,
            help="Highest rank of the adapter, which is then the best approximation of that rank. [as published]",
        ),
    ] = None,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Fetch a version of the merged model into a folder that transformers, vLLM and SGLang can load.

    The folder is replaced as a whole once every file has arrived with the right SHA-256. If the folder already holds
    the version, nothing is fetched, except for an adapter that is cut to a --rank. With --as adapter the folder holds a
    LoRA adapter, which PEFT and inference servers load into a running base model; the daemon must publish adapters.
    """
    if form not in ("model", "adapter"):
        raise typer.BadParameter(f"{form!r} is neither model nor adapter.", param_hint="--as")
    if rank is not None and form != "adapter":
        raise typer.BadParameter("only an adapter has a rank: add --as adapter.", param_hint="--rank")
    again = "Run the same command again: it goes on where this one stopped."
    with connected(server, as_json, after_interrupt=again) as client:
        from foldin.cli.display import Display

        with Display() as display:
            if form == "adapter":
                adapter = client.pull_adapter(ref, to=to, rank=rank, on_progress=display.transfer)
                snapshot = adapter.snapshot
            else:
                adapter, snapshot = None, client.pull(ref, to=to, on_progress=display.transfer)
    _warn_if_withdrawn(snapshot)
    if adapter and adapter.left_out:
        more = " and more" if len(adapter.left_out) > 3 else ""
        warn(printable(f"PEFT has no place for {', '.join(adapter.left_out[:3])}{more}: the adapter is without."))
    if as_json:
        emit((adapter or snapshot).to_json())
    elif adapter:
        typer.echo(
            f"{to} is an adapter of v{snapshot.version}, rank {adapter.rank} of {adapter.published_rank}, "
            f"with {100 * adapter.retained:.2f} % of the merged update's energy."
        )
    else:
        typer.echo(f"{to} is v{snapshot.version}.")


def watch(
    id: Annotated[
        str | None, typer.Argument(metavar="ID", show_default=False, help="A submission to follow to its end.")
    ] = None,
    alias: Annotated[str, typer.Option(help="Without ID: the alias whose moves are printed.")] = "latest",
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Follow a submission to its end or, without ID, print every new version as it is published.

    With ID the exit status is 0 once the submission is merged, and 1 if it is refused. Without ID the command runs
    until it is interrupted, and --json prints one document per line. A running watch survives a restart of the daemon.
    """
    if id is not None:
        watch_submission(id, server, as_json)
        return
    with connected(server, as_json) as client:
        for snapshot in client.watch_snapshots(alias):
            if as_json:
                emit(snapshot.to_json(), one_line=True)
            else:
                typer.echo(_line(snapshot))


def alias(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The alias, such as `stable`.")],
    version: Version = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the alias.")] = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias at a version, remove it or, with neither vN nor --delete, show the version that it names."""
    if delete and version is not None:
        raise typer.BadParameter("give a version or --delete, not both.")
    with connected(server, as_json) as client:
        change = delete or version is not None
        snapshot = client.set_alias(name, version) if change else client.show(name)
    if snapshot:
        _warn_if_withdrawn(snapshot)
    if as_json:
        emit(snapshot.to_json() if snapshot else None)
    else:
        typer.echo(printable(f"{name} names v{snapshot.version}." if snapshot else f"{name} is removed."))


def publish(
    form: Annotated[
        str,
        typer.Option(
            "--as",
            metavar="PUBLICATION",
            show_default=False,
            help="A publication such as `flat:2.0`: a name, and its numbers after colons. `foldind rules` lists all.",
        ),
    ],
    alias: Annotated[str, typer.Option(help="An alias to point at the new version.", show_default=False)] = "",
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Publish the newest merged state in another way, to try it.

    The result is a version of its own, which `latest` does not name. Nothing is merged for it; the command waits for a
    running merge. To publish every new version in this way, give the daemon the setting `publication`.
    """
    with connected(server, as_json) as client:
        from foldin.cli.display import Display

        with Display() as display:
            snapshot = client.publish(form, alias=alias, on_progress=display.publication)
    if as_json:
        emit(snapshot.to_json())
    else:
        named = f", and {alias} names it" if alias else ""
        typer.echo(printable(f"v{snapshot.version} is v{snapshot.parent} published as {snapshot.publication}{named}."))


def rollback(version: Version = None, server: Server = None, as_json: AsJson = False) -> None:
    """Undo the newest version. `latest` moves to the version before, and the submission that it added is WITHDRAWN.

    With vN, the version is undone only if it is still the newest. This works until the next merge starts. To merge the
    same checkpoint after all, submit it again.
    """
    with connected(server, as_json) as client:
        done = client.rollback(version)
        undone = client.show(f"v{done.undone}")
    _warn_if_withdrawn(undone, unless_unnamed=True)
    if as_json:
        emit(done.to_json())
    else:
        now = f"the newest is v{done.snapshot.version}" if done.snapshot else "no version is left"
        typer.echo(f"v{done.undone} is undone; {now}.")


def _warn_if_withdrawn(snapshot: Snapshot, *, unless_unnamed: bool = False) -> None:
    if snapshot.state != "WITHDRAWN" or (unless_unnamed and not snapshot.aliases):
        return
    names = f", and {', '.join(snapshot.aliases)} still names it: move that with `foldin alias`"
    warn(f"v{snapshot.version} was rolled back{names if snapshot.aliases else ''}.")


def _line(snapshot: Snapshot) -> str:
    return printable(
        f"v{snapshot.version}  {snapshot.created_at:%Y-%m-%d %H:%M:%S} UTC  {change_of(snapshot)}  "
        f"contains {snapshot.submissions}  lambda {snapshot.lambda_:.4g}"
    )


COMMANDS = (
    ("snapshots", list_snapshots, examples("foldin snapshots", "foldin snapshots --json | jq '.[-1].version'")),
    ("show", show, examples("foldin show", "foldin show v12 --tensors", "foldin show stable --json")),
    (
        "pull",
        pull,
        examples(
            "foldin pull latest --to models/merged",
            "foldin pull v12 --to models/v12",
            "foldin pull latest --as adapter --rank 16 --to adapters/merged",
        ),
    ),
    ("watch", watch, examples("foldin watch ID", "foldin watch", "foldin watch --alias stable --json")),
    ("alias", alias, examples("foldin alias stable v12", "foldin alias stable", "foldin alias stable --delete")),
    ("publish", publish, examples("foldin publish --as flat:2.0 --alias candidate")),
    ("rollback", rollback, examples("foldin rollback", "foldin rollback v12")),
)
