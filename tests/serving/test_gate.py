"""The gate: what passes, what does not, and where the alias is then."""

import json
import shlex
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from foldin import Client, Snapshot
from foldind.gate.keeper import MOST_LINES
from foldind.gate.verdict import LONGEST_ANSWER, judge, scores_of
from foldind.programs import Ended
from foldind.state.records import GateVerdict

from tests.support.daemon import Daemon, foldin, foldind, wait_for
from tests.support.history import VERSIONS, History
from tests.support.http import ask, scrape
from tests.support.models import base_tensors
from tests.support.wire import Wire, fine_tuned, single, state

NEXT = VERSIONS + 1

PASSES = """echo loading; echo "{\\"ACC\\": 0.$FOLDIN_VERSION, \\"tasks\\": {\\"a\\": 1}}" """


@pytest.fixture
def gated(past: History, tmp_path: Path) -> Callable[..., Daemon]:
    """A daemon over a history of four versions, with a gate."""

    def make(command: str, *flags: str, **settings: str) -> Daemon:
        environment = {f"FOLDIN_GATE_{name.upper()}": value for name, value in settings.items()}
        copy = tmp_path / "state"
        return Daemon(
            copy if copy.exists() else past.copy(copy), None, "--gate", command, *flags, environment=environment
        )

    return make


def merge(daemon: Daemon) -> int:
    with Wire(daemon) as wire:
        submission = wire.settled(wire.upload(single(fine_tuned(base_tensors()))).id)
        assert state(submission) == "MERGED"
        return submission.version


def verdict(client: Client, version: int) -> str:
    gate = client.show(f"v{version}").gate
    return gate.verdict if gate else ""


def judged(client: Client, version: int) -> Snapshot:
    """Wait until the gate said what it has to say of a version."""
    wait_for(lambda: verdict(client, version) not in ("WAITING", "RUNNING"), f"the gate to judge v{version}", 60)
    return client.show(f"v{version}")


def stable(client: Client) -> list[int]:
    return [snapshot.version for snapshot in client.snapshots() if "stable" in snapshot.aliases]


def gated_files(folder: Path) -> str:
    """A command that waits for a file named go-N, and passes unless that holds a reason."""
    wanted = shlex.quote(str(folder))
    return (
        f"touch {wanted}/at-$FOLDIN_VERSION; until test -e {wanted}/go-$FOLDIN_VERSION; do sleep 0.05; done; "
        f"cat {wanted}/go-$FOLDIN_VERSION >&2; ! test -s {wanted}/go-$FOLDIN_VERSION"
    )


def test_what_passes_is_named(gated: Callable[..., Daemon]) -> None:
    with gated(PASSES) as daemon, daemon.client() as client:
        assert verdict(client, VERSIONS) == "", "what was merged before there was a gate is not asked about"
        follow = client.watch_snapshots("stable")
        assert merge(daemon) == NEXT
        assert next(follow).version == NEXT, "who watches the alias is told"
        gate = judged(client, NEXT).gate
        assert gate is not None
        assert (gate.verdict, gate.reason, gate.scores) == ("PASSED", "", {"ACC": pytest.approx(0.5)})
        assert stable(client) == [NEXT]
        assert gate.judged_at is not None
        assert client.show(f"v{NEXT}").created_at <= gate.judged_at <= datetime.now(UTC)
        assert 0 < gate.seconds < 60
        shown = foldin("show", f"v{NEXT}", "--server", daemon.server).stdout
        assert f"PASSED after {gate.seconds:.1f} s, {gate.judged_at:%Y-%m-%d %H:%M:%S} UTC" in shown
        assert "ACC  0.5" in shown
        assert (
            json.loads(foldin("show", "stable", "--json", "--server", daemon.server).stdout)["gate"] == gate.to_json()
        )
        assert "gate" in foldin("snapshots", "--server", daemon.server).stdout.splitlines()[0]
        assert client.publish("mean").gate is None, "another publication is another model, and was not asked about"
        samples = scrape(daemon.http)
        assert samples("foldin_gate_runs_total", outcome="passed") == samples("foldin_gate_seconds_count") == 1
        assert samples("foldin_gate_score", score="ACC", of="newest") == 0.5
        assert samples("foldin_gate_score", score="ACC", of="named") == 0.5
        assert samples("foldin_gate_waiting") == 0


