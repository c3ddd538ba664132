"""Settings.

`[merge]` of foldin.toml is fixed when the state folder is made: equal submissions then give equal bytes. `[serve]`
may be changed between runs, and is overridden by environment variables FOLDIN_*, and those by flags.
"""

import re
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from foldind.checkpoints.plan import SUMMED_PATTERNS
from foldind.checkpoints.vocabulary import VocabPolicy
from foldind.errors import InvalidRequest, StateError
from foldind.logs import LogFormat
from foldind.merging.catalog import CATALOG, DIVIDING, OPTIONS, SPECTRAL, CrossBlocks, ProjectionKind, parse_publication

FORMAT = 1

Seconds = Annotated[float, Field(ge=0)]


def _check_address(address: str) -> str:
    host, _, port = address.rpartition(":")
    if not host or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ValueError(f"{address!r} is not HOST:PORT")
    return address


OptionalPath = Annotated[Path | None, BeforeValidator(lambda path: path or None)]
"""An empty text is no path, and not the present folder."""

Address = Annotated[str, AfterValidator(_check_address)]


def _check_model_id(model_id: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", model_id, re.ASCII):
        raise ValueError(f"{model_id!r} is not OWNER/NAME, of letters, digits, '.', '_' and '-'")
    return model_id


AddressOrNone = Annotated[str, AfterValidator(lambda address: address and _check_address(address))]
"""HOST:PORT, or empty."""


PublishedAs = Literal["model", "adapter"]
"""What a snapshot can be published as."""


class MergeSettings(BaseModel):
    """What decides the bytes of a merge. Options of other rules than the one that is set are None."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    rule: str = "opcm"
    alpha: float | None = Field(None, ge=0, lt=1)
    cross_blocks: CrossBlocks | None = None
    projection: ProjectionKind | None = None
    density: float | None = Field(None, gt=0, le=1)
    outliers: float | None = Field(None, ge=0, lt=1)
    floor: float | None = Field(None, ge=0, allow_inf_nan=False)
    shrink: float | None = Field(None, ge=0, le=1)
    max_rank: int = Field(0, ge=0)
    summed: tuple[str, ...] = SUMMED_PATTERNS
    backend: Literal["torch", "numpy"] = "torch"
    threads: int = Field(1, ge=1, le=1024)

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, given: Any) -> Any:
        """Give the rule what it takes, and refuse what it does not."""
        if not isinstance(given, dict):
            return given
        rule = given.get("rule", "opcm")
        if rule not in CATALOG:
            raise ValueError(f"there is no merge rule {rule!r}; there are {', '.join(CATALOG)}")
        entry = CATALOG[rule]
        for option in OPTIONS - entry.options.keys():
            if given.get(option) is not None:
                takes = ", ".join(entry.options) or "no options"
                raise ValueError(f"the rule {rule!r} takes {takes}, and not {option}")
        return {**entry.options, **given}

    @property
    def hyper_parameters(self) -> dict[str, Any]:
        """What the rule's accumulation takes."""
        return {name: getattr(self, name) for name in CATALOG[self.rule].options}

    def publication(self, asked: str) -> str:
        """Return how the state is to be published: as asked, or by default as the rule does.

        Raises:
          InvalidRequest: the rule does not publish so.
        """
        try:
            name = parse_publication(asked, self.rule).name
        except ValueError as error:
            raise InvalidRequest(str(error), "see `foldind rules`") from error
        if name in SPECTRAL and self.projection == "leading":
            raise InvalidRequest(
                f"the publication {name!r} needs all singular vectors, and projection = leading keeps the leading ones",
                "make a state folder with projection = exact",
            )
        return asked or CATALOG[self.rule].publication

    def to_json(self) -> dict[str, Any]:
        """Return what is set, as values of JSON."""
        return self.model_dump(mode="json", exclude_none=True)


class ServeSettings(BaseSettings):
    """How the daemon serves and keeps; times in seconds, sizes in bytes."""

    model_config = SettingsConfigDict(env_prefix="FOLDIN_", extra="forbid", frozen=True)

    grpc: Address = "127.0.0.1:7070"
    http: AddressOrNone = "127.0.0.1:7072"
    http_token: SecretStr = SecretStr("")
    model_id: Annotated[str, AfterValidator(_check_model_id)] = "foldin/merged"
    ignore: tuple[str, ...] = ()
    allowed_roots: tuple[Path, ...] = ()
    inbox: OptionalPath = None
    inbox_settle: Seconds = 2
    inbox_stale: Seconds = 600
    inbox_poll: Annotated[float, Field(gt=0)] = 10
    inbox_vocab: VocabPolicy = VocabPolicy.SAME
    publication: str = ""
    publish: Annotated[tuple[PublishedAs, ...], Field(min_length=1)] = ("model",)
    adapter_rank: int = Field(64, ge=0)
    gate: str = ""
    gate_alias: str = "stable"
    gate_timeout: Annotated[float, Field(gt=0)] = 3600
    keep_snapshots: int = Field(10, ge=1)
    keep_bases: bool = True
    memory_budget: ByteSize = Field(ByteSize(2 * 1024**3), gt=0)
    lease: Seconds = 3600
    max_attempts: int = Field(3, ge=1)
    shutdown_grace: Seconds = 20
    upload_expiry: Seconds = 7 * 24 * 3600
    retry_disk_every: Annotated[float, Field(gt=0)] = 5
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: LogFormat = "console"


class Configuration(BaseModel):
    """foldin.toml."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    base_digest: str
    merge: MergeSettings
    serve: dict[str, Any] = {}

    def serve_settings(self, **flags: Any) -> ServeSettings:
        """Return the serve settings: flags (None: not given), else environment, else foldin.toml, else defaults.

        Raises:
          StateError: a setting is malformed; names it.
        """
        table = self.serve

        class Layered(ServeSettings):
            @classmethod
            def settings_customise_sources(
                cls,
                settings_cls: type[BaseSettings],
                init_settings: PydanticBaseSettingsSource,
                env_settings: PydanticBaseSettingsSource,
                dotenv_settings: PydanticBaseSettingsSource,
                file_secret_settings: PydanticBaseSettingsSource,
            ) -> tuple[PydanticBaseSettingsSource, ...]:
                return init_settings, env_settings, InitSettingsSource(settings_cls, table)

        try:
            return Layered(**{name: value for name, value in flags.items() if value is not None})
        except ValidationError as error:
            raise _malformed("the settings", error) from error
        except SettingsError as error:
            raise StateError(
                f"the settings: {error}", "write lists as JSON: FOLDIN_IGNORE='[\"classifier.*\"]'"
            ) from error


def check_forms(publication: str, merge: MergeSettings, forms: Collection[PublishedAs]) -> None:
    """Check that a publication can be published as all of these. Raises InvalidRequest."""
    if len(possible_forms(publication, merge, forms)) < len(forms):
        raise _no_adapter(publication)


def possible_forms(publication: str, merge: MergeSettings, forms: Collection[PublishedAs]) -> tuple[PublishedAs, ...]:
    """Return those of the forms that a publication can be published as: only a divided sum keeps its low rank.

    Raises:
      InvalidRequest: none of them.
    """
    divides = parse_publication(publication, merge.rule).name in DIVIDING
    if possible := tuple(form for form in forms if form == "model" or divides):
        return possible
    raise _no_adapter(publication)


def _no_adapter(publication: str) -> InvalidRequest:
    return InvalidRequest(
        f"the publication {publication!r} cannot be exported as a LoRA adapter",
        "serve with `--publish model`, without `--publish adapter`",
    )


def read_configuration(path: Path) -> Configuration:
    """Read foldin.toml.

    Raises:
      StateError: it is missing or malformed.
    """
    try:
        return Configuration.model_validate(tomllib.loads(path.read_text()))
    except FileNotFoundError as error:
        raise StateError(
            f"{path.parent} is no state folder: it has no {path.name}", "make one with `foldind init`"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise StateError(f"{path} is not valid TOML: {error}", "correct it") from error
    except ValidationError as error:
        raise _malformed(str(path), error) from error


def merge_settings(**flags: Any) -> MergeSettings:
    """Return the merge settings for a new state folder from flags (None: not given). Raises StateError."""
    try:
        return MergeSettings.model_validate({name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise _malformed("the settings", error) from error


_TOLD = {"extra_forbidden": "there is no such setting", "tuple_type": 'it is a list: ["...", "..."]'}
"""Kinds of pydantic's errors whose own words are about its types -> what a person is told."""


def _malformed(what: str, error: ValidationError) -> StateError:
    first = error.errors()[0]
    where = "".join(f"{part}: " for part in first["loc"] if isinstance(part, str))
    told = _TOLD.get(first["type"], first["msg"].removeprefix("Value error, "))
    if first["type"] == "literal_error":
        told = f"{first['input']!r} is none of {first['ctx']['expected'].replace(' or ', ', ')}"
    return StateError(f"{what}: {where}{told}", "correct it; a new foldin.toml lists the settings")
