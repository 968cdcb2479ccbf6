"""What jobs will take in tokens, money and time: before anything of them is sent, or of what a batch has left.

Prompts are known by their lengths. Answers are as long as those of the batch so far; else as those of the lane; else as
workers guess, which is bounded by the jobs' max_tokens. Where a model has no price, there is no sum in money.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from promptmill import foresight, outlook
from promptmill.engine import Database
from promptmill.errors import UsageError
from promptmill.foresight import UNSEEN_ANSWER_TOKENS, Foresight, Interval, Load, Price, Seen
from promptmill.handling import Handling
from promptmill.outlook import Planned
from promptmill.settings import Settings
from promptmill.store import batches, lanes
from promptmill.store import outlook as rows
from promptmill.store.batches import BatchRow
from promptmill.store.outlook import Learned, Spent
from promptmill.tables import DEFAULT_TENANT
from promptmill.turns import Standing

#: A batch's own answers are believed from so many on; before, all that the lane ever gave.
_ENOUGH_ANSWERS: Final = 10
NOTHING: Final = Interval(0.0, 0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """As what the jobs are to be submitted."""

    batch_id: int = 0  # where they are those that this batch has left
    tenant_id: int = DEFAULT_TENANT
    priority: int = 0
    deadline: float | None = None
    handling: Handling = field(default_factory=Handling)


@dataclass(frozen=True, slots=True, kw_only=True)
class LaneEstimate:
    """Of the jobs of one model."""

    model: str
    upstream: str
    load: Load
    completion_tokens: Interval
    is_guess: bool  # no answer of the lane was seen yet
    cost: Interval | None  # None: the model has no price
    seconds: Interval | None  # None: nothing is known
    limited_by: str | None  # see foresight.Expected
    call_seconds: float | None  # None: not known yet, and not in `seconds`
    standing: Standing


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Of all of them."""

    lanes: tuple[LaneEstimate, ...]
    foresight: Foresight
    deadline: float | None
    currency: str

    @property
    def jobs(self) -> int:
        """How many."""
        return sum(lane.load.jobs for lane in self.lanes)

    @property
    def prompt_tokens(self) -> int:
        """The estimates' sum."""
        return sum(lane.load.prompt_tokens for lane in self.lanes)

    @property
    def completion_tokens(self) -> Interval:
        """Of all answers."""
        return sum_of(lane.completion_tokens for lane in self.lanes)

    @property
    def call_seconds(self) -> float | None:
        """Of the longest of their calls, on average; None where that is not known of one lane."""
        each = [lane.call_seconds for lane in self.lanes]
        known = [seconds for seconds in each if seconds is not None]
        return max(known, default=None) if len(known) == len(each) else None

    @property
    def cost(self) -> Interval | None:
        """None: a model has no price."""
        costs = [lane.cost for lane in self.lanes if lane.cost is not None]
        return sum_of(costs) if len(costs) == len(self.lanes) else None


async def of_loads(
    db: Database, settings: Settings, loads: Mapping[str, Load], terms: Terms, *, now: float
) -> Estimate:
    """Of jobs by model, were they submitted now. Raises UsageError for a model that no upstream serves."""
    upstreams = {model: upstream.name for model in loads if (upstream := settings.upstream_for(model)) is not None}
    if unserved := sorted(loads.keys() - upstreams.keys()):
        raise UsageError(f"no upstream serves the model {unserved[0]!r}")
    ids = {row.model: row.id for row in await lanes.read(db) if upstreams.get(row.model) == row.upstream}
    by_lane = await rows.learned(db, ids.values())
    learned = {model: by_lane[lane_id] for model, lane_id in ids.items() if lane_id in by_lane}
    answers = {model: answers_to_come(load, None, learned.get(model)) for model, load in loads.items()}
    planned = Planned(
        work={
            model: (load.jobs, (load.prompt_tokens + answers[model].likely) / load.jobs)
            for model, load in loads.items()
        },
        batch_id=terms.batch_id,
        tenant_id=terms.tenant_id,
        priority=terms.priority,
        deadline=terms.deadline,
        handling=terms.handling,
    )
    whole, each = await outlook.of_planned(db, settings, planned, now=now)
    made = []
    for model, load in sorted(loads.items()):
        expected = each[model].expected
        made.append(
            LaneEstimate(
                model=model,
                upstream=upstreams[model],
                load=load,
                completion_tokens=answers[model],
                is_guess=model not in learned and load.most_each != 0,
                cost=_cost(load, answers[model], settings.price_for(model)),
                seconds=None if expected is None else expected.seconds,
                limited_by=None if expected is None else expected.limited_by,
                call_seconds=each[model].call_seconds,
                standing=each[model].standing,
            )
        )
    return Estimate(lanes=tuple(made), foresight=whole, deadline=terms.deadline, currency=settings.currency)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a batch has cost, and what it will. Money is None where a model has no price."""

    spent: float | None
    prompt_tokens: Interval  # to come
    completion_tokens: Interval
    cost: Interval | None
    currency: str


async def bill_of(db: Database, settings: Settings, batch: BatchRow) -> Bill:
    """Of a batch, running or not. Reads all of its jobs and results."""
    loads, spent = await rows.loads(db, batch.id), await rows.spent(db, batch.id)
    names = await batches.lane_names(db, batch.id)
    learned = await rows.learned(db, names)
    paid, costs = [], []
    prompts, answers = [], []
    for lane_id, (_, model) in names.items():
        load, was = loads.get(lane_id, Load()), spent.get(lane_id)
        price = settings.price_for(model)
        answers.append(answers_to_come(load, was, learned.get(lane_id)))
        prompts.append(foresight.prompts_to_come(load.prompt_tokens))
        costs.append(_cost(load, answers[-1], price))
        paid.append(None if price is None else _paid(was, price))
    priced = [each for each in costs if each is not None]
    paid_for = [each for each in paid if each is not None]
    is_priced = len(priced) == len(names)
    return Bill(
        spent=math.fsum(paid_for) if is_priced else None,
        prompt_tokens=sum_of(prompts),
        completion_tokens=sum_of(answers),
        cost=sum_of(priced) if is_priced else None,
        currency=settings.currency,
    )


def answers_to_come(load: Load, spent: Spent | None, learned: Learned | None) -> Interval:
    """Tokens of the answers of these jobs: as the batch's own so far, else as the lane's, else as workers guess."""
    seen = None
    if spent is not None and (spent.answers >= _ENOUGH_ANSWERS or learned is None):
        mean = spent.completion_tokens / spent.answers
        variance = max(0.0, spent.completion_squares / spent.answers - mean**2)
        seen = Seen(spent.answers, mean, math.sqrt(variance))
    elif learned is not None:
        # How much they differ nobody kept: answers differ by about their own length.
        seen = Seen(learned.calls, learned.completion_tokens_each, learned.completion_tokens_each)
    return foresight.tokens_to_come(load.jobs, seen, guess=UNSEEN_ANSWER_TOKENS, most=load.most_each)


def sum_of(intervals: Iterable[Interval]) -> Interval:
    """As if they were all low or all high together, which errs to the wide side."""
    total = NOTHING
    for each in intervals:
        total = Interval(total.low + each.low, total.likely + each.likely, total.high + each.high)
    return total


def _cost(load: Load, answers: Interval, price: Price | None) -> Interval | None:
    return None if price is None else foresight.cost(foresight.prompts_to_come(load.prompt_tokens), answers, price)


def _paid(spent: Spent | None, price: Price) -> float:
    if spent is None:
        return 0.0
    return (spent.prompt_tokens * price.prompt + spent.completion_tokens * price.completion) / 1_000_000