def test_what_fails_is_not(gated: Callable[..., Daemon]) -> None:
    with gated('echo \'{"ACC": 0.25}\'; echo warming up >&2; echo "ACC fell to 0.25" >&2; exit 3') as daemon:
        with daemon.client() as client:
            client.set_alias("stable", 2)
            merge(daemon)
            gate = judged(client, NEXT).gate
            assert gate is not None
            assert (gate.verdict, gate.scores) == ("FAILED", {"ACC": 0.25})
            assert gate.reason == "the gate's command ended with status 3: ACC fell to 0.25"
            assert stable(client) == [2]
            assert client.show("latest").version == NEXT
        samples = scrape(daemon.http)
        assert samples("foldin_gate_runs_total", outcome="failed") == 1
        assert not samples.has("foldin_gate_score", of="named")
        assert f"v{NEXT} did not pass the gate (ACC 0.25); stable stays" in daemon.log.read_text()


WRONG = {
    "exit 255": "ended with status 255",
    "kill -SEGV $$": "ended by signal 11",
    "nowhere-to-be-found": "ended with status 127: ",
    "yes": f"printed more than {LONGEST_ANSWER} bytes",
    "printf '{\"ACC\": NaN}'": "no finite number",
    "printf \"{'ACC': 1}\"": "no valid JSON",
}


def test_what_is_no_verdict(gated: Callable[..., Daemon]) -> None:
    cases = "".join(f"{NEXT + number}) {command};; " for number, command in enumerate(WRONG))
    with gated(f"case $FOLDIN_VERSION in {cases} esac") as daemon, daemon.client() as client:
        for told in WRONG.values():
            gate = judged(client, merge(daemon)).gate
            assert gate is not None
            assert gate.verdict == "FAILED"
            assert told in gate.reason
        assert stable(client) == []


def test_what_takes_too_long(gated: Callable[..., Daemon]) -> None:
    with gated("echo half way >&2; sleep 1000 & wait", timeout="3") as daemon, daemon.client() as client:
        gate = judged(client, merge(daemon)).gate
        assert gate is not None
        assert (gate.verdict, gate.reason) == ("FAILED", "the gate's command took more than 3 s: half way")


def test_a_gate_that_cannot_even_be_asked_stops_nothing(past: History, tmp_path: Path) -> None:
    state = past.copy(tmp_path / "state")
    with (state / "foldin.toml").open("a") as settings:
        settings.write('gate = "true \\u0000"\n')  # the [serve] table is the last
    with Daemon(state, None) as daemon, daemon.client() as client:
        numbers = [merge(daemon) for _ in range(2)]
        assert [verdict(client, number) for number in numbers] == ["RUNNING", "WAITING"]
        wait_for(lambda: "the gate waits: embedded null byte" in daemon.log.read_text(), "the log to say why")
        assert daemon.terminate() == 0


def test_what_it_says_is_in_the_log_and_what_it_leaves_behind_is_ended(
    gated: Callable[..., Daemon], tmp_path: Path
) -> None:
    command = f"echo weighing >&2; seq 1 {2 * MOST_LINES} >&2; sleep 1000 & echo $! > {shlex.quote(str(tmp_path))}/left"
    with gated(command) as daemon, daemon.client() as client:
        gate = judged(client, merge(daemon)).gate
        assert gate is not None
        assert (gate.verdict, gate.reason, gate.scores) == ("PASSED", "", {})
        left = int((tmp_path / "left").read_text())
        wait_for(lambda: not psutil.pid_exists(left) or psutil.Process(left).status() == "zombie", "it to be ended")
        lines = [line for line in daemon.log.read_text().splitlines() if f"gate of v{NEXT}: " in line]
        assert len(lines) == MOST_LINES + 1
        assert lines[0].endswith("weighing")
        assert "the rest is left out" in lines[-1]


