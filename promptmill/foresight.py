"""How long it will still take, whether the deadline holds, and what it will cost: pure, and always with an interval.

The pace is what the lane really did. Three kinds of story are told about it: it was the same all the time, or it
changed once and what came before tells nothing any more, or it has a trend, which is carried on though not at its full
strength, since trends end. Each is believed as far as it explains what was seen, and one with more freedom has to
explain more (Schwarz's criterion), so bursts are no trend. What the limits allow is a ceiling, and all there is to go
by before the first answers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import fmean
from typing import Final

from promptmill.limits import Limits

#: Two sides of an interval that holds nine times of ten, in standard deviations.
_NINE_OF_TEN: Final = 1.645
#: What was seen is looked at in so many pieces: single buckets are noise.
_PIECES: Final = 16
#: With fewer than so many there are no stories, and no change is told before so many pieces.
_ENOUGH: Final = 6
_SETTLED: Final = 3
#: How much of a trend is carried on.
_STRENGTH: Final = 0.85
#: How sharply the better story is preferred; a half would be Bayes, and gives too much to the worse ones of bursts.
_SHARPNESS: Final = 1.5
_NOTHING: Final = 1e-9
#: No estimate claims to know better than this.
_LEAST_SPREAD: Final = 0.05
#: And where others are on the lane, whose turn it is is foretold no better than this, nine times of ten.
_TURNS_SPREAD: Final = 0.1
#: Where nothing was seen lately: limits are seldom reached, so twice the time would not surprise.
_UNSEEN: Final = 2.0
#: Tokens of an answer, before there was one: what workers reserve for it, too, where the request sets no max_tokens
#: below it. Who thinks aloud takes far more.
UNSEEN_ANSWER_TOKENS: Final = 256
#: Prompts are estimated by their lengths: repetitive prose comes out too long, code and tables too short.
_SHORTER_PROMPTS: Final = 0.8
_LONGER_PROMPTS: Final = 1.35


@dataclass(frozen=True, slots=True)
class Interval:
    """Nine of ten times within, three of four where the pace slows all the time; `likely` is what to plan with."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneWork:
    """What is left of a batch on one lane, and what is known of the lane."""

    left: int  # its jobs that are not finished, those in flight too
    #: Jobs that the lane does until the last of these, by whose turn it is (`turns`); None: no others are there.
    jobs_until_done: float | None = None
    #: Jobs that the whole lane finished, one number for each `bucket_seconds`, the oldest first; the last bucket full.
    finished: Sequence[int] = ()
    bucket_seconds: float = 10.0
    is_rough: bool = False  # that was some time ago, and may not be so any more
    limits: Limits = field(default_factory=Limits)  # of the lane
    #: Jobs of the batch on other lanes for which the same limits hold.
    beside_it: int = 0
    caps: Sequence[Limits] = ()  # of the batch itself and of its tenant, whatever lanes its jobs are on
    elsewhere: int = 0  # jobs of the batch on other lanes
    tokens_each: float | None = None  # of a call, prompt and answer
    call_seconds: float | None = None  # how long a call takes on average
    idle_seconds: float = 0.0  # nothing starts before: the lane is paused, the batch's time has not come


@dataclass(frozen=True, slots=True)
class Expected:
    """How long a lane needs, and what keeps it from being faster: a limit's name, for a cap with `batch_` before it, or
    `pace`: that of the upstream."""

    seconds: Interval
    limited_by: str


@dataclass(frozen=True, slots=True)
class Foresight:
    """What is to be expected. `seconds` is None while nothing is known."""

    seconds: Interval | None
    holds_deadline: bool | None = None  # None: no deadline, or nothing known
    late_seconds: float = 0.0  # by how much it likely does not hold


def time_left(work: Sequence[LaneWork], *, deadline: float | None, now: float) -> Foresight:
    """The lanes of a batch work beside each other, so it ends with the slowest of them."""
    each = [expected(one) for one in work if one.left > 0]
    known = [one.seconds for one in each if one is not None]
    if len(known) < len(each):
        return Foresight(None)
    seconds = Interval(
        max((one.low for one in known), default=0.0),
        max((one.likely for one in known), default=0.0),
        max((one.high for one in known), default=0.0),
    )
    if deadline is None:
        return Foresight(seconds)
    late = seconds.likely - (deadline - now)
    return Foresight(seconds, late <= 0, max(0.0, late))


def ceiling(
    limits: Limits, *, tokens_each: float | None = None, call_seconds: float | None = None
) -> tuple[float, str] | None:
    """(jobs a second, the limit's name) that limits allow; None where nothing limits it, or it is not known how."""
    paces = []
    if limits.requests_per_minute:
        paces.append((limits.requests_per_minute / 60, "requests_per_minute"))
    if limits.tokens_per_minute and tokens_each:
        paces.append((limits.tokens_per_minute / tokens_each / 60, "tokens_per_minute"))
    if limits.max_in_flight and call_seconds:
        paces.append((limits.max_in_flight / call_seconds, "max_in_flight"))
    return min(paces, default=None)


