"""The metrics, the alerts and the configuration, judged by Prometheus' own tools and by a real Prometheus."""

import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode

import pytest
import yaml
from foldin.follower.metrics import metrics_text
from foldin.follower.record import Record

from tests.deploy.conftest import DEPLOY
from tests.support.daemon import Daemon, wait_for
from tests.support.http import ask

Tool = Callable[[str], str]
ALERTS = yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"][0]["rules"]


def run(*command: str | Path, text: str = "") -> str:
    ended = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def test_live_metrics_are_as_they_should_be(live: Daemon, tool: Tool) -> None:
    assert run(tool("promtool"), "check", "metrics", text=ask(f"{live.http}/metrics").text) == ""


def test_rules_and_configuration(tool: Tool) -> None:
    assert "SUCCESS" in run(tool("promtool"), "check", "rules", DEPLOY / "alerts.yml")
    assert "1 rule files found" in run(tool("promtool"), "check", "config", DEPLOY / "prometheus.yml")


def test_alerts_fire_when_they_should(tool: Tool, tmp_path: Path) -> None:
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    test = shutil.copy(Path(__file__).with_name("alerts_test.yml"), tmp_path)
    assert "SUCCESS" in run(tool("promtool"), "test", "rules", test)


def test_every_alert_is_tested() -> None:
    tested = Path(__file__).with_name("alerts_test.yml").read_text()
    assert {rule["alert"] for rule in ALERTS} <= set(re.findall(r"Foldin\w+", tested))


@pytest.mark.parametrize("rule", ALERTS, ids=[rule["alert"] for rule in ALERTS])
def test_metrics_that_an_alert_names_exist(live: Daemon, rule: dict[str, Any]) -> None:
    found = ask(f"{live.http}/metrics").text + metrics_text("latest", Record("model", None), target=1)
    named = re.findall(r"(foldin_\w+)(?:\{(\w+)=\"(\w+)\"\})?", rule["expr"])
    assert named or "up{" in rule["expr"]
    for name, label, value in named:
        labels = rf'\{{{label}="{value}"\}}' if label else r"(\{.*\})?"
        assert re.search(rf"^{name}{labels} ", found, re.MULTILINE), f"{name}{labels} is in no exposition"


def test_a_real_prometheus_scrapes_it(live: Daemon, tool: Tool, tmp_path: Path) -> None:
    port = free_port()
    target = live.http.removeprefix("http://")
    configuration = (DEPLOY / "prometheus.yml").read_text()
    assert "foldind:7072" in configuration
    configuration = configuration.replace("foldind:7072", target).replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(configuration)
    shutil.copy(DEPLOY / "alerts.yml", tmp_path)
    command = [
        tool("prometheus"),
        f"--config.file={tmp_path}/prometheus.yml",
        f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address=127.0.0.1:{port}",
    ]

    def query(expression: str) -> Any:
        try:
            answer = ask(f"http://127.0.0.1:{port}/api/v1/query?{urlencode({'query': expression})}")
        except URLError:  # not listening yet
            return None
        return json.loads(answer.text)["data"]["result"] if answer.status == 200 else None

    with (tmp_path / "log").open("wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as prometheus:
        try:
            wait_for(lambda: query('foldin_version{job="foldin"} == 1'), "a sample in Prometheus")
            (up,) = query('up{job="foldin"}')
            assert up["value"][1] == "1"
            assert query("scrape_samples_scraped > 100")
            rules = json.loads(ask(f"http://127.0.0.1:{port}/api/v1/rules").text)["data"]["groups"][0]["rules"]
            assert [rule["name"] for rule in rules] == [rule["alert"] for rule in ALERTS]
            wait_for(
                lambda: all(
                    rule["health"] == "ok"
                    for rule in json.loads(ask(f"http://127.0.0.1:{port}/api/v1/rules").text)["data"]["groups"][0][
                        "rules"
                    ]
                ),
                "every rule to be evaluated",
            )
            # A machine whose disk is nearly full is none of this test's business.
            others = 'ALERTS{alertname!="FoldinDiskNearlyFull"}'
            wait_for(lambda: query(others) == [], "the absence before the first scrape to be forgotten")
        finally:
            prometheus.send_signal(signal.SIGTERM)
