"""Settings: where they come from, which goes before which, and what is said of a bad one."""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest
from foldind.config import (
    Configuration,
    MergeSettings,
    ServeSettings,
    check_forms,
    merge_settings,
    possible_forms,
    read_configuration,
)
from foldind.errors import InvalidRequest, StateError
from foldind.merging.catalog import CATALOG, OPTIONS
from foldind.state.configuration import configuration_text

from tests.support.commands import command
from tests.support.daemon import foldind


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("FOLDIN_"):
            monkeypatch.delenv(name)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "foldin.toml"


def configured(path: Path, serve: str = "", merge: MergeSettings | None = None) -> Configuration:
    path.write_text(configuration_text("0" * 64, merge or MergeSettings()) + serve)
    return read_configuration(path)


class TestMergeSettings:
    def test_survive_the_file(self, path: Path) -> None:
        settings = MergeSettings(
            alpha=1 / 3,
            cross_blocks="drop",
            projection="leading",
            summed=('a"b', "*größe\\*", ""),
            backend="numpy",
            threads=7,
        )
        configuration = configured(path, merge=settings)
        assert configuration.merge == settings
        assert configuration.merge.hyper_parameters == {"alpha": 1 / 3, "cross_blocks": "drop", "projection": "leading"}

    def test_defaults(self) -> None:
        settings = merge_settings(alpha=None, cross_blocks=None, summed=None, threads=None)
        assert settings == MergeSettings()
        assert (settings.rule, settings.alpha, settings.cross_blocks) == ("opcm", 0.5, "keep")
        assert (settings.projection, settings.backend, settings.threads) == ("exact", "torch", 1)

    @pytest.mark.parametrize("alpha", [0.0, 0.5, 0.999999])
    def test_alpha(self, path: Path, alpha: float) -> None:
        assert configured(path, merge=merge_settings(alpha=alpha)).merge.alpha == alpha

    @pytest.mark.parametrize("alpha", [-0.1, 1.0, 1.5, float("nan"), float("inf"), "half"])
    def test_alpha_out_of_range(self, alpha: float) -> None:
        with pytest.raises(StateError, match="alpha"):
            merge_settings(alpha=alpha)

    @pytest.mark.parametrize(
        ("name", "value"),
        [("cross_blocks", "some"), ("threads", 0), ("threads", 1.5), ("rule", "tides"), ("density", 0.5), ("beta", 1)],
    )
    def test_malformed(self, name: str, value: object) -> None:
        with pytest.raises(StateError, match=name):
            merge_settings(**{name: value})

    @pytest.mark.parametrize("rule", CATALOG)
    def test_every_rule_has_its_options_and_publication(self, path: Path, rule: str) -> None:
        entry = CATALOG[rule]
        settings = configured(path, merge=merge_settings(rule=rule)).merge
        assert (settings.rule, settings.publication("")) == (rule, entry.publication)
        assert settings.hyper_parameters == entry.options
        assert all(getattr(settings, option) is None for option in OPTIONS - entry.options.keys())

    @pytest.mark.parametrize(
        ("rule", "option", "value"),
        [("ties", "alpha", 0.5), ("opcm", "density", 0.5), ("dare", "outliers", 0.1), ("average", "density", 0.5)],
    )
    def test_options_of_other_rules(self, rule: str, option: str, value: float) -> None:
        with pytest.raises(StateError, match=f"the rule '{rule}' takes .*, and not {option}"):
            merge_settings(rule=rule, **{option: value})

    @pytest.mark.parametrize(("option", "value"), [("density", 0.0), ("density", 1.1), ("outliers", 1.0)])
    def test_options_out_of_range(self, option: str, value: float) -> None:
        with pytest.raises(StateError, match=option):
            merge_settings(rule="breadcrumbs", **{option: value})

    @pytest.mark.parametrize(
        ("rule", "publication", "divides"),
        [
            ("opcm", "norm", True),
            ("opcm", "flat:2.0", False),
            ("average", "tensor_norm", False),
            ("iso", "", False),
            ("ties", "ties:0.5", False),
            ("dare", "", True),
        ],
    )
    def test_publications(self, rule: str, publication: str, divides: bool) -> None:
        settings = merge_settings(rule=rule)
        chosen = settings.publication(publication)
        assert chosen == (publication or CATALOG[rule].publication)
        check_forms(chosen, settings, ["model"])
        with nullcontext() if divides else pytest.raises(InvalidRequest, match="cannot be exported as a LoRA adapter"):
            check_forms(chosen, settings, ["model", "adapter"])
        assert possible_forms(chosen, settings, ["model", "adapter"]) == (
            ("model", "adapter") if divides else ("model",)
        )
        with nullcontext() if divides else pytest.raises(InvalidRequest, match="cannot be exported as a LoRA adapter"):
            assert possible_forms(chosen, settings, ["adapter"]) == ("adapter",)

    @pytest.mark.parametrize(("rule", "publication"), [("ties", "norm"), ("opcm", "ties"), ("opcm", "flat:-1")])
    def test_publications_that_there_are_not(self, rule: str, publication: str) -> None:
        with pytest.raises(InvalidRequest, match=r"publication|above 0"):
            merge_settings(rule=rule).publication(publication)

    def test_leading_has_not_all_singular_vectors(self) -> None:
        with pytest.raises(InvalidRequest, match="projection = exact"):
            merge_settings(projection="leading").publication("flat")


