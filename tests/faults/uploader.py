"""A client as a process of its own: `python uploader.py SERVER PATH` prints how many bytes the daemon has."""

import sys

from foldin import Client, Progress


def _main(server: str, path: str) -> None:
    def tell(progress: Progress) -> None:
        if progress.stage == "uploading":
            print(progress.done, flush=True)

    with Client(server) as client:
        client.submit(path, on_progress=tell)


if __name__ == "__main__":
    _main(*sys.argv[1:])
