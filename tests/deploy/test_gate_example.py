"""The gate that comes with the project: what it lets pass, by a scorer and by a daemon that asks it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from foldin import FoldinError

from tests.support.daemon import Daemon, wait_for
from tests.support.models import make_base, make_checkpoint

GATE = Path(__file__).parents[2] / "deploy" / "gate" / "accuracy.py"
SCORER = (
    "import pathlib, sys; from safetensors.numpy import load_file;"
    "print('loading {'); print('{\\n\"ACC\":', float(load_file(pathlib.Path(sys.argv[1]) / 'model.safetensors')"
    "['logit_scale']), ', \"by\": {\"task\": 1}}')"
)


def asked(*flags: str, scorer: str, before: float | None = None) -> tuple[int, str, str]:
    environment = {"FOLDIN_SNAPSHOT": "there"}
    if before is not None:
        passed = {"VERSION": "7", "SNAPSHOT": "serving", "SCORES": json.dumps({"ACC": before} if before else {})}
        environment |= {f"FOLDIN_PASSED_{name}": value for name, value in passed.items()}
    command = [sys.executable, GATE, *flags, "--", sys.executable, "-c", scorer]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    return ended.returncode, ended.stdout, ended.stderr


@pytest.mark.parametrize(
    ("flags", "before", "told"),
    [
        ((), None, ""),
        (("--at-least", "0.5"), None, ""),
        (("--at-least", "0.51"), None, "ACC is 0.5, and 0.51 is the least"),
        (("--may-drop", "0.1"), None, ""),
        (("--may-drop", "0.1"), 0.59, ""),
        (("--may-drop", "0.1"), 0.61, "ACC is 0.5; v7 had 0.61, 0.1 may be lost"),
        (("--score", "BWT"), None, "the scorer tells no number BWT, but ACC: see --score"),
    ],
)
def test_what_passes(flags: tuple[str, ...], before: float | None, told: str) -> None:
    status, output, errors = asked(*flags, scorer="print('{\"ACC\": 0.5}')", before=before)
    assert json.loads(output) == {"ACC": 0.5}
    assert (bool(status), errors.strip()) == (bool(told), told)


@pytest.mark.parametrize(
    ("scorer", "told"),
    [
        ("raise SystemExit(3)", "status 3"),
        ("print('{')", "no JSON object"),
        ("print('[1]')", "no JSON object"),
        ("print('{\"ACC\": null}')", "no number ACC, but none at all"),
        ('print(\'{"ACC": NaN, "BWT": 0}\')', "no number ACC, but BWT"),
        ("print('{\"ACC\": true}')", "no number ACC"),
    ],
)
def test_a_scorer_that_fails(scorer: str, told: str) -> None:
    status, _, errors = asked(scorer=scorer)
    assert status == 1
    assert told in errors


@pytest.mark.parametrize(("serving", "told"), [(0.61, "v7 had 0.61"), (0.59, "")])
def test_what_serves_and_was_never_measured_is_scored(serving: float, told: str) -> None:
    scorer = f"import sys; print({{'serving': '{{\"ACC\": {serving}}}', 'there': '{{\"ACC\": 0.5}}'}}[sys.argv[1]])"
    status, output, errors = asked("--may-drop", "0.1", scorer=scorer, before=0)
    assert json.loads(output) == {"ACC": 0.5}
    assert (bool(status), told in errors) == (bool(told), True)


def test_a_scorer_that_is_not_there() -> None:
    command = [sys.executable, GATE, "--", "no-such-scorer"]
    ended = subprocess.run(command, env={"FOLDIN_SNAPSHOT": "there"}, capture_output=True, text=True, check=False)
    assert ended.stderr.strip() == "the scorer no-such-scorer cannot be run: No such file or directory"


@pytest.mark.long
def test_a_daemon_that_asks_it(tmp_path: Path) -> None:
    base = make_base(tmp_path / "base")
    gate = shlex.join([sys.executable, str(GATE), "--may-drop", "0", "--", sys.executable, "-c", SCORER])
    with Daemon(tmp_path / "state", base, "--gate", gate) as daemon, daemon.client() as client:
        for seed in range(1, 4):
            client.submit(make_checkpoint(tmp_path / str(seed), base, seed, scale=0.2), wait=True)
        wait_for(
            lambda: (gate := client.show("v3").gate) and gate.verdict in ("PASSED", "FAILED"), "v3 to be judged", 60
        )
        best, names = float("-inf"), 0
        for snapshot in client.snapshots():
            assert snapshot.gate is not None
            found = snapshot.gate.scores["ACC"]
            assert snapshot.gate.verdict == ("PASSED" if found >= best else "FAILED"), snapshot.gate
            if found >= best:
                best, names = found, snapshot.version
        try:
            assert client.show("stable").version == names
        except FoldinError as error:
            raise AssertionError(daemon.log.read_text()) from error