class TestLayers:
    def test_defaults(self, path: Path) -> None:
        assert configured(path).serve_settings().model_dump() == ServeSettings().model_dump()

    def test_every_commented_setting_is_one_and_shows_its_default(self, path: Path) -> None:
        lines = configuration_text("0" * 64, MergeSettings()).partition("[serve]")[2].splitlines()[1:]
        told = [line.removeprefix("# ") for line in lines]
        settings = configured(path, "\n".join(told) + "\n").serve_settings()
        default = ServeSettings()
        assert {line.split(" = ")[0] for line in told} == ServeSettings.model_fields.keys()
        for name in ServeSettings.model_fields.keys() - {"ignore", "allowed_roots", "inbox"}:
            assert getattr(settings, name) == getattr(default, name)

    def test_flags_before_environment_before_file(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        configuration = configured(path, 'lease = 1\nkeep_snapshots = 1\nlog_level = "debug"\n')
        monkeypatch.setenv("FOLDIN_KEEP_SNAPSHOTS", "2")
        monkeypatch.setenv("FOLDIN_LOG_LEVEL", "warning")
        settings = configuration.serve_settings(log_level="error", lease=None)
        assert (settings.lease, settings.keep_snapshots, settings.log_level) == (1, 2, "error")

    def test_lists(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        configuration = configured(path, 'ignore = ["a.*"]\nallowed_roots = ["/data"]\n')
        assert configuration.serve_settings().ignore == ("a.*",)
        monkeypatch.setenv("FOLDIN_IGNORE", '["b.*", "c"]')
        settings = configuration.serve_settings()
        assert (settings.ignore, settings.allowed_roots) == (("b.*", "c"), (Path("/data"),))
        assert configuration.serve_settings(ignore=["d"]).ignore == ("d",)

    def test_variables_of_the_client_and_of_nobody_are_left_alone(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("FOLDIN_SERVER", "merge.example.org:7070")
        monkeypatch.setenv("FOLDIN_TEST_SEED", "1")
        assert configured(path).serve_settings().model_dump() == ServeSettings().model_dump()

    @pytest.mark.parametrize(
        ("name", "text", "value"),
        [
            ("keep_snapshots", '"many"', "many"),
            ("keep_snapshots", "0", "0"),
            ("lease", "-1", "-1"),
            ("log_level", '"loud"', "loud"),
            ("max_attempts", "0", "0"),
            ("retry_disk_every", "0", "0"),
            ("shutdown_grace", '"soon"', "soon"),
            ("ignore", "3", "3"),
        ],
    )
    def test_malformed_values(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: str
    ) -> None:
        with pytest.raises(StateError, match=name):
            configured(path, f"{name} = {text}\n").serve_settings()
        configuration = configured(path)
        with pytest.raises(StateError, match=name):
            configuration.serve_settings(**{name: value})
        monkeypatch.setenv(f"FOLDIN_{name.upper()}", value)
        with pytest.raises(StateError, match=name):
            configuration.serve_settings()

    @pytest.mark.parametrize("name", ["ignore", "allowed_roots"])
    def test_a_list_that_is_no_json_in_the_environment(
        self, path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        monkeypatch.setenv(f"FOLDIN_{name.upper()}", "classifier.*")
        with pytest.raises(StateError, match=f"(?i){name}"):
            configured(path).serve_settings()

    def test_unknown_keys(self, path: Path) -> None:
        with pytest.raises(StateError, match="keep_snapshot"):
            configured(path, "keep_snapshot = 3\n").serve_settings()


class TestFile:
    @pytest.mark.parametrize(
        ("change", "word"),
        [
            (("format = 1", "format = 2"), "format"),
            (("format = 1", ""), "format"),
            (("base_digest", "base_digests"), "base_digest"),
            (("alpha = 0.5", "alpha = 1.0"), "alpha"),
            (("alpha = 0.5", "alpha = 'half'"), "alpha"),
            (("alpha = 0.5", "beta = 0.5"), "beta"),
            (("[merge]", "[merges]"), "merge"),
            (("[serve]", "[server]"), "server"),
            (("format = 1", "format = "), "TOML"),
        ],
    )
    def test_malformed(self, path: Path, change: tuple[str, str], word: str) -> None:
        path.write_text(configuration_text("0" * 64, MergeSettings()).replace(*change, 1))
        with pytest.raises(StateError, match=word) as caught:
            read_configuration(path)
        assert str(path) in str(caught.value)
        assert caught.value.hint

    def test_no_text(self, path: Path) -> None:
        path.write_bytes(b'format = 1\nbase_digest = "\xff"\n')
        with pytest.raises(StateError, match=r"foldin\.toml"):
            read_configuration(path)

    def test_missing(self, path: Path) -> None:
        with pytest.raises(StateError, match=r"no state folder.*foldind init"):
            read_configuration(path)


@pytest.mark.parametrize(
    ("flag", "value", "word"),
    [
        ("--log-level", "loud", "log_level"),
        ("--grpc", "7070", "7070"),
        ("--grpc", ":7070", ":7070"),
        ("--grpc", "127.0.0.1:", "127.0.0.1"),
        ("--grpc", "127.0.0.1:grpc", "grpc"),
        ("--grpc", "127.0.0.1:65536", "65536"),
        ("--grpc", "127.0.0.1:-1", "-1"),
    ],
)
def test_the_daemon_ends_with_a_sentence(path: Path, flag: str, value: str, word: str) -> None:
    configured(path)
    ended = command("serve", "--state", path.parent, flag, value)
    assert ended.status == 1
    assert word in ended.stderr


def test_an_address_that_is_nobodys(tmp_path: Path, base: Path) -> None:
    foldind("init", "--backend", "numpy", "--base", str(base), "--state", str(tmp_path / "state"))
    ended = foldind("serve", "--state", str(tmp_path / "state"), "--grpc", "nowhere.invalid:7070", check=False)
    assert ended.returncode == 1
    assert "cannot listen on nowhere.invalid:7070" in ended.stderr
    assert "Traceback" not in ended.stderr
