"""Is it good? Asked of an upstream's key and of a lane's model, before many calls are risked on either.

A lane not known to be good starts with a handful of calls and opens when one has succeeded, or when none has failed
for three seconds: so a wrong key or a model that is not deployed burns a handful of jobs, not 50,000, while a model
that thinks for minutes is not held back. Pure: outcomes and times come in, verdicts go out.

Whether a 404 means "no such model" or "this one request is odd" shows only in what the calls around it bring. Until
then such calls are **held**: neither failed nor tried again.
"""

from dataclasses import dataclass, field
from typing import Final, Generic, TypeVar

from promptmill.outcome import LANE_FAULTS, Answer, Failure, Outcome, Reason

#: Calls at once on a lane of which nothing is known yet.
HANDFUL: Final = 8
#: A lane on which nothing has failed for this long opens without a success.
OPEN_AFTER_SECONDS: Final = 3.0
#: A key that has worked is given up after so many refusals in a row.
REFUSALS_IN_A_ROW: Final = 5
KEY_FAULTS: Final = frozenset({Reason.UNAUTHORIZED, Reason.PAYMENT_REQUIRED})
MODEL_FAULTS: Final = LANE_FAULTS - KEY_FAULTS

J = TypeVar("J")


@dataclass(frozen=True, slots=True)
class Verdict(Generic[J]):
    """What follows from a call's end: calls to be decided now, calls to be given back, and whether all must halt."""

    decide: list[tuple[J, Outcome]] = field(default_factory=list)
    give_back: list[tuple[J, Outcome]] = field(default_factory=list)
    halt: Failure | None = None


@dataclass(slots=True)
class Probe(Generic[J]):
    """Is it good? Kept once per upstream (its key) and once per lane (its model)."""

    faults: frozenset[Reason]  # what speaks against it
    at_once: bool  # one fault is proof enough, while nothing has succeeded
    refusals: int | None  # faults in a row that halt it once it has worked; None: it never halts again
    proven: bool = False
    halted: Failure | None = None
    in_flight: int = 0
    first_started_at: float | None = None
    failed: bool = False
    held: list[tuple[J, Outcome]] = field(default_factory=list)

    def started(self, count: int, now: float) -> None:
        """`count` calls have started."""
        self.in_flight += count
        if self.first_started_at is None:
            self.first_started_at = now

    def room(self, now: float) -> int | None:
        """How many more calls may start; None is no limit from here."""
        if self.halted is not None:
            return 0
        if self.open(now):
            return None
        return max(0, HANDFUL - self.in_flight - len(self.held))

    def open(self, now: float) -> bool:
        """Known, or presumed, to be good."""
        return self.proven or (
            not self.failed and self.first_started_at is not None and now - self.first_started_at >= OPEN_AFTER_SECONDS
        )

    def opens_in(self, now: float) -> float | None:
        """Seconds until it may open by mere silence."""
        if self.open(now) or self.failed or self.first_started_at is None:
            return None
        return self.first_started_at + OPEN_AFTER_SECONDS - now

    def left(self) -> None:
        """A call is over, however it ended."""
        self.in_flight -= 1

    def verdict(self, call: J, outcome: Outcome) -> Verdict[J]:
        """What follows from how a call ended (after `left`)."""
        if isinstance(outcome, Failure) and outcome.reason in self.faults:
            return self._fault(call, outcome)
        if isinstance(outcome, Answer):
            self.proven = True
            return self._release((call, outcome))
        self.failed = self.failed or outcome.reason is not Reason.STOPPED
        if outcome.retriable:
            return Verdict(decide=[(call, outcome)])
        # It refused this request for the request's own sake: so it looks at them one by one.
        return self._release((call, outcome))

    def _fault(self, call: J, outcome: Failure) -> Verdict[J]:
        self.failed = True
        if self.halted is not None:
            return Verdict(give_back=[(call, outcome)])
        if self.proven and self.refusals is None:
            return Verdict(decide=[(call, outcome)])
        self.held.append((call, outcome))
        if self.proven:
            enough = self.refusals is not None and len(self.held) >= self.refusals
        else:
            enough = self.at_once or self.in_flight == 0 or len(self.held) >= HANDFUL
        return self.halt(outcome) if enough else Verdict()

    def _release(self, *more: tuple[J, Outcome]) -> Verdict[J]:
        held, self.held = self.held, []
        return Verdict(decide=[*held, *more])

    def halt(self, failure: Failure) -> Verdict[J]:
        """No further calls; what is held goes back to be tried when somebody resumes."""
        held, self.held = self.held, []
        self.halted = failure
        return Verdict(give_back=held, halt=failure)

    def nothing_left(self) -> Verdict[J]:
        """No call is out and none can start, so nothing more will be learned: resolve what is held."""
        if not self.held:
            return Verdict()
        last = self.held[-1][1]
        if self.proven or not isinstance(last, Failure):
            return self._release()
        return self.halt(last)


def key_probe(in_flight: int = 0) -> Probe[J]:
    """For an upstream: a wrong key or an empty account shows at the first call."""
    return Probe(faults=KEY_FAULTS, at_once=True, refusals=REFUSALS_IN_A_ROW, in_flight=in_flight)


def model_probe(in_flight: int = 0) -> Probe[J]:
    """For a lane: 403 and 404 may be about one request, so the whole first handful has to say so."""
    return Probe(faults=MODEL_FAULTS, at_once=False, refusals=None, in_flight=in_flight)
