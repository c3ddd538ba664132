"""The image, the compose file and the unit: what can be said of them without running them."""

import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from foldin.follower.hooks import DEFAULT_SECONDS
from foldind.config import ServeSettings

from tests.deploy.conftest import DEPLOY, ROOT
from tests.support.daemon import BIN

Tool = Callable[[str], str]
EXPOSURE = 2.5
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
UNIT = (DEPLOY / "foldind.service").read_text()
UNITS = {"foldind.service": "foldind serve ", "foldin-follow.service": "foldin follow "}


def run(*command: str | Path) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout + ended.stderr


def installed_unit(folder: Path, name: str) -> Path:
    """A unit as it would be if its virtual environment were this one."""
    unit = folder / name
    text = (DEPLOY / name).read_text()
    assert f"ExecStart=/opt/foldin/venv/bin/{UNITS[name]}" in text
    unit.write_text(text.replace("/opt/foldin/venv/bin", str(BIN)))
    return unit


@pytest.mark.parametrize("name", UNITS)
def test_the_unit_is_understood(tool: Tool, tmp_path: Path, name: str) -> None:
    assert run(tool("systemd-analyze"), "verify", "--man=no", installed_unit(tmp_path, name)) == ""


@pytest.mark.parametrize("name", UNITS)
def test_the_unit_exposes_little(tool: Tool, tmp_path: Path, name: str) -> None:
    told = run(tool("systemd-analyze"), "security", "--offline=true", installed_unit(tmp_path, name))
    exposure = re.search(rf"Overall exposure level for {name}: ([\d.]+)", told)
    assert exposure
    assert float(exposure[1]) < EXPOSURE


def test_the_unit_gives_a_merge_its_grace() -> None:
    stop = re.search(r"^TimeoutStopSec=(\d+)$", UNIT, re.MULTILINE)
    assert stop
    assert int(stop[1]) >= ServeSettings().shutdown_grace + 20
    grace = re.fullmatch(r"(\d+)s", COMPOSE["services"]["foldind"]["stop_grace_period"])
    assert grace
    assert int(grace[1]) >= ServeSettings().shutdown_grace + 20


def test_the_unit_of_a_follower_gives_a_hook_its_time() -> None:
    stop = re.search(r"^TimeoutStopSec=(\d+)$", (DEPLOY / "foldin-follow.service").read_text(), re.MULTILINE)
    assert stop
    assert int(stop[1]) >= DEFAULT_SECONDS + 60


def test_the_dockerfile_is_clean(tool: Tool) -> None:
    assert run(tool("hadolint"), DEPLOY / "Dockerfile") == ""


def test_the_image_is_nobodys_root_and_healthy() -> None:
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", DOCKERFILE, re.MULTILINE)
    health = re.search(r"HEALTHCHECK[^\[]*CMD (\[.*\])$", DOCKERFILE, re.MULTILINE)
    assert health
    assert "/healthz" in health[1]
    compile(yaml.safe_load(health[1])[2], "HEALTHCHECK", "exec")


def test_what_the_image_copies_is_there_and_sent() -> None:
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, re.MULTILINE)
        for source in shlex.split(line)[:-1]
    ]
    assert set(copied) == sent
    assert all((ROOT / source).exists() for source in copied)


def test_the_compose_file_fits_the_image() -> None:
    services = COMPOSE["services"]
    for name in ("init", "foldind"):
        build = services[name]["build"]
        assert (DEPLOY / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]).is_file()
    mounted = [volume.split(":")[0] for service in services.values() for volume in service["volumes"]]
    for source in mounted:
        if source.startswith("."):
            assert (DEPLOY / source).is_file()
        elif not source.startswith("$"):
            assert source in COMPOSE["volumes"]
    exposed = set(re.findall(r"^EXPOSE (.*)$", DOCKERFILE, re.MULTILINE)[0].split())
    assert {port.split(":")[-1] for port in services["foldind"]["ports"]} == exposed
    assert all(port.startswith("127.0.0.1:") for service in services.values() for port in service.get("ports", []))
