"""What a batch may spend: its calls start as long as what is spent and what is out fits into its budget.

Asked in the transaction that claims, with the batch locked, so that workers side by side do not spend the same rest
twice. What the calls that are out will take is a guess (their prompts, and answers as long as the lane's are on
average), so the last ones may end a little above the budget.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from promptmill.foresight import Price
from promptmill.job import State
from promptmill.store.pauses import What, pause_in
from promptmill.store.rows import in_state
from promptmill.tables import batches, jobs

_MILLION: Final = 1_000_000
#: How the reason of such a pause begins.
BUDGET: Final = "budget: "


@dataclass(frozen=True, slots=True)
class Expected:
    """What the next calls of a batch are expected to take."""

    answer_tokens: float
    #: The dearest of its lanes': which lane a token was spent on is not kept. None: one of them has no price.
    price: Price | None


class _Tokens(NamedTuple):
    prompt: float
    answer: float

    def plus(self, other: "_Tokens") -> "_Tokens":
        return _Tokens(self.prompt + other.prompt, self.answer + other.answer)

    def cost(self, price: Price) -> float:
        return (self.prompt * price.prompt + self.answer * price.completion) / _MILLION


async def fitting(
    connection: AsyncConnection, *, batch_id: int, picked: Sequence[Any], expected: Expected, now: float
) -> Sequence[Any]:
    """The first of the picked jobs, as many as the budget has room for. Where not even one fits and no call of the
    batch is out, nothing can change that any more: the batch is paused, and says why."""
    found = sa.select(
        batches.c.budget_tokens, batches.c.budget_cost, batches.c.prompt_tokens, batches.c.completion_tokens
    ).where(batches.c.id == batch_id)
    budget = (await connection.execute(found.with_for_update())).one()
    spent = _Tokens(budget.prompt_tokens, budget.completion_tokens)
    calls, out = await _out(connection, batch_id, expected)
    total, count, full = spent.plus(out), 0, ""
    for row in picked:
        longest = expected.answer_tokens if row.max_tokens is None else min(expected.answer_tokens, row.max_tokens)
        one = _Tokens(row.tokens, longest)
        total = total.plus(one)
        if full := _full(budget, spent, total, one, expected.price):
            break
        count += 1
    if full and not count and not calls:
        await pause_in(connection, What.BATCH, batch_id, now=now, reason=full)
    return picked[:count]


async def _out(connection: AsyncConnection, batch_id: int, expected: Expected) -> tuple[int, _Tokens]:
    """Calls of the batch that are out, and what they may take."""
    answer = sa.case((jobs.c.max_tokens < expected.answer_tokens, jobs.c.max_tokens), else_=expected.answer_tokens)
    # `+ 0`: running jobs are few, the batch's may be a million; so the index of the first is to be used.
    statement = sa.select(sa.func.count(), sa.func.sum(jobs.c.tokens), sa.func.sum(answer)).where(
        in_state(State.RUNNING), jobs.c.batch_id + 0 == batch_id
    )
    calls, prompt, answers = (await connection.execute(statement)).one()
    return calls, _Tokens(float(prompt or 0), float(answers or 0))


def _full(budget: Any, spent: _Tokens, total: _Tokens, one: _Tokens, price: Price | None) -> str:
    """Why `total`, which ends with one more call, is too much; "" where it is not."""
    if budget.budget_tokens is not None and sum(total) > budget.budget_tokens:
        spent_of = f"{BUDGET}{sum(spent):,.0f} tokens spent of {budget.budget_tokens:,}"
        return f"{spent_of}; one more call may take {sum(one):,.0f}"
    if budget.budget_cost is None:
        return ""
    if price is None:
        return f"{BUDGET}its cost cannot be counted, since one of its models has no price; set [[price]]"
    if total.cost(price) > budget.budget_cost:
        return (
            f"{BUDGET}{spent.cost(price):,.2f} spent of {budget.budget_cost:,.2f}; "
            f"one more call may cost {one.cost(price):,.2f}"
        )
    return ""