def expected(work: LaneWork) -> Expected | None:
    """How long one lane needs; None while nothing is known."""
    jobs = float(work.left) if work.jobs_until_done is None else max(work.jobs_until_done, work.left)
    floor, limited_by = _floor(work, jobs)
    if not sum(work.finished):
        if limited_by is None:
            return None
        return Expected(_framed(Interval(floor, floor, _UNSEEN * floor), work), limited_by)
    told = _foretold(work, jobs)
    slowest = limited_by if limited_by is not None and floor >= told.likely else "pace"
    bounded = Interval(max(told.low, floor), max(told.likely, floor), max(told.high, floor))
    return Expected(_framed(bounded, work), slowest)


def seconds_per_job(work: LaneWork, jobs: float) -> float | None:
    """How long the lane takes for each of so many jobs, whosever they are; None while nothing is known."""
    most = ceiling(work.limits, tokens_each=work.tokens_each, call_seconds=work.call_seconds)
    if not sum(work.finished):
        return None if most is None else 1 / most[0]
    told = _foretold(work, jobs).likely / jobs
    return told if most is None else max(told, 1 / most[0])


def _floor(work: LaneWork, jobs: float) -> tuple[float, str | None]:
    """(seconds that the limits make of it at least, the name of the one that does)."""
    floors: list[tuple[float, str | None]] = [(0.0, None)]
    facts = {"tokens_each": work.tokens_each, "call_seconds": work.call_seconds}
    if (most := ceiling(work.limits, **facts)) is not None:
        floors.append(((jobs + work.beside_it) / most[0], most[1]))
    own = work.left + work.elsewhere
    caps = (ceiling(cap, **facts) for cap in work.caps)
    floors += [(own / most[0], f"batch_{most[1]}") for most in caps if most is not None]
    return max(floors, key=lambda one: one[0])


def _foretold(work: LaneWork, jobs: float) -> Interval:
    """What the pace so far makes of so many jobs."""
    pieces = _pieces(work.finished, work.bucket_seconds)
    step = len(work.finished) * work.bucket_seconds / len(pieces)
    stories = [(story.belief, *_told(story, pieces, step, jobs)) for story in _stories(pieces)]
    beliefs = sum(belief for belief, _, _ in stories)
    middle = sum(belief * log_seconds for belief, log_seconds, _ in stories) / beliefs
    variance = sum(b * (error**2 + (log_seconds - middle) ** 2) for b, log_seconds, error in stories) / beliefs
    least = math.log(_UNSEEN) if work.is_rough else _LEAST_SPREAD
    turns = 0.0 if work.jobs_until_done is None else _TURNS_SPREAD
    spread = math.exp(math.hypot(max(least, _NINE_OF_TEN * math.sqrt(variance)), turns))
    likely = math.exp(middle)
    return Interval(likely / spread, likely, likely * spread)


def _framed(seconds: Interval, work: LaneWork) -> Interval:
    """However fast the lane is, the last call takes its time, of which half is over on average; and before all of it
    nothing may be done for a while."""
    last, idle = work.call_seconds or 0.0, work.idle_seconds
    return Interval(idle + seconds.low, idle + max(seconds.likely, last / 2), idle + max(seconds.high, last))


