"""Whose turn it will be on a lane until all is done: pure.

Nobody but the rule itself (`fairness`, `urgency`) knows whose turn it is. So it is asked for the parts of the lane that
batches have now, and they are taken to go on until a batch ends or what is urgent may change; then it is asked again.
Jobs are cut in pieces for it, as if a claim were one job that all have a part of. The pace is taken to stay what it is,
and nothing to come in later; caps are left out.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

from promptmill.fairness import Contender, Served, Tenant, class_of, shares
from promptmill.urgency import BREATH_SECONDS, HOPELESS, NEAR_SECONDS, PRESSING, TIGHT, Urgent, at_risk

#: Among more batches than these it is not played, since others wait: then all are taken to share, whatever their
#: deadlines.
MOST_PLAYED: Final = 32
#: A job is cut in so many, which is how exactly shares are told; of these a lower class keeps 2, as is meant for it.
_PIECES: Final = 92
#: As many times it was so before that.
_PAST: Final = 3
#: After so much of all that is left it is asked again, whatever happens.
_AGAIN: Final = 1 / 8
#: What becomes urgent and, being served, is so no more, and becomes it again, does so for so much of the work up to its
#: deadline: workers change their minds at each claim, which is as much over time.
_GRAIN: Final = 1 / 12
#: It has just become so when it is not so much further.
_JUST: Final = 1 / 500
#: And nobody asks before half a job is done.
_LEAST_JOBS: Final = 0.5
_NOTHING: Final = 1e-6

_Key: TypeAlias = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a batch stands in its lane's queue."""

    ahead: int = 0  # jobs that go before all of its own
    beside: int = 0  # jobs that share the lane with its own
    share: float = 1.0  # the part of the lane that it has while they last

    def jobs_until_done(self, own: int) -> float:
        """What the lane does until the last of its own jobs, were nothing to change."""
        return self.ahead + min(own / self.share if self.share else math.inf, own + self.beside)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tempo:
    """How fast a lane is. Where `seconds_per_job` is None it is not known, and there are no deadlines."""

    now: float = 0.0
    seconds_per_job: float | None = None
    #: What workers take it for; None: the same.
    seconds_per_permit: float | None = None
    call_seconds: float = 0.0


UNKNOWN: Final = Tempo()


def played(
    contenders: Sequence[Contender], tenants: Mapping[int, Tenant] | None = None, tempo: Tempo = UNKNOWN
) -> dict[int, float]:
    """Batch id → jobs that the lane does until the last one of the batch; `ready` is all that each has left there.

    >>> {batch_id: round(jobs) for batch_id, jobs in played([Contender(1, ready=10), Contender(2, ready=100)]).items()}
    {1: 20, 2: 110}
    """
    if len(contenders) > MOST_PLAYED:
        return {each.batch_id: standing(each, contenders, tenants).jobs_until_done(each.ready or 0)
                for each in contenders}  # fmt: skip
    play = _Play(contenders, tenants or {}, tempo)
    while play.runners:
        play.step()
    return dict.fromkeys((each.batch_id for each in contenders), 0.0) | play.ends


def standing(
    own: Contender,
    all_: Iterable[Contender],
    tenants: Mapping[int, Tenant] | None = None,
    tempo: Tempo = UNKNOWN,
) -> Standing:
    """Where a batch stands among the others of its lane now. Where `ready` of one is not known, it is taken for as long
    as the own batch."""
    tenants, rank = tenants or {}, class_of(own.priority)
    others = [replace(each, ready=own.ready) if each.ready is None else each
              for each in all_ if each.batch_id != own.batch_id]  # fmt: skip
    higher = sum(each.ready or 0 for each in others if class_of(each.priority) > rank)
    peers = [each for each in others if class_of(each.priority) == rank]
    before, beside = _divided(own, peers, higher, tempo)
    rivals: dict[int, float] = {own.tenant_id: tenants.get(own.tenant_id, Tenant()).weight}
    siblings = own.weight
    for other in beside:
        rivals[other.tenant_id] = tenants.get(other.tenant_id, Tenant()).weight
        siblings += other.weight if other.tenant_id == own.tenant_id else 0.0
    share = rivals[own.tenant_id] / sum(rivals.values()) * own.weight / siblings
    return Standing(higher + sum(each.ready or 0 for each in before), sum(each.ready or 0 for each in beside), share)