def test_every_end_is_a_verdict() -> None:
    for status in (None, *range(-64, 256)):
        gate = judge(Ended(status, b'{"ACC": 0.5}', "warming up\nout of cake"), 5)
        assert gate.scores == {"ACC": 0.5}
        passed = GateVerdict.PASSED if status == 0 else GateVerdict.FAILED
        assert gate.verdict is passed, status
        assert gate.reason.endswith(": out of cake") == (status != 0), status


def test_why_it_failed_goes_before_what_is_wrong_with_its_scores() -> None:
    assert "status 3: no disk" in judge(Ended(3, b'{"ACC": Na', "no disk"), 5).reason


@pytest.mark.parametrize("output", [b"", b"fine", b"[1]", b'{"a": "b", "c": true, "d": null}', b"{}", b"\xff"])
def test_what_says_no_scores(output: bytes) -> None:
    assert scores_of(output) == {}


@pytest.mark.parametrize(
    "output",
    [
        b"{",
        b"{'a': 1}",
        b"done\n{'a': 1}\n",
        b'loading\n{\n"a": 1\n}',
        b'{"a": 1, "b": [%s' % (b"[" * 100_000),
        b'{"a": %s}' % (b"1" * 5000),
    ],
)
def test_what_is_meant_as_json_and_is_none(output: bytes) -> None:
    with pytest.raises(ValueError, match="no valid JSON object"):
        scores_of(output)


@pytest.mark.parametrize(
    "output",
    [
        b'{"a": Infinity}',
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"": 1}',
        b'{"a\\n": 1}',
        b'{"\\u0007": 1}',
        b'{"\\ud800": 1}',
        b'{"%s": 1}' % (b"x" * 65),
        b'{"a": 1%s}' % (b"0" * 400),
    ],
)
def test_what_are_no_scores(output: bytes) -> None:
    with pytest.raises(ValueError, match="score"):
        scores_of(output)


def test_too_many_scores() -> None:
    assert len(scores_of(json.dumps({str(number): number for number in range(64)}).encode())) == 64
    with pytest.raises(ValueError, match="65 scores"):
        scores_of(json.dumps({str(number): number for number in range(65)}).encode())


def test_merges_go_on_and_each_version_has_its_turn(gated: Callable[..., Daemon], tmp_path: Path) -> None:
    with gated(gated_files(tmp_path)) as daemon, daemon.client() as client:
        numbers = [merge(daemon) for _ in range(3)]
        assert [verdict(client, number) for number in numbers] == ["RUNNING", "WAITING", "WAITING"]
        assert scrape(daemon.http)("foldin_gate_waiting") == 3
        (tmp_path / f"go-{NEXT + 1}").touch()
        (tmp_path / f"go-{NEXT + 2}").write_text("it forgot everything\n")
        (tmp_path / f"go-{NEXT}").touch()
        assert [judged(client, number).gate.verdict for number in numbers] == ["PASSED", "PASSED", "FAILED"]  # type: ignore[union-attr]
        assert stable(client) == [NEXT + 1]


def test_an_alias_that_a_person_moved_ahead_stays(gated: Callable[..., Daemon], tmp_path: Path) -> None:
    with gated(gated_files(tmp_path)) as daemon, daemon.client() as client:
        first, second = merge(daemon), merge(daemon)
        client.set_alias("stable", second)
        (tmp_path / f"go-{first}").touch()
        assert judged(client, first).gate.verdict == "PASSED"  # type: ignore[union-attr]
        assert stable(client) == [second]


def test_what_is_rolled_back_is_never_named(gated: Callable[..., Daemon], tmp_path: Path) -> None:
    with gated(gated_files(tmp_path)) as daemon, daemon.client() as client:
        merge(daemon)
        wait_for((tmp_path / f"at-{NEXT}").exists, "the gate to be asked")
        client.rollback(NEXT)
        waiting = merge(daemon)
        client.rollback(waiting)
        (tmp_path / f"go-{NEXT}").touch()
        assert judged(client, NEXT).gate.verdict == "PASSED"  # type: ignore[union-attr]
        skipped = judged(client, waiting).gate
        assert skipped is not None
        assert (skipped.verdict, skipped.reason) == ("SKIPPED", "it was rolled back before its turn")
        assert stable(client) == []


