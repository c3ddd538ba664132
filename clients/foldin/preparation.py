"""What is sent of a checkpoint: its files as they are, or one that is made of them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from foldin.checkpoint import STATISTICS, CheckpointFile
from foldin.errors import CheckpointError
from foldin.models import Progress
from foldin.recipe import Recipe


@contextmanager
def prepared(
    files: Sequence[CheckpointFile], recipe: Recipe | None, partial: bool, on_progress: Callable[[Progress], None]
) -> Iterator[Sequence[CheckpointFile]]:
    """Give the files to send; one that was made is removed afterwards.

    Args:
      files: of the checkpoint.
      recipe: how to compress it; None: not at all.
      partial: tensors of the base that the checkpoint lacks count as unchanged.
      on_progress: told of `compressing`, in bytes.

    Raises:
      CheckpointError: it cannot be compressed, or there is no room for it.
    """
    if recipe is None:
        yield files
        return
    from foldin.compression import compress_model  # needs numpy, which most commands do not wait for

    try:
        folder = TemporaryDirectory(prefix="foldin-")
    except OSError as error:
        raise CheckpointError(f"no temporary folder can be made: {error.strerror}; name another with TMPDIR.") from None
    with folder as name:
        model = [file for file in files if file.name != STATISTICS]
        beside = [file for file in files if file.name == STATISTICS]
        yield [compress_model(model, recipe, partial, Path(name), on_progress), *beside]