def _divided(
    own: Contender, peers: Sequence[Contender], ahead: int, tempo: Tempo
) -> tuple[Sequence[Contender], Sequence[Contender]]:
    """Of those of its class: (who goes before a batch, who shares with it)."""
    urgent: Urgent[Contender] = Urgent()
    if (pace := tempo.seconds_per_job if tempo.seconds_per_permit is None else tempo.seconds_per_permit) is not None:
        # A deadline is when the last call has to start.
        now = tempo.now + tempo.call_seconds
        urgent = at_risk([own, *peers], ahead=ahead, permits=1, now=now, seconds_per_permit=pace)
    first, pressing = ([each.batch_id for each in group] for group in (urgent.first, urgent.pressing))
    before = [each for each in peers if each.batch_id in first]
    if own.batch_id in first:
        return [each for each in before if first.index(each.batch_id) < first.index(own.batch_id)], []
    rest = [each for each in peers if each.batch_id not in first]
    if own.batch_id in pressing:
        rest = [each for each in rest if each.batch_id in pressing]
    else:
        before += [each for each in rest if each.batch_id in pressing]
        rest = [each for each in rest if each.batch_id not in pressing]
    theirs = [each for each in rest if each.tenant_id == own.tenant_id]
    before += [each for each in theirs if each.priority > own.priority]
    return before, [each for each in rest if each not in theirs or each.priority == own.priority]


@dataclass(slots=True)
class _Runner:
    """A batch under way. What the rule asks of a batch, as of the moment that is played."""

    batch_id: int
    tenant_id: int
    priority: int
    weight: float
    left: float  # jobs
    deadline: float | None  # of the start of its last call, from now
    ready: int | None = None  # pieces