def test_files_stay_while_the_gate_reads_them(gated: Callable[..., Daemon], tmp_path: Path) -> None:
    with gated(gated_files(tmp_path), "--keep-snapshots", "1", "--lease", "0") as daemon, daemon.client() as client:
        numbers = [merge(daemon) for _ in range(4)]
        wait_for(lambda: client.show(f"v{numbers[1]}").state == "PRUNED", "what only waits to be pruned", 60)
        assert client.show(f"v{numbers[0]}").state == "PUBLISHED"
        assert (daemon.state / "snapshots" / f"v{numbers[0]}").is_dir()
        for number in numbers:
            (tmp_path / f"go-{number}").touch()
        found = [judged(client, number).gate for number in numbers]
        assert [gate.verdict for gate in found if gate] == ["PASSED", "SKIPPED", "PASSED", "PASSED"]
        wait_for(lambda: client.show(f"v{numbers[0]}").state == "PRUNED", "it to be pruned afterwards", 60)
    assert foldind("fsck", "--state", str(daemon.state)).returncode == 0


def commands(folder: Path) -> Iterator[psutil.Process]:
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or ()
        if "--gate" not in words and any(str(folder) in word and "until test" in word for word in words):
            yield process


@pytest.mark.parametrize("signalled", [True, False], ids=["stopped", "killed"])
def test_an_interrupted_one_is_asked_again(gated: Callable[..., Daemon], tmp_path: Path, signalled: bool) -> None:
    with gated(gated_files(tmp_path)) as daemon:
        merge(daemon)
        wait_for((tmp_path / f"at-{NEXT}").exists, "the gate to be asked")
        assert list(commands(tmp_path))
        if signalled:
            assert daemon.terminate() == 0
        else:
            daemon.kill()
        wait_for(lambda: not list(commands(tmp_path)), "it to end", 30)
    (tmp_path / f"go-{NEXT}").touch()
    with gated(gated_files(tmp_path)) as daemon, daemon.client() as client:
        assert judged(client, NEXT).gate.verdict == "PASSED"  # type: ignore[union-attr]
        assert stable(client) == [NEXT]


@pytest.mark.parametrize("secret", ["FOLDIN_HTTP_TOKEN", "foldin_http_token"])
def test_what_it_is_told(
    gated: Callable[..., Daemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, secret: str
) -> None:
    monkeypatch.setenv(secret, "hf_secret")
    said = tmp_path / "said"
    command = f"env | grep -i foldin_ > {said}-$FOLDIN_VERSION; echo '{{\"ACC\": 1}}'"
    with gated(command, alias="good") as daemon, daemon.client() as client:
        assert ask(daemon.http).status == 401
        for number in (NEXT, NEXT + 1):
            assert merge(daemon) == number
            judged(client, number)
        lines = (tmp_path / f"said-{NEXT + 1}").read_text().splitlines()
        told = dict(line.split("=", 1) for line in lines)
        assert told["FOLDIN_SNAPSHOT"] == str(daemon.state / "snapshots" / f"v{NEXT + 1}")
        assert (told["FOLDIN_VERSION"], told["FOLDIN_ALIAS"]) == (str(NEXT + 1), "good")
        assert told["FOLDIN_PASSED_SNAPSHOT"] == str(daemon.state / "snapshots" / f"v{NEXT}")
        assert json.loads(told["FOLDIN_PASSED_SCORES"]) == {"ACC": 1}
        assert secret not in told
        assert client.show("good").version == NEXT + 1


def test_an_alias_that_cannot_be_the_gates(past: History, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOLDIN_GATE_ALIAS", "latest")
    ended = foldind("serve", "--state", str(past.copy(tmp_path / "state")), check=False)
    assert ended.returncode == 1
    assert "choose another alias" in ended.stderr
