"""The command that compares two versions."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from foldin.cli.options import AsJson, Server, examples
from foldin.cli.session import connected, emit

if TYPE_CHECKING:
    from foldin.differences import Difference, TensorDifference

_SHOWN = 20


class Order(StrEnum):
    """How the tensors are sorted."""

    CHANGE = "change"
    NAME = "name"


def diff(
    a: Annotated[str, typer.Argument(metavar="A", show_default=False, help="A version or an alias.")],
    b: Annotated[str, typer.Argument(metavar="B", show_default=False, help="The one that is compared with it.")],
    sort: Annotated[
        Order, typer.Option(help="The largest change, relative to the norm of the tensor in A, first; or by name.")
    ] = Order.CHANGE,
    top: Annotated[int, typer.Option(metavar="N", min=1, help="How many tensors the table has at the most.")] = _SHOWN,
    every: Annotated[bool, typer.Option("--all", help="All tensors.")] = False,
    server: Server = None,
    as_json: AsJson = False,
) -> None:
    """Tell what lies between two versions, and how each tensor changed from A to B.

    Both models are read from the daemon in pieces, in constant memory, and nothing is written to disk; files that are
    equal in both are not read. Norms are Frobenius norms; the whole model's are over its floating-point tensors.
    --json has all tensors.
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
    from foldin.cli.rendering import described, print_out, table_of
    from foldin.cli.session import printable

    a, b = f"v{found.a.version}", f"v{found.b.version}"
    base = f"v{found.lineage.ancestor}" if found.lineage.ancestor else "the base"
    lines = [f"v{step.version} is undone: it {described(step)}" for step in found.lineage.undone]
    lines += [f"v{step.version} {described(step)}" for step in found.lineage.done]
    typer.echo(
        f"{a} is {b}." if a == b else f"From {a} to {b}, by way of {base}:" if _turns(found) else f"From {a} to {b}:"
    )
    for line in lines:
        typer.echo(printable(f"  {line}"))
    typer.echo()
    rows = [
        (
            tensor.name,
            f"{tensor.dtype} {'x'.join(map(str, tensor.shape)) or 'scalar'}",
            f"{100 * tensor.relative:.4g} %",
            f"{tensor.difference_norm:.4g}",
            "" if tensor.cosine is None else f"{tensor.cosine:.6f}",
            f"{tensor.largest_change:.4g}",
            f"{100 * tensor.changed_share:.4g} %",
        )
        for tensor in shown
    ]
    rows.append(
        (
            "the whole model",
            f"{found.elements} elements",
            f"{100 * found.relative:.4g} %",
            f"{found.difference_norm:.4g}",
            "",
            f"{found.largest_change:.4g}",
            f"{100 * found.changed_share:.4g} %",
        )
    )
    print_out(table_of(("tensor", "", "relative change", "norm", "cosine", "largest", "elements changed"), rows))
    if left := len(found.tensors) - len(shown):
        typer.echo(f"{left} more tensor{'s' if left > 1 else ''}: --all shows all, --json too.")
    if found.unread:
        typer.echo(
            f"{found.unread} tensor{'s' if found.unread > 1 else ''} in files that are equal in both: not read, and "
            "not in the norm that the model's change is relative to."
        )


def _turns(found: "Difference") -> bool:
    return bool(found.lineage.undone and found.lineage.done)


COMMANDS = (
    (
        "diff",
        diff,
        examples("foldin diff v11 v12", "foldin diff stable latest --top 5", "foldin diff v1 latest --json"),
    ),
)
