"""The command `foldind rules`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from foldind.merging.catalog import ACCUMULATED, CATALOG, DIVIDING, PUBLICATIONS, Entry

RULES: Mapping[str, str] = MappingProxyType(
    {
        "opcm": "projects each update orthogonally to what is merged (Tang et al. 2025)",
        "foldin": "OPCM, also for the embedding of each token, published with a spectrum that grows flat",
        "average": "the mean of all updates",
        "task_arithmetic": "a share of the sum of all updates",
        "ties": "trims, elects a sign for each element, averages what agrees with it",
        "dare": "drops elements at random, stretches the rest, sums",
        "breadcrumbs": "leaves out the smallest and the very largest elements, sums",
        "magmax": "of each element the largest there was",
        "iso": "the sum with a flat spectrum (Iso-C)",
        "regression": "does to the rows of every update what that update does (data-free RegMean)",
        "fisher": "the mean, weighted by the diagonal Fisher information that each submission carries",
        "regmean": "does to the inputs of every submission, whose Gram matrices it carries, what that submission does",
        "model_stock": "the mean, shortened by how much the updates point apart",
    }
)
"""What each merge rule does, in a few words."""

HOW: Mapping[str, str] = MappingProxyType(
    {
        "norm": "divided by lambda: as long as the updates are on average",
        "mean": "divided by their number",
        "scale": "times a factor",
        "tensor_norm": "each tensor as long as the root mean square of its updates, times a factor",
        "iso": "linear layers with all singular values at their mean, times a factor; else the mean",
        "flat": "linear layers with equal singular values, as long as the root mean square of its updates, times a "
        "factor; else the mean",
        "power": "linear layers with their singular values to a power, as long as before; else the mean",
        "foldin": "linear layers with their singular values to the power 1/N, as long as before; embeddings of tokens "
        "as they are; else the mean",
    }
)
"""What each publication of a sum does, in a few words."""


def rules(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the merge rules, and the ways in which a merged state can be published.

    `foldind init --rule NAME` chooses what is kept, for good. How that becomes the merged model is a setting of
    `foldind serve`, `--publication NAME[:NUMBER]`, and `foldin publish --as NAME[:NUMBER]` tries another one. Where a
    way of publishing needs singular vectors or whole tensors, it takes longer.
    """
    if as_json:
        _print_json()
        return
    console = Console(highlight=False)
    table = Table("rule", "what it does", "options", "published as", "bytes a parameter", box=None, pad_edge=False)
    for name, entry in CATALOG.items():
        options = ", ".join(f"{option} {value}" for option, value in entry.options.items())
        table.add_row(name, RULES[name], options, entry.publication, _size(entry))
    console.print(table)
    console.print()
    table = Table("publication", "of the sum S that a rule keeps", "as an adapter too", box=None, pad_edge=False)
    for name, numbers in PUBLICATIONS.items():
        table.add_row(":".join([name, *map(str, numbers.values())]), HOW[name], "yes" if name in DIVIDING else "no")
    console.print(table)
    own = ", ".join(name for name, entry in CATALOG.items() if entry.own is not None)
    sums = ", ".join(name for name, entry in CATALOG.items() if entry.additive)
    console.print(f"\n`foldin submit --take-out` takes a submission out again by the rules that keep sums: {sums}.")
    console.print(f"\n{own} keep what only their own publication reads; all other rules can be published in each way.")


def _size(entry: Entry) -> str:
    slots = entry.element_bytes((ACCUMULATED, *entry.slots))
    of_layers = entry.element_bytes((*entry.matrix_slots, *entry.square_slots))
    return f"{slots} to {slots + of_layers}, square layers" if of_layers else str(slots)


def _print_json() -> None:
    import json

    document = {
        "rules": {
            name: {
                "does": RULES[name],
                "options": dict(entry.options),
                "publication": entry.publication,
                "takes_out": entry.additive,
            }
            for name, entry in CATALOG.items()
        },
        "publications": {name: {"does": HOW[name], "numbers": dict(PUBLICATIONS[name])} for name in PUBLICATIONS},
    }
    typer.echo(json.dumps(document, indent=1))
