"""The daemon's HTTP, as a scraper or a prober sees it."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from prometheus_client.parser import text_string_to_metric_families

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    content_type: str
    text: str


def ask(url: str, accept: str = "*/*", method: str = "GET") -> Answer:
    """Ask for a page; an error status is an answer too."""
    request = Request(url, headers={"Accept": accept}, method=method)
    try:
        response = urlopen(request, timeout=30)
    except HTTPError as error:
        response = error
    with response:
        return Answer(response.status, response.headers.get("Content-Type", ""), response.read().decode())


@dataclass(frozen=True)
class Samples:
    """The samples of one scrape."""

    values: Mapping[tuple[str, tuple[tuple[str, str], ...]], float]

    def __call__(self, name: str, **labels: str) -> float:
        """The value of one sample."""
        return self.values[name, tuple(sorted(labels.items()))]

    def has(self, name: str, **labels: str) -> bool:
        """Whether there is a sample of a name with at least these labels."""
        return any(name == found and labels.items() <= set(pairs) for found, pairs in self.values)


def scrape(daemon_http: str) -> Samples:
    """Scrape a daemon."""
    answer = ask(f"{daemon_http}/metrics")
    assert answer.status == 200
    return Samples(
        {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
    )
