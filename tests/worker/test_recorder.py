"""Endings on their way to the database: many at once, in order, and none lost while it is away or refuses one."""

import asyncio

import pytest
import sqlalchemy as sa

from promptmill.job import State
from promptmill.outcome import Answer, Failure, Reason
from promptmill.store.claims import Claimed
from promptmill.store.records import Ending
from tests.conftest import eventually
from worker import recorder as module
from worker.recorder import ROWS_AT_ONCE, Recorder, is_database_away


def ending(number: int) -> Ending:
    job = Claimed(number, 1, number, 1, 1, 0, 1, number, 10, 10, None, None, b"{}", "bare")
    return Ending(job, State.SUCCEEDED, Answer(200, "application/json", b"{}"), 1, 0.0, 0.0)


class Store:
    """Takes the place of the database: keeps what is written, and fails as it is told."""

    def __init__(self, fails=lambda _: None) -> None:
        self.fails = fails
        self.groups: list[list[Ending]] = []

    async def record(self, _db, *, worker_id, endings, now, tally) -> int:
        assert (worker_id, now, tally.calls) == (1, 0.0, [])
        await asyncio.sleep(0)
        if error := self.fails(endings):
            raise error
        self.groups.append(list(endings))
        return 0

    @property
    def kept(self) -> list[Ending]:
        return [each for group in self.groups for each in group]


@pytest.fixture
def store(monkeypatch) -> Store:
    made = Store()
    monkeypatch.setattr(module, "record", made.record)
    return made


def recorder(told: list[Ending]) -> Recorder:
    return Recorder(None, worker_id=1, clock=lambda: 0.0, written=told.extend)


async def test_what_comes_together_is_written_together_and_told_afterwards(store):
    told: list[Ending] = []
    made = recorder(told)
    endings = [ending(n) for n in range(5)]
    for each in endings:
        made.put(each)
    assert (made.backlog, made.job_ids(), told) == (5, {0, 1, 2, 3, 4}, [])
    await eventually(lambda: told)
    assert store.groups == [endings]
    assert told == endings
    assert made.backlog == 0
    await made.close()


async def test_after_a_silence_an_ending_waits_for_nothing_and_the_next_ones_for_each_other(store, monkeypatch):
    monkeypatch.setattr(module, "GATHER_SECONDS", 2.0)
    made = recorder(told := [])
    loop = asyncio.get_running_loop()
    began = loop.time()
    made.put(ending(0))
    await eventually(lambda: told)
    assert loop.time() - began < 1.5
    made.put(ending(1))
    made.put(ending(2))
    await eventually(lambda: len(told) == 3)
    assert loop.time() - began >= 2.0
    assert [len(group) for group in store.groups] == [1, 2]
    await made.close()


@pytest.mark.usefixtures("store")
async def test_who_hurries_does_not_wait_for_others(monkeypatch):
    monkeypatch.setattr(module, "GATHER_SECONDS", 3600.0)
    made = recorder(told := [])
    made.put(ending(0))
    await eventually(lambda: told)
    made.put(ending(1))
    assert (made.waiting, made.backlog) == (1, 1)
    made.hurry()
    await eventually(lambda: len(told) == 2)
    assert made.waiting == 0
    await made.close()


async def test_more_than_a_statement_takes_is_written_in_pieces_in_order(store):
    told: list[Ending] = []
    made = recorder(told)
    for n in range(2 * ROWS_AT_ONCE + 7):
        made.put(ending(n))
    await made.close()
    assert [len(group) for group in store.groups] == [ROWS_AT_ONCE, ROWS_AT_ONCE, 7]
    assert [each.job.job_id for each in told] == list(range(2 * ROWS_AT_ONCE + 7))


async def test_what_is_being_written_still_counts_as_not_written(monkeypatch):
    writing, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(*_args, **_kwargs) -> int:
        writing.set()
        await go_on.wait()
        return 0

    monkeypatch.setattr(module, "record", slowly)
    made = recorder([])
    made.put(ending(1))
    await writing.wait()
    assert (made.backlog, made.job_ids()) == (1, {1})
    go_on.set()
    await made.close()
    assert made.backlog == 0


async def test_a_database_that_is_away_is_waited_for(store, caplog):
    tries = 0

    def fails(_) -> Exception | None:
        nonlocal tries
        tries += 1
        return ConnectionRefusedError() if tries <= 2 else None

    store.fails = fails
    made = recorder(told := [])
    made.put(ending(1))
    await made.close()
    assert [each.job.job_id for each in told] == [1]
    assert "1 answers wait" in caplog.text


async def test_an_answer_that_cannot_be_stored_fails_alone(store):
    def fails(endings) -> Exception | None:
        bad = any(each.job.job_id == 3 and isinstance(each.outcome, Answer) for each in endings)
        return sa.exc.DataError("INSERT", {}, ValueError("out of range")) if bad else None

    store.fails = fails
    made = recorder(told := [])
    for n in range(7):
        made.put(ending(n))
    await made.close()
    assert sorted(each.job.job_id for each in store.kept) == list(range(7))
    (failed,) = (each for each in store.kept if each.state is State.FAILED)
    assert isinstance(failed.outcome, Failure)
    assert (failed.job.job_id, failed.outcome.reason, failed.outcome.status) == (3, Reason.NOT_RECORDED, 200)
    assert sum(each.state is State.SUCCEEDED for each in told) == 6  # the counts that people see are the database's


async def test_what_makes_writing_impossible_is_raised(store):
    store.fails = lambda _: sa.exc.ProgrammingError("INSERT", {}, ValueError("no such table"))
    made = recorder([])
    made.put(ending(1))
    with pytest.raises(sa.exc.ProgrammingError):
        await made.close()


@pytest.mark.parametrize(
    ("error", "away"),
    [
        (ConnectionResetError(), True),
        (OSError(28, "No space left on device"), True),
        (sa.exc.InterfaceError("SELECT", {}, ValueError("connection is closed")), True),
        (sa.exc.OperationalError("SELECT", {}, ValueError("database is locked")), True),
        (sa.exc.OperationalError("SELECT", {}, ValueError("no such column")), False),
        (sa.exc.DataError("SELECT", {}, ValueError("out of range")), False),
        (ValueError("locked"), False),
    ],
)
def test_away_or_broken(error, away):
    assert is_database_away(error) is away


@pytest.mark.parametrize("state", ["57P01", "57P03", "08006", "53300"])
def test_away_by_what_postgresql_says(state):
    original = ValueError("server closed the connection")
    original.sqlstate = state
    assert is_database_away(sa.exc.DBAPIError("SELECT", {}, original))
