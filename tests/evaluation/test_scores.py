"""The evaluation command, and what it may answer."""

import asyncio
import shlex
import sys
import time
from pathlib import Path

import psutil
import pytest
from foldind.errors import InvalidRequest
from foldind.evaluation.scores import ScoringCommand, ScoringFailed

from tests.support.daemon import wait_for


def score(folder: Path, program: str, timeout: float = 0, tasks: tuple[str, ...] = ("a", "b")) -> dict[str, float]:
    """Have a program of Python score."""
    command = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {{model}} '{{tasks}}'"
    return asyncio.run(ScoringCommand(command, timeout).score(folder, tasks))


@pytest.mark.parametrize(
    "answer",
    [
        '{"accuracy": {"a": 0.25, "b": 1, "c": "?"}, "ACC": 17}',
        '{"a": 0.25, "b": 1.0}',
        '{\n "a": 0.25,\n "b": 1.0\n}\n\n',
        'loading {"a": 1}\n{"a": 0.25, "b": 1.0}\n',
    ],
)
def test_answers(tmp_path: Path, answer: str) -> None:
    assert score(tmp_path, f"print({answer!r})") == {"a": 0.25, "b": 1.0}


def test_the_program_gets_what_it_was_told(tmp_path: Path) -> None:
    folder = tmp_path / "a model; of mine {tasks}"
    folder.mkdir()
    (program := tmp_path / "program.py").write_text(
        f"import sys\nassert sys.argv[1:] == ['--of={folder}', 'a,b', '$HOME']\nprint('{{\"a\": 0, \"b\": 0}}')"
    )
    command = ScoringCommand(f"'{sys.executable}' {program} --of={{model}} {{tasks}} $HOME")
    assert command.chooses
    # The path's own {tasks} is left alone, and nothing is a shell's.
    assert asyncio.run(command.score(folder, ("a", "b"))) == {"a": 0, "b": 0}


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("print('it went well')", ("no JSON object", "it went well", "accuracy")),
        ("pass", ("printed nothing", "as JSON")),
        ("print('[0.5, 0.5]')", ("no JSON object",)),
        ("print('[' * 100000)", ("no JSON object",)),
        ("print('{\"a\": 0.5}')", ("no accuracy of b",)),
        ('print(\'{"accuracy": {"b": 0.5}, "a": 1}\')', ("no accuracy of a",)),
        ('print(\'{"a": NaN, "b": 0.5}\')', ("'nan'", "accuracy of a", "no number")),
        ('print(\'{"a": 0.5, "b": -Infinity}\')', ("'-inf'", "accuracy of b")),
        ('print(\'{"a": "0.5", "b": 0.5}\')', ("'0.5'", "no number")),
        ('print(\'{"a": true, "b": 0.5}\')', ("'True'", "no number")),
        ('print(\'{"a": null, "b": 0.5}\')', ("'None'", "no number")),
        ("print('{\"a\": 1' + '0' * 400 + ', \"b\": 0.5}')", ("accuracy of a",)),
        ('print(\'{"a": 87.5, "b": 0.5}\')', ("87.5", "no share in 0..1")),
        ('print(\'{"a": -0.1, "b": 0.5}\')', ("-0.1", "no share in 0..1")),
        ("print('x' * 2**25)", ("more than 16777216 bytes",)),
        ("import sys; sys.stderr.write('x' * 10**6 + 'out of cake'); sys.exit(3)", ("status 3", "xxout of cake")),
        ("raise RuntimeError('no head for b')", ("status 1", "RuntimeError: no head for b")),
        ("import os; os.kill(os.getpid(), 9)", ("signal 9 (Killed)",)),
    ],
)
def test_hostile_answers(tmp_path: Path, program: str, words: tuple[str, ...]) -> None:
    with pytest.raises(ScoringFailed) as caught:
        score(tmp_path, program)
    for word in ("the evaluation command", *words):
        assert word in str(caught.value)
    assert len(str(caught.value)) < 2500


def test_a_program_that_takes_too_long_is_ended_with_what_it_started(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time; child = subprocess.Popen(['sleep', '1000']);"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid));"
        "print('half way', file=sys.stderr, flush=True); time.sleep(1000)"
    )
    started = time.monotonic()
    with pytest.raises(ScoringFailed, match=r"more than 1 s; see --timeout; .*\nhalf way"):
        score(tmp_path, program, timeout=1)
    assert time.monotonic() - started < 20
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie", "the child to go")


def test_what_a_program_leaves_behind_is_ended(tmp_path: Path) -> None:
    program = (
        "import subprocess; child = subprocess.Popen(['sleep', '30']);"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid)); child.returncode = 0;"
        'print(\'{"a": 0.5, "b": 0.5}\')'
    )
    started = time.monotonic()
    assert score(tmp_path, program) == {"a": 0.5, "b": 0.5}
    assert time.monotonic() - started < 20
    child = int((tmp_path / "child").read_text())
    wait_for(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == "zombie", "the child to go")


@pytest.mark.parametrize(
    ("command", "word"),
    [("score.py", "no {model}"), ("score.py '{model}", "quot"), ("", "no {model}")],
)
def test_commands_that_make_no_sense(command: str, word: str) -> None:
    with pytest.raises(InvalidRequest, match=word):
        ScoringCommand(command)


def test_a_program_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ScoringFailed, match=r"no-such-program: No such file"):
        asyncio.run(ScoringCommand("no-such-program {model}").score(tmp_path, ["a"]))
