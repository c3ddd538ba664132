"""Options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

Base = Annotated[
    Path, typer.Option(help="Folder of the base model, as save_pretrained writes it.", exists=True, file_okay=False)
]
State = Annotated[Path, typer.Option(help="The state folder, which holds everything that the daemon keeps.")]
Summed = Annotated[
    list[str] | None,
    typer.Option(
        help="Pattern of 2-D tensors that are not linear layers, and are summed instead of projected. May be repeated; "
        "replaces the default patterns (embeddings and position tables)."
    ),
]