class _Play:
    """A lane, and how far it is."""

    def __init__(self, contenders: Sequence[Contender], tenants: Mapping[int, Tenant], tempo: Tempo) -> None:
        has_deadlines = tempo.seconds_per_job is not None
        self.ends: dict[int, float] = {}
        self.runners = [
            _Runner(
                each.batch_id, each.tenant_id, each.priority, each.weight, float(each.ready),
                each.deadline - tempo.call_seconds - tempo.now if has_deadlines and each.deadline is not None else None,
            )
            for each in contenders
            if each.ready
        ]  # fmt: skip
        self._is_dated = any(each.deadline is not None for each in self.runners)
        self._tenants = {id_: Tenant(tenant.weight) for id_, tenant in tenants.items()}
        self._done = 0.0
        self._per_job = tempo.seconds_per_job or 0.0
        self._per_permit = self._per_job if tempo.seconds_per_permit is None else tempo.seconds_per_permit
        self._known: dict[_Key, dict[int, float]] = {}

    def step(self) -> None:
        """Up to the next moment at which something may change."""
        for each in self.runners:
            each.ready = math.ceil(each.left * _PIECES)
        classes = self._classes()
        parts = self._parts([self._urgent(group, ahead) for group, ahead in classes] if self._is_dated else [])
        jobs = min(each.left / parts[each.batch_id] for each in self.runners if each.batch_id in parts)
        if self._is_dated and len(self.runners) > 1:
            again = max(1.0, _AGAIN * sum(each.left for each in self.runners))
            jobs = min([jobs, again, *self._changes(classes, parts)])
        self._done += jobs
        for each in self.runners:
            each.left -= jobs * parts.get(each.batch_id, 0.0)
            if each.deadline is not None:
                each.deadline -= jobs * self._per_job
            if each.left < _NOTHING:
                self.ends[each.batch_id] = self._done
        self.runners = [each for each in self.runners if each.batch_id not in self.ends]

    def _classes(self) -> list[tuple[list[_Runner], list[_Runner]]]:
        """(those of a class, all of higher ones), the highest first."""
        found = []
        for rank in sorted({class_of(each.priority) for each in self.runners}, reverse=True):
            group = [each for each in self.runners if class_of(each.priority) == rank]
            found.append((group, [each for each in self.runners if class_of(each.priority) > rank]))
        return found

    def _urgent(self, group: Sequence[_Runner], ahead: Sequence[_Runner]) -> Urgent[_Runner]:
        return at_risk(
            group, ahead=sum(each.ready or 0 for each in ahead), permits=_PIECES, now=0.0,
            seconds_per_permit=self._per_permit / _PIECES,
        )  # fmt: skip

    def _parts(self, urgent: Sequence[Urgent[_Runner]]) -> dict[int, float]:
        """Batch id → its part of the lane, as long as the same batches are there and urgent."""
        key = (
            tuple(each.batch_id for each in self.runners),
            *(tuple(each.batch_id for each in group) for one in urgent for group in (one.first, one.pressing)),
        )
        if key not in self._known:
            split = self._asked(0.0)
            parts = Counter(_parts_of(split))
            if any(one.pressing for one in urgent):
                # Of what was kept from them, those that do not press have the more then.
                before = Served().noting(self._contenders(0.0), [(id_, _PAST * count) for id_, count in split])
                breath = _parts_of(self._asked(BREATH_SECONDS - 1.0, before))
                parts = Counter({id_: part * (1 - 1 / BREATH_SECONDS) for id_, part in parts.items()})
                parts.update({id_: part / BREATH_SECONDS for id_, part in breath.items()})
            self._known[key] = dict(parts)
        return self._known[key]

    def _asked(self, at: float, served: Served | None = None) -> list[tuple[int, int]]:
        return shares(
            self._contenders(at), _PIECES, tenants=self._tenants, served=served, scarce="starts",
            now=at if self._is_dated else None, seconds_per_permit=self._per_permit / _PIECES,
        )  # fmt: skip

    def _contenders(self, at: float) -> list[Contender]:
        return [
            Contender(
                each.batch_id, each.priority, 0, each.tenant_id, each.weight,
                None if each.deadline is None else each.deadline + at, each.ready,
            )
            for each in self.runners
        ]  # fmt: skip

    def _changes(
        self, classes: Sequence[tuple[Sequence[_Runner], Sequence[_Runner]]], parts: Mapping[int, float]
    ) -> Iterator[float]:
        """After how many jobs something becomes urgent, or is so no more."""
        per_job, per_permit = self._per_job, self._per_permit
        for group, ahead in classes:
            dated = sorted(
                (each.deadline, -each.priority, each.batch_id, each) for each in group if each.deadline is not None
            )
            work = sum(each.left for each in ahead)
            part = sum(parts.get(each.batch_id, 0.0) for each in ahead)
            for left, _, _, each in dated:
                if left <= 0:
                    continue
                all_, all_parts = work + each.left, part + parts.get(each.batch_id, 0.0)
                bounds = (TIGHT, PRESSING) if all_ * per_permit <= HOPELESS * left else (HOPELESS,)
                moments = [_meets(left, per_job, bound, 0.0) for bound in (0.0, NEAR_SECONDS)]
                moments += [
                    _meets(all_ * per_permit, all_parts * per_permit, bound * (left - per_permit), bound * per_job)
                    for bound in bounds
                ]
                soon, just = min(moments), _JUST * all_
                yield max(soon + just / 2 if soon > just else _GRAIN * all_, _LEAST_JOBS)
                if len(bounds) > 1:
                    work, part = all_, all_parts


def _parts_of(split: Sequence[tuple[int, int]]) -> dict[int, float]:
    given = sum(count for _, count in split)
    return {batch_id: count / given for batch_id, count in split}


def _meets(one: float, falls: float, other: float, other_falls: float) -> float:
    """After how many jobs two that fall by so much with each are the same; never is infinite."""
    jobs = (one - other) / (falls - other_falls) if falls != other_falls else math.inf
    return jobs if jobs > -_NOTHING else math.inf
