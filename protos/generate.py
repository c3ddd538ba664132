"""Generate the Python of the contract into clients/foldin/v1.

usage: python protos/generate.py [--check]

With --check nothing is written; exit status 1 if what is committed differs from what would be generated.
"""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
COMMITTED = PROTOS.parent / "clients" / "foldin" / "v1"


def generate(target: Path) -> None:
    """Write the generated modules below target, in the package folders foldin/v1."""
    sources = sorted(str(path) for path in (PROTOS / "foldin" / "v1").glob("*.proto"))
    includes = [f"-I{PROTOS}", f"-I{Path(protoc.__file__).parent / '_proto'}"]
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", *includes, *outputs, *sources]) != 0:
        sys.exit("protoc failed")


def main() -> None:
    """Generate, or with --check compare."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = {path.name: path.read_bytes() for path in (Path(folder) / "foldin" / "v1").iterdir()}
    committed = {path.name: path.read_bytes() for path in COMMITTED.glob("*_pb2*")}
    if "--check" in sys.argv[1:]:
        stale = sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))
        if stale:
            sys.exit(f"generated code is out of date: {', '.join(stale)}; run `make generate`")
        return
    for name in committed.keys() - fresh.keys():
        (COMMITTED / name).unlink()
    for name, content in fresh.items():
        (COMMITTED / name).write_bytes(content)


if __name__ == "__main__":
    main()
