"""The command that makes safetensors of pickles."""

from pathlib import Path
from typing import Annotated

import typer

from foldin.cli.options import AsJson, examples
from foldin.cli.session import emit, explained, printable, warn


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", show_default=False, help="A .bin, .pt, .pth or .ckpt file, or a folder with a model."
        ),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="The folder to write; new or empty.")],
    strip_prefix: Annotated[
        str,
        typer.Option(
            metavar="PREFIX", help="Remove this prefix from names, such as `module.` of DistributedDataParallel."
        ),
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Rewrite a pickled checkpoint as safetensors, so that it can be submitted.

    The source is a pytorch_model.bin, sharded or not, a PEFT adapter_model.bin with its configuration, or a training
    checkpoint that holds a state_dict. Only tensors are loaded, so no code in the file can run. The command needs
    torch, but no daemon.
    """
    with explained(as_json, "Nothing was written."):
        from foldin.cli.display import Display
        from foldin.conversion import convert

        with Display() as display:
            converted = convert(source, to, strip_prefix=strip_prefix, on_progress=display.transfer)
    if converted.left_out:
        names = ", ".join(converted.left_out[:3]) + (" and more" if len(converted.left_out) > 3 else "")
        warn(f"{len(converted.left_out)} entries are no tensors and were left out: {names}.")
    if as_json:
        emit(
            {
                "folder": str(converted.folder),
                "tensors": converted.tensors,
                "size": converted.size,
                "left_out": list(converted.left_out),
            }
        )
    else:
        typer.echo(printable(f"{converted.tensors} tensors are in {converted.folder}"))
        typer.echo(printable(f"Hand them in with: foldin submit {converted.folder}"), err=True)


COMMANDS = (
    (
        "convert",
        convert,
        examples(
            "foldin convert runs/task-17/pytorch_model.bin --to runs/task-17-safe",
            "foldin convert last.ckpt --strip-prefix model. --to runs/task-18",
        ),
    ),
)
