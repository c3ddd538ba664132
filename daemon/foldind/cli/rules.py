"""The command `foldind rules`."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import typer
from rich.table import Table

from foldind.cli.session import wide_console
from foldind.merging.catalog import ACCUMULATED, CATALOG, DIVIDING, PUBLICATIONS, Entry

RULES: Mapping[str, str] = MappingProxyType(
    {
        "opcm": "makes each update orthogonal to the sum of the updates before it (Tang et al. 2025)",
        "foldin": "OPCM, also for the embedding of each token, with a spectrum that grows flatter with every merge",
        "average": "the mean of all updates",
        "task_arithmetic": "a share of the sum of all updates",
        "ties": "trims each update, elects a sign for each element, averages the values that have this sign",
        "dare": "drops elements at random, scales up the rest, sums",
        "breadcrumbs": "leaves out the smallest and the very largest elements, sums",
        "magmax": "for each element, the value of largest magnitude among all updates",
        "iso": "the sum with a flat spectrum (Iso-C)",
        "regression": "least-squares merge of the linear layers, using each update in place of its inputs (data-free "
        "RegMean)",
        "fisher": "the mean, weighted by the diagonal Fisher information that each submission brings",
        "regmean": "least-squares merge of the linear layers, from the Gram matrices of inputs that each submission "
        "brings",
        "model_stock": "the mean, scaled down the more the updates disagree in direction",
    }
)
"""What each merge rule does, in a few words."""

HOW: Mapping[str, str] = MappingProxyType(
    {
        "norm": "S divided by lambda: as long as the updates are on average",
        "mean": "S divided by the number of updates",
        "scale": "S times a factor",
        "tensor_norm": "each tensor of S scaled to the root mean square length of its updates, times a factor",
        "iso": "linear layers: all singular values at their mean, times a factor; other tensors: the mean",
        "flat": "linear layers: equal singular values, scaled to the root mean square length of the updates, times a "
        "factor; other tensors: the mean",
        "power": "linear layers: singular values to a power, as long as before; other tensors: the mean",
        "foldin": "linear layers: singular values to the power 1/N, as long as before; token embeddings: S; other "
        "tensors: the mean",
    }
)
"""What each publication of a sum does, in a few words."""


def rules(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """List the merge rules, and the ways in which a merged state can be published.

    `foldind init --rule NAME` fixes the rule, and with it the content of the state, for good. The publication turns the
    state into the merged model: it is a setting of `foldind serve`, `--publication NAME[:NUMBER]`, and `foldin publish
    --as NAME[:NUMBER]` tries another one. Publications that need singular vectors or whole tensors take longer.
    """
    if as_json:
        _print_json()
        return
    console = wide_console()
    table = Table("rule", "what it does", "options", "published as", "bytes a parameter", box=None, pad_edge=False)
    for name, entry in CATALOG.items():
        options = ", ".join(f"{option} {value}" for option, value in entry.options.items())
        table.add_row(name, RULES[name], options, entry.publication, _size(entry))
    console.print(table)
    console.print()
    table = Table("publication", "what it makes of the sum S of a rule", "can be an adapter", box=None, pad_edge=False)
    for name, numbers in PUBLICATIONS.items():
        table.add_row(":".join([name, *map(str, numbers.values())]), HOW[name], "yes" if name in DIVIDING else "no")
    console.print(table)
    own = ", ".join(name for name, entry in CATALOG.items() if entry.own is not None)
    sums = ", ".join(name for name, entry in CATALOG.items() if entry.additive)
    console.print(f"\n`foldin submit --take-out` takes a submission out again under the rules that keep sums: {sums}.")
    console.print(f"\n{own} can be published only in their own way; all other rules can be published in each way.")


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