def _pieces(counts: Sequence[int], bucket_seconds: float) -> list[float]:
    """The pace in each of some pieces, jobs a second; with fewer buckets than pieces, in each bucket."""
    number = min(_PIECES, len(counts))
    edges = [len(counts) * i // number for i in range(number + 1)] if number else []
    return [fmean(counts[a:b]) / bucket_seconds for a, b in pairwise(edges)]


@dataclass(frozen=True, slots=True)
class _Story:
    belief: float  # relative to the others
    since: int  # the first piece that tells about now
    slope: float  # of the pace, from piece to piece


def _stories(pieces: Sequence[float]) -> list[_Story]:
    count = len(pieces)
    slope = _slope(pieces) if count >= _ENOUGH else 0.0
    left_over = {(0, 0.0): (_left_over(pieces), 1)}
    if count >= _ENOUGH:
        left_over[0, slope] = (_left_over(_levelled(pieces, slope)), 2)
    for at in range(_SETTLED, count - _SETTLED + 1):
        if sum(pieces[at:]):
            left_over[at, 0.0] = (_left_over(pieces[:at]) + _left_over(pieces[at:]), 3)
    prices = {
        story: count * math.log(max(rest, _NOTHING) / count) + freedom * math.log(count)
        for story, (rest, freedom) in left_over.items()
    }
    best = min(prices.values())
    return [
        # The many moments at which it may have changed are one story together.
        _Story(math.exp(_SHARPNESS * (best - price)) / (count if story[0] else 1), *story)
        for story, price in prices.items()
    ]


def _told(story: _Story, pieces: Sequence[float], step: float, jobs: float) -> tuple[float, float]:
    """(the logarithm of the seconds that a story foretells, its standard error)."""
    told = _levelled(pieces, story.slope)[story.since :]
    rate, seen = fmean(told), step * len(told)
    error = _error(told, rate, step) * math.sqrt(1 + seen * rate / jobs)  # the rest will vary as what was seen
    if not story.slope:
        return math.log(jobs / rate), error
    now = max(rate + story.slope * len(pieces) / 2, rate / 2)
    return math.log(_trended(jobs, now, story.slope / step)), 4 * error


def _levelled(pieces: Sequence[float], slope: float) -> list[float]:
    middle = (len(pieces) - 1) / 2
    return [p - slope * (i - middle) for i, p in enumerate(pieces)]


def _slope(pieces: Sequence[float]) -> float:
    middle = (len(pieces) - 1) / 2
    return sum((i - middle) * p for i, p in enumerate(pieces)) / sum((i - middle) ** 2 for i in range(len(pieces)))


def _left_over(pieces: Sequence[float]) -> float:
    """The sum of squares that their mean does not explain."""
    mean = fmean(pieces)
    return sum((p - mean) ** 2 for p in pieces)


def _error(pieces: Sequence[float], rate: float, step: float) -> float:
    """How far the pace may be off, as a part of it: by what was seen of it, and by how few jobs that was."""
    count = len(pieces)
    error = math.sqrt(_left_over(pieces) / (count - 1) / count) / rate if count > 1 else 0.0
    return max(error, 1 / math.sqrt(rate * step * count))


def _trended(jobs: float, rate: float, slope: float) -> float:
    """Seconds for the jobs when the pace, `rate` now, goes on to change by some of `slope` each second."""
    took = jobs / rate
    for _ in range(20):  # the pace half way through the rest depends on how long the rest takes
        took = (took + jobs / min(max(rate + _STRENGTH * slope * took / 2, rate / 2), rate * 2)) / 2
    return took


# ---------------------------------------------------------------- tokens and money


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of a number of tokens per job from those that are finished."""

    jobs: int
    mean: float
    deviation: float = 0.0  # standard deviation between jobs


@dataclass(frozen=True, slots=True)
class Load:
    """Jobs that are not finished, and what they bring: `prompt_tokens` are estimates."""

    jobs: int = 0
    prompt_tokens: int = 0
    max_tokens: int = 0  # of those that bound their answers, in sum
    unbounded: int = 0  # those that do not

    @property
    def most_each(self) -> float | None:
        """The mean of the bounds of their answers; None where not all have one."""
        return self.max_tokens / self.jobs if self.jobs and not self.unbounded else None


@dataclass(frozen=True, slots=True)
class Price:
    """Of a million tokens, in whatever currency."""

    prompt: float
    completion: float


def tokens_to_come(jobs: int, seen: Seen | None, *, guess: float = 0.0, most: float | None = None) -> Interval:
    """Tokens that so many jobs will take in sum. Before any is finished, `guess` for each; never above `most` each."""
    ceiling_ = math.inf if most is None else most * jobs
    if seen is None or seen.jobs < 1:
        likely = min(jobs * guess, ceiling_)
        return Interval(0.0, likely, jobs * guess * _UNSEEN if most is None else max(likely, ceiling_))
    # Two errors: of the sum of so many, and of the mean that is known from so few.
    deviation = seen.deviation * math.sqrt(jobs + jobs * jobs / seen.jobs)
    if seen.jobs == 1:
        deviation = max(deviation, seen.mean * jobs)
    likely = min(jobs * seen.mean, ceiling_)
    off = max(_NINE_OF_TEN * deviation, _LEAST_SPREAD * likely / math.sqrt(seen.jobs))
    return Interval(max(0.0, likely - off), likely, min(likely + off, ceiling_))


def prompts_to_come(estimate: float) -> Interval:
    """Tokens that prompts will be counted as whose lengths alone are known (see `kinds.tokens`)."""
    return Interval(estimate * _SHORTER_PROMPTS, estimate, estimate * _LONGER_PROMPTS)


def cost(prompt: Interval, completion: Interval, price: Price) -> Interval:
    """What these tokens cost. Long prompts and long answers are taken to come together, which errs to the wide side."""

    def of(prompt_tokens: float, completion_tokens: float) -> float:
        return (prompt_tokens * price.prompt + completion_tokens * price.completion) / 1_000_000

    return Interval(
        of(prompt.low, completion.low), of(prompt.likely, completion.likely), of(prompt.high, completion.high)
    )
