"""What promptmill raises, and nothing else.

    PromptmillError
    ├── UsageError            the caller asked for something that cannot be: exit code 2, HTTP 400
    │   ├── SettingsError     a setting is missing, unreadable or contradictory
    │   ├── InputError        lines of an input are wrong; carries every one of them
    │   └── NotNow            the thing is in no state for this: exit code 2, HTTP 409
    ├── StoreError            the database cannot be used as it is (schema behind, file locked, not ours)
    └── NotFound              no such file, batch, job or lane (or not this tenant's)

How an upstream call ends is not an exception: see `outcome.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


class PromptmillError(Exception):
    """The root: catching it catches all that promptmill raises on purpose."""


class UsageError(PromptmillError):
    """The request cannot be met as asked; the message says what to change."""


class SettingsError(UsageError):
    """A setting is missing, unreadable or contradictory; the message names it and where it came from."""


@dataclass(frozen=True, slots=True)
class LineError:
    """One thing wrong with one line of an input.

    `line` counts from 1 and is None for faults of the whole file; `code` is one of WIRE's validation codes
    (invalid_json_line, duplicate_custom_id, url_mismatch, …); `param` names the field, where one is to blame.
    """

    line: int | None
    code: str
    message: str
    param: str | None = None

    def __str__(self) -> str:
        where = "" if self.line is None else f"line {self.line}: "
        return f"{where}{self.message} [{self.code}]"


class InputError(UsageError):
    """Lines of an input are wrong. `errors` has the first ones in full, `total` counts all of them."""

    def __init__(self, source: str, errors: Sequence[LineError], total: int) -> None:
        self.source = source
        self.errors = tuple(errors)
        self.total = total
        noun = "problem" if total == 1 else "problems"
        super().__init__(f"{source}: {total} {noun}; nothing was sent")


class NotNow(UsageError):  # noqa: N818 - reads as what it is: a fact about the thing
    """What is asked for cannot be done to the thing in its state; the message says which, and what can be."""


class StoreError(PromptmillError):
    """The database cannot be used as it is; the message says what to do."""


class NotFound(PromptmillError):  # noqa: N818 - reads as what it is: a fact, not a fault
    """No such thing, or not one that this tenant may see."""
