"""What a measurement came to: percentiles, rates, CPU time, and how the samples of several turns become one figure."""

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

# In percent; the last is the maximum.
PERCENTILES = (1.0, 5.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.9, 100.0)


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest of these values, in order, that `percent` of them do not exceed (nearest rank)."""
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def percentiles(values: Sequence[float]) -> dict[float, float]:
    """The PERCENTILES of these values; empty without values."""
    ordered = sorted(values)
    return {percent: percentile(ordered, percent) for percent in PERCENTILES} if ordered else {}


@dataclass
class Sample:
    """One turn of one subject. All times in seconds.

    `latencies` is empty where the generator gives percentiles alone; `count` are the right answers, `wrong` what else
    came and how often; `seconds` is how long the turn lasted; CPU times are those of the server under load during it.
    """

    count: int
    seconds: float
    wrong: Counter[str] = field(default_factory=Counter)
    latencies: Sequence[float] = ()
    percentiles: dict[float, float] = field(default_factory=dict)
    workers_cpu: float | None = None
    database_cpu: float | None = None

    def __post_init__(self) -> None:
        if self.latencies:
            self.percentiles = percentiles(self.latencies)


def joined(samples: Sequence[Sample]) -> Sample:
    """Samples with latencies that followed each other as one; what lay between them is left out."""
    return Sample(
        sum(sample.count for sample in samples),
        sum(sample.seconds for sample in samples),
        sum((sample.wrong for sample in samples), Counter()),
        [latency for sample in samples for latency in sample.latencies],
    )


@dataclass(frozen=True)
class Figures:
    """A subject after all its turns: percentiles in milliseconds, CPU seconds for 1,000 requests."""

    milliseconds: dict[float, float]
    per_second: float
    count: int
    wrong: dict[str, int]
    workers_cpu: float | None = None
    database_cpu: float | None = None


def pooled(samples: Sequence[Sample]) -> Figures:
    """The percentiles of all latencies of all turns, as if they were one."""
    every = joined(samples).percentiles
    seconds = sum(sample.seconds for sample in samples)
    return _figures(samples, every, sum(sample.count for sample in samples) / seconds if seconds else 0.0)


def middle(samples: Sequence[Sample]) -> Figures:
    """The median over the turns of each percentile, and of the rate."""
    answered = [sample for sample in samples if sample.percentiles]
    known = {
        percent: statistics.median(sample.percentiles[percent] for sample in answered)
        for percent in PERCENTILES
        if answered and all(percent in sample.percentiles for sample in answered)
    }
    return _figures(samples, known, statistics.median(sample.count / sample.seconds for sample in samples))


def _figures(samples: Sequence[Sample], seconds: dict[float, float], per_second: float) -> Figures:
    count = sum(sample.count for sample in samples)
    return Figures(
        milliseconds={percent: value * 1000 for percent, value in seconds.items()},
        per_second=per_second,
        count=count,
        wrong=dict(sum((sample.wrong for sample in samples), Counter())),
        workers_cpu=_per_thousand([sample.workers_cpu for sample in samples], count),
        database_cpu=_per_thousand([sample.database_cpu for sample in samples], count),
    )


def _per_thousand(seconds: Sequence[float | None], count: int) -> float | None:
    known = [value for value in seconds if value is not None]
    return sum(known) * 1000 / count if count and len(known) == len(seconds) else None
