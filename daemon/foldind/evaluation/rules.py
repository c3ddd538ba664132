"""Merge rules as they are named on the command line: NAME[:OPTION=VALUE,...]."""

from dataclasses import dataclass
from typing import Any

from foldind.config import MergeSettings, merge_settings
from foldind.errors import InvalidRequest, StateError
from foldind.merging.catalog import CATALOG, parse_publication

_PUBLICATION = "publication"


@dataclass(frozen=True)
class NamedRule:
    """How a stream is merged and published."""

    settings: MergeSettings
    publication: str
    """With all its numbers."""

    def to_json(self) -> dict[str, Any]:
        """Return what decides the bytes, as values of JSON."""
        return {**self.settings.to_json(), _PUBLICATION: self.publication}


def parse_rule(text: str, **defaults: Any) -> NamedRule:
    """Return what a rule's text means.

    Args:
      text: the rule's name, and what is set besides: `opcm:alpha=0.3,publication=mean`.
      defaults: of settings that the text does not set; None: the settings' own.

    Raises:
      InvalidRequest: it is malformed, or there is no such rule, option or value.
    """
    name, colon, rest = text.partition(":")
    name = name.strip()
    options: dict[str, str] = {}
    for part in rest.split(",") if colon else ():
        option, equals, value = (piece.strip() for piece in part.partition("="))
        if not (option and equals and value) or option == "rule" or option in options:
            raise InvalidRequest(
                f"rule {text!r}: {part!r} is no setting of another option",
                "write NAME or NAME:OPTION=VALUE,OPTION=VALUE",
            )
        options[option] = value
    asked = options.pop(_PUBLICATION, "")
    try:
        settings = merge_settings(**{**defaults, **options, "rule": name})
        publication = parse_publication(settings.publication(asked), name)
    except (StateError, InvalidRequest) as error:
        reason = error.reason.removeprefix("the settings: ")
        raise InvalidRequest(f"rule {text!r}: {reason}", _options_of(name)) from error
    return NamedRule(settings, ":".join([publication.name, *map(str, publication.numbers.values())]))


def _options_of(name: str) -> str:
    if name not in CATALOG:
        return "name one of these"
    shared = (_PUBLICATION, "max_rank", "backend", "threads")
    return f"options of {name} are {', '.join([*CATALOG[name].options, *shared])}"
