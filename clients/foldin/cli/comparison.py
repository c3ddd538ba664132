"""The command that compares two versions."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from foldin.cli.options import AsJson, Server, examples
from foldin.cli.session import connected, emit, printable

if TYPE_CHECKING:
    from foldin.differences import Difference, TensorDifference

_SHOWN = 20


class Order(StrEnum):
    """How the tensors are sorted."""

    CHANGE = "change"
    NAME = "name"


def diff(
    a: Annotated[str, typer.Argument(metavar="A", show_default=False, help="A version or an alias.")],
    b: Annotated[str, typer.Argument(metavar="B", show_default=False, help="The version or alias to compare with A.")],
    sort: Annotated[
        Order, typer.Option(help="Largest change first, relative to the norm of the tensor in A; or by name.")
    ] = Order.CHANGE,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="The most tensors that the table shows.")] = _SHOWN,
    every: Annotated[bool, typer.Option("--all", help="Show all tensors.")] = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Show the versions between A and B, and how each tensor changed from A to B.

    The command reads both models from the daemon in pieces, in constant memory, and writes nothing to disk. It skips
    files that are equal in both. Norms are Frobenius norms; those of the whole model are over its floating-point
    tensors. --json prints all tensors.
    """
    with connected(server, as_json) as client:
        from foldin.cli.display import Display
        from foldin.comparison import diff as compare

        with Display() as display:
            found = compare(client, a, b, on_progress=display.transfer)
    tensors = sorted(found.tensors, key=lambda tensor: tensor.name) if sort is Order.NAME else list(found.tensors)
    if as_json:
        emit(found.to_json() | {"tensors": [tensor.to_json() for tensor in tensors]})
    else:
        _print(found, tensors if every else tensors[:top])


def _print(found: "Difference", shown: "list[TensorDifference]") -> None:
    _print_lineage(found)
    if found.unread == len(found.tensors):
        typer.echo("Their models are the same, byte by byte.")
        return
    _print_tensors(found, shown)
    if left := len(found.tensors) - len(shown):
        typer.echo(f"{_tensors(left)} more: --all shows them.")
    if found.unread:
        typer.echo(
            f"{_tensors(found.unread)} in files that are equal in both: not read, and not in the norm that the change "
            "of the whole model is relative to."
        )


def _print_lineage(found: "Difference") -> None:
    from foldin.cli.rendering import described

    ancestor, undone, done = found.lineage.ancestor, found.lineage.undone, found.lineage.done
    if not (undone or done):
        typer.echo(f"Both are v{found.a.version}.")
        return
    through = (f"v{ancestor}" if ancestor else "the base") if undone and done else ""
    typer.echo(f"From v{found.a.version} to v{found.b.version}{f', through {through}' if through else ''}:")
    for step in undone:
        typer.echo(printable(f"  v{step.version} is undone: it {described(step)}"))
    for step in done:
        typer.echo(printable(f"  v{step.version} {described(step)}"))
    typer.echo()


def _print_tensors(found: "Difference", shown: "list[TensorDifference]") -> None:
    from foldin.cli.rendering import print_out, table_of

    rows = [
        _row(
            tensor,
            tensor.name,
            f"{tensor.dtype} {'x'.join(map(str, tensor.shape)) or 'scalar'}",
            "" if tensor.cosine is None else f"{tensor.cosine:.6f}",
        )
        for tensor in shown
    ]
    rows.append(_row(found, "the whole model", f"{found.elements} elements", ""))
    print_out(table_of(("tensor", "", "relative change", "norm of change", "largest", "changed", "cosine"), rows))


def _row(changed: "TensorDifference | Difference", name: str, size: str, cosine: str) -> tuple[str, ...]:
    return (
        name,
        size,
        f"{100 * changed.relative:.4g} %",
        f"{changed.difference_norm:.4g}",
        f"{changed.largest_change:.4g}",
        f"{100 * changed.changed_share:.4g} %",
        cosine,
    )


def _tensors(count: int) -> str:
    return f"{count} tensor{'' if count == 1 else 's'}"


COMMANDS = (
    (
        "diff",
        diff,
        examples("foldin diff v11 v12", "foldin diff stable latest --top 5", "foldin diff v1 latest --json"),
    ),
)
