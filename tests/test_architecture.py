"""Which room may know of which, held by reading the imports."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DAEMON = ROOT / "daemon" / "foldind"
CLIENT = ROOT / "clients" / "foldin"

LEVELS = (
    {"errors", "lines"},
    {"memory", "changes", "logs", "metrics", "programs", "pulse", "systemd"},
    {"checkpoints", "merging"},
    {"config"},
    {"state"},
    {"worker"},
    {"documents"},
    {"intake", "sealing"},
    {"attempt", "gate", "housekeeping", "preparation", "republication"},
    {"service"},
    {"serving"},
    {"app", "evaluation"},
    {"cli"},
)
"""The rooms of the daemon, from the ground up: each may know of those below it, and not of its neighbours."""

WITH_TORCH = (
    "merging.*",
    "checkpoints.tensors",
    "state.accumulators",
    "state.basisfile",
    "worker.accumulate",
    "worker.fold",
    "worker.folding",
    "worker.large",
    "worker.merged_adapter",
    "worker.merged_model",
    "worker.ordered",
    "worker.prepare",
    "worker.selftest",
    "worker.taskvectors",
    "worker.taskvectors.*",
)
"""What may import torch."""

MOST_LINES = 300


def modules(package: Path) -> dict[str, Path]:
    """Module name within a package -> file; the generated ones are left out."""
    return {
        ".".join(path.relative_to(package).with_suffix("").parts).removesuffix(".__init__"): path
        for path in sorted(package.rglob("*.py"))
        if "v1" not in path.relative_to(package).parts
    }


OURS = modules(DAEMON)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def imports(path: Path) -> Iterator[str]:
    """Names of everything that a file imports, as `package.module` or `package.module.name`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def known(path: Path) -> set[str]:
    """The daemon's own modules that a file imports."""
    found = set()
    for name in imports(path):
        package, _, inner = name.partition(".")
        if package == "foldind":
            found.add(inner if inner in OURS else inner.rpartition(".")[0])
    return {name for name in found if name}


def room(module: str) -> str:
    return module.partition(".")[0]


def level(module: str) -> int:
    (found,) = (number for number, rooms in enumerate(LEVELS) if room(module) in rooms)
    return found


def reachable(start: str, *, packages: bool = True) -> set[str]:
    """Every module that is loaded with one, wherever the import stands, and the packages they lie in."""
    seen, to_see = set(), {start}
    while to_see:
        name = to_see.pop()
        seen.add(name)
        package = {name.rpartition(".")[0]} if packages and "." in name else set()
        to_see |= (known(OURS[name]) | package) - seen
    return seen


def test_every_module_has_a_room() -> None:
    assert {room(module) for module in OURS} - {"__init__"} == set().union(*LEVELS)


@pytest.mark.parametrize("module", [name for name in OURS if name != "__init__"])
def test_imports_point_one_way(module: str) -> None:
    for other in known(OURS[module]):
        if room(other) != room(module):
            assert level(other) < level(module), f"{module} imports {other}"


def test_no_two_modules_need_each_other() -> None:
    for module in OURS:
        for other in known(OURS[module]):
            assert module not in reachable(other, packages=False), f"{module} and {other} import each other"


def test_merging_is_pure() -> None:
    allowed = {"torch", "numpy", "contextlib", "collections", "functools", "typing", "types", "math"}
    for module, path in OURS.items():
        if room(module) == "merging":
            packages = {name.partition(".")[0] for name in imports(path)}
            assert packages - {"foldind"} <= allowed, module
            assert all(room(other) == "merging" for other in known(path)), module


def test_who_imports_torch() -> None:
    found = {name for name, path in OURS.items() if any(n.partition(".")[0] == "torch" for n in imports(path))}
    may = {name for name in OURS for pattern in WITH_TORCH if Path(name).match(pattern)} | {"merging"}
    assert found <= may
    assert {"worker.merged_model", "checkpoints.tensors", "merging.opcm"} <= found


def test_the_daemon_reaches_nothing_that_imports_torch() -> None:
    for start in ("app", "cli"):
        assert not {name for name in reachable(start) if any(n.startswith("torch") for n in imports(OURS[name]))}
    assert "worker.fold" in reachable("worker.__main__"), "what this test would notice"


def test_only_durable_makes_durable() -> None:
    for module, path in OURS.items():
        if module == "state.durable":
            continue
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                name, where = node.func.attr, f"{module}:{node.lineno}"
                assert name not in {"fsync", "fdatasync", "sync_file_range", "rename", "renames", "link_to"}, where
                # Of strings `replace` takes two arguments, of paths one, of `os` it is a call of `os`.
                owner = node.func.value
                of_os = isinstance(owner, ast.Name) and owner.id in {"os", "shutil"}
                assert name != "replace" or (len(node.args) >= 2 and not of_os), where
                assert not (of_os and name == "move"), where
        names = set(imports(path))
        assert not names & {"os.fsync", "os.rename", "os.replace", "shutil.move"}, module


@pytest.mark.parametrize("package", [DAEMON, CLIENT], ids=["foldind", "foldin"])
def test_modules_are_short(package: Path) -> None:
    lengths = {name: len(path.read_text().splitlines()) for name, path in modules(package).items()}
    assert {name: length for name, length in lengths.items() if length >= MOST_LINES} == {}


def test_the_client_knows_nothing_of_the_daemon() -> None:
    for module, path in modules(CLIENT).items():
        packages = {name.partition(".")[0] for name in imports(path)}
        assert not packages & {"foldind", "transformers", "pydantic"}, module
        assert "torch" not in packages or module == "conversion", f"{module}: who submits has no torch"


def test_the_contract_is_all_that_they_share() -> None:
    for module, path in OURS.items():
        foreign = {name for name in imports(path) if name.split(".")[0] == "foldin"}
        assert all(name.startswith("foldin.v1") for name in foreign), module
        assert not foreign or room(module) in {"serving", "app"}, module
