"""/simulate/…: how a test or a person looks at the rehearsal and changes its faults while it runs."""

from typing import Any

import msgspec

from cli.simulate.faults import BadFlagError, FaultPlan
from cli.simulate.gate import Gate
from cli.simulate.reply import Refusal, Reply
from cli.simulate.stats import Stats

PREFIX = "/simulate/"


class Control:
    def __init__(self, stats: Stats, faults: FaultPlan, gate: Gate) -> None:
        self._stats = stats
        self._faults = faults
        self._gate = gate

    def answer(self, method: str, path: str, raw: bytes) -> Reply:
        match method, path.removeprefix(PREFIX):
            case "GET", "stats":
                return Reply.of_json(self._stats.as_json())
            case "POST", "reset":
                self.restart()
                return Reply.of_json(self._stats.as_json())
            case "GET", "faults":
                return self._faults_reply()
            case "POST", "faults":
                percentages = _decoded(raw, dict, "an object of fault names and percentages")
                _checked(self._faults.set_percentages, percentages)
                return self._faults_reply()
            case "POST", "script":
                steps = _decoded(raw, list, "a list of fault names, with ok for none")
                _checked(self._faults.set_script, steps)
                return self._faults_reply()
        raise Refusal(404, f"No such control: {method} {path}")

    def restart(self) -> None:
        """Counts, limits, script and arrivals start over; the percentages stay."""
        self._stats.restart()
        self._gate.restart()
        self._faults.restart()

    def _faults_reply(self) -> Reply:
        return Reply.of_json({"faults": self._faults.percentages, "script_left": self._faults.script_left()})


def _decoded(raw: bytes, wanted: type, described: str) -> Any:
    try:
        content = msgspec.json.decode(raw)
    except msgspec.DecodeError as error:
        raise Refusal(400, f"Expected {described} as JSON. ({error})") from error
    if not isinstance(content, wanted):
        raise Refusal(400, f"Expected {described} as JSON.")
    return content


def _checked(setter: Any, value: Any) -> None:
    try:
        setter(value)
    except BadFlagError as error:
        raise Refusal(400, str(error)) from error
