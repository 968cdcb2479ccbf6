"""Fill `{{ name }}` in the strings of a request body with what is known of a fire. Nothing is evaluated.

Only names of `NAMES` stand between the braces, with any spaces around them; there are no filters, dots or expressions,
and what is filled in is not looked at again. An unknown name is an error when the schedule is made, not when it fires.

To send double braces as they are, double them: `{{{{` becomes `{{`, and `}}}}` becomes `}}`. Everything else stays
as it is: a lone `{`, `{ {`, `}}`, and braces around what is no name, as in `{{ a + b }}`. A brace that is written
`\\u007b` is never taken for one.

It works on bytes and touches nothing but the strings' insides: number formats, odd spacing and the order of keys are
sent as they were written. Values are escaped as JSON demands, so what was valid JSON is valid JSON afterwards.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from promptmill.errors import UsageError

_WEEKDAYS: Final = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fire:
    """What is known of a fire: nominal times in unix seconds, without its jitter."""

    schedule: str  # its name
    at: float
    zone: ZoneInfo
    number: int  # 1 is its first
    previous_at: float | None = None


def _local(fire: Fire) -> datetime:
    return datetime.fromtimestamp(fire.at, fire.zone)


def _rfc3339(at: float, zone: ZoneInfo) -> str:
    text = datetime.fromtimestamp(math.floor(at), zone).isoformat()
    return text[:-6] + "Z" if zone.key == "UTC" else text


#: Name → its value. The order is that of the error message.
NAMES: Final[Mapping[str, Callable[[Fire], str]]] = {
    "fire_time": lambda fire: _rfc3339(fire.at, fire.zone),  # RFC 3339 in the schedule's zone
    "date": lambda fire: f"{_local(fire):%Y-%m-%d}",
    "time": lambda fire: f"{_local(fire):%H:%M:%S}",
    "year": lambda fire: f"{_local(fire):%Y}",
    "month": lambda fire: f"{_local(fire):%m}",
    "day": lambda fire: f"{_local(fire):%d}",
    "weekday": lambda fire: _WEEKDAYS[_local(fire).weekday()],  # English, whatever the locale
    "unix": lambda fire: str(math.floor(fire.at)),
    "schedule": lambda fire: fire.schedule,
    "number": lambda fire: str(fire.number),
    "previous_fire_time": lambda fire: "" if fire.previous_at is None else _rfc3339(fire.previous_at, fire.zone),
}

#: A JSON string; outside of strings JSON has no quotes. Nothing is ever tried twice (`*+`): bodies may have megabytes.
_STRING: Final = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"', re.DOTALL)
#: Doubled braces, or a name between two. The first that begins wins, so what is escaped is never read as a name.
_MARK: Final = re.compile(rb"\{\{\{\{|\}\}\}\}|\{\{[ \t]*([A-Za-z_][A-Za-z0-9_]*)[ \t]*\}\}")


def check(body: bytes) -> None:
    """Raise UsageError for a name that nothing is known of."""
    if b"{{" not in body:
        return
    for string in _STRING.finditer(body):
        for mark in _MARK.finditer(string[0]):
            if mark[1] is not None and mark[1].decode() not in NAMES:
                raise UsageError(
                    f"{mark[0].decode()} names nothing that is known of a fire; there are {', '.join(NAMES)} "
                    "(to send double braces as they are, write {{{{ and }}}})"
                )


def render(body: bytes, fire: Fire) -> bytes:
    """The body of this fire. An unknown name, which `check` would have refused, stays as it is."""
    if b"{{" not in body and b"}}" not in body:
        return body
    values: dict[bytes, bytes] = {}

    def value(mark: re.Match[bytes]) -> bytes:
        name = mark[1]
        if name is None:
            return mark[0][:2]
        known = NAMES.get(name.decode())
        if known is None:
            return mark[0]
        if name not in values:
            values[name] = _escaped(known(fire))
        return values[name]

    return _STRING.sub(lambda string: _MARK.sub(value, string[0]), body)


def _escaped(text: str) -> bytes:
    """As it stands inside a JSON string; lone surrogates and what is not ASCII become \\u escapes."""
    return json.dumps(text)[1:-1].encode()
