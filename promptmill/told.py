"""What is to be expected, as machines are told it: over HTTP and with `--json` alike. Times are unix seconds."""

from typing import Literal

import msgspec

from promptmill.errors import LineError
from promptmill.estimate import Bill, Estimate
from promptmill.foresight import Interval
from promptmill.intake.dry_run import Assay
from promptmill.outlook import Outlook, Wait


class IntervalTold(msgspec.Struct):
    """Nine of ten times within; `likely` is what to plan with."""

    low: float
    likely: float
    high: float


class ForesightTold(msgspec.Struct, kw_only=True):
    """Of a batch that has not ended. `seconds_left` is null while something is in its way, or nothing is known."""

    seconds_left: IntervalTold | None
    finishes_at: int | None
    holds_deadline: bool | None
    late_seconds: float
    reason: Wait | None


class QueueTold(msgspec.Struct, kw_only=True):
    """What others have on the lane."""

    ahead: int
    beside: int
    share: float


class LaneTold(msgspec.Struct, kw_only=True):
    """Of the jobs of one model."""

    model: str
    upstream: str
    jobs: int
    prompt_tokens: int
    completion_tokens: IntervalTold
    completion_guessed: bool  # no answer was seen yet
    cost: IntervalTold | None
    currency: str
    seconds: IntervalTold | None
    limited_by: str | None
    call_seconds: float | None  # of one call; null: not known yet, and in no time that is told
    queue: QueueTold


class TokensTold(msgspec.Struct, kw_only=True):
    """Of all jobs together."""

    prompt: int
    completion: IntervalTold


class CountsTold(msgspec.Struct, kw_only=True):
    """Of lines."""

    total: int
    invalid: int


class DryRunTold(msgspec.Struct, kw_only=True):
    """What would come of a batch that is not made."""

    object: Literal["batch.dry_run"]
    request_counts: CountsTold
    errors: list[LineError]
    lanes: list[LaneTold]
    tokens: TokensTold
    cost: IntervalTold | None
    currency: str
    estimated_seconds: IntervalTold | None
    expires_at: int | None
    holds_deadline: bool | None
    late_seconds: float


class BillTold(msgspec.Struct, kw_only=True):
    """What a batch has cost and will; the sums are null where one of its models has no price."""

    spent: float | None
    prompt_tokens_to_come: IntervalTold
    completion_tokens_to_come: IntervalTold
    cost_to_come: IntervalTold | None
    currency: str


def foresight_told(outlook: Outlook) -> ForesightTold:
    """Of a batch."""
    found = outlook.foresight
    return ForesightTold(
        seconds_left=_interval(found.seconds, 1),
        finishes_at=None if found.seconds is None else round(outlook.at + found.seconds.likely),
        holds_deadline=found.holds_deadline,
        late_seconds=round(found.late_seconds, 1),
        reason=outlook.reason,
    )


def dry_run_told(assay: Assay, estimate: Estimate, *, most_errors: int) -> DryRunTold:
    """Of an input; so many of its errors are told, the others counted."""
    return DryRunTold(
        object="batch.dry_run",
        request_counts=CountsTold(total=assay.lines, invalid=assay.error_count),
        errors=list(assay.errors[:most_errors]),
        lanes=[
            LaneTold(
                model=lane.model,
                upstream=lane.upstream,
                jobs=lane.load.jobs,
                prompt_tokens=lane.load.prompt_tokens,
                completion_tokens=_known(lane.completion_tokens, 0),
                completion_guessed=lane.is_guess,
                cost=_interval(lane.cost, 6),
                currency=estimate.currency,
                seconds=_interval(lane.seconds, 1),
                limited_by=lane.limited_by,
                call_seconds=None if lane.call_seconds is None else round(lane.call_seconds, 3),
                queue=QueueTold(ahead=lane.standing.ahead, beside=lane.standing.beside, share=lane.standing.share),
            )
            for lane in estimate.lanes
        ],
        tokens=TokensTold(prompt=estimate.prompt_tokens, completion=_known(estimate.completion_tokens, 0)),
        cost=_interval(estimate.cost, 6),
        currency=estimate.currency,
        estimated_seconds=_interval(estimate.foresight.seconds, 1),
        expires_at=None if estimate.deadline is None else int(estimate.deadline),
        holds_deadline=estimate.foresight.holds_deadline,
        late_seconds=round(estimate.foresight.late_seconds, 1),
    )


def bill_told(bill: Bill) -> BillTold:
    """Of a batch."""
    return BillTold(
        spent=None if bill.spent is None else round(bill.spent, 6),
        prompt_tokens_to_come=_known(bill.prompt_tokens, 0),
        completion_tokens_to_come=_known(bill.completion_tokens, 0),
        cost_to_come=_interval(bill.cost, 6),
        currency=bill.currency,
    )


def _interval(interval: Interval | None, places: int) -> IntervalTold | None:
    return None if interval is None else _known(interval, places)


def _known(interval: Interval, places: int) -> IntervalTold:
    return IntervalTold(*(round(number, places or None) for number in (interval.low, interval.likely, interval.high)))
