"""What a scraper reads."""

from collections.abc import Mapping

from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]


def series(name: str, **labels: object) -> Series:
    """The key of one series in what `read` gives."""
    return name, frozenset((label, str(value)) for label, value in labels.items())


def read(text: str) -> Mapping[Series, float]:
    """Every sample of an exposition by its name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def names(text: str) -> dict[str, set[str]]:
    """The names of all samples, each with the names of its labels."""
    found: dict[str, set[str]] = {}
    for name, labels in read(text):
        found.setdefault(name, set()).update(label for label, _ in labels)
    return found
