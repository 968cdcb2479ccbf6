"""What a schedule submits: the lines of an uploaded file, or those in the request, looked at as a fire would submit
them."""

from dataclasses import replace
from typing import Final

from msgspec import UNSET

from api import schedule_terms
from api.auth import Caller
from api.errors import ApiError, invalid
from api.jobs import line_refused
from api.schedule_terms import ScheduleRequest
from api.state import House
from promptmill.errors import InputError, LineError
from promptmill.intake import scheduling
from promptmill.request import Defaults
from promptmill.schedules import Schedule
from promptmill.store import files, purge
from promptmill.store.schedules import Terms

#: Purpose of a file → what batches of it are told in.
_DIALECTS: Final = {"batch": "openai", "batch-api": "together"}


def says_lines(wanted: ScheduleRequest) -> bool:
    """Does the request bring lines?"""
    return any(each is not UNSET and each is not None for each in (wanted.input_file_id, wanted.requests))


async def with_lines(
    house: House, caller: Caller, wanted: ScheduleRequest, name: str, when: Schedule, terms: Terms
) -> Terms:
    """The terms with the lines that the request brings. Raises ApiError."""
    if isinstance(wanted.requests, list) == isinstance(wanted.input_file_id, str):
        raise invalid(
            "Give input_file_id or requests, and only one of them.",
            param="input_file_id", code="missing_required_parameter",
        )  # fmt: skip
    if isinstance(wanted.input_file_id, str):
        terms = await _of_file(house, caller, wanted.input_file_id, terms)
        return await looked_at(house, caller, name, when, terms)
    lines = schedule_terms.lines_of(wanted.requests if isinstance(wanted.requests, list) else [])
    source = f"{name.replace('/', '-')}.jsonl"
    try:
        file_id = await scheduling.keep_lines(
            house.db, house.settings, lines, name=source, defaults=Defaults.from_json(terms.defaults),
            tenant_id=caller.tenant_id, clock=house.clock,
        )  # fmt: skip
    except InputError as error:
        raise _request_refused(error.errors[0]) from None
    try:
        terms = replace(terms, file_id=file_id, source=source, dialect="openai")
        return await scheduling.looked_at(
            house.db, house.settings, name=name, when=when, terms=terms, tenant_id=caller.tenant_id, now=house.clock()
        )
    except BaseException as error:
        await purge.remove(house.db, file_id)
        if isinstance(error, InputError):
            raise _request_refused(error.errors[0]) from None
        raise


async def let_go(house: House, wanted: ScheduleRequest, terms: Terms) -> None:
    """The request came to nothing: lines that it brought itself go too."""
    if isinstance(wanted.requests, list):
        await purge.remove(house.db, terms.file_id)


async def looked_at(house: House, caller: Caller, name: str, when: Schedule, terms: Terms) -> Terms:
    """The terms, after a look at the lines of their file. Raises ApiError."""
    try:
        return await scheduling.looked_at(
            house.db, house.settings, name=name, when=when, terms=terms, tenant_id=caller.tenant_id, now=house.clock()
        )
    except InputError as error:
        first, more = error.errors[0], error.total - 1
        told = f"{first}; and {more:,} more" if more else str(first)
        raise invalid(f"The file cannot be submitted: {told}.", param="input_file_id", code=first.code) from None


async def _of_file(house: House, caller: Caller, public_id: str, terms: Terms) -> Terms:
    found = await files.get(house.db, public_id, tenant_id=caller.tenant_id, now=house.clock())
    if found is None:
        raise invalid(
            f"There is no file {public_id[:100]!r}; upload it first, with purpose batch.",
            param="input_file_id", code="file_not_found",
        )  # fmt: skip
    if found.purpose not in _DIALECTS:
        raise invalid(
            f"The file {found.public_id} is of purpose {found.purpose}; a schedule is made of one of purpose batch "
            "(or batch-api).",
            param="input_file_id", code="invalid_file_purpose",
        )  # fmt: skip
    return replace(terms, file_id=found.id, source=found.filename, dialect=_DIALECTS[found.purpose])


def _request_refused(error: LineError) -> ApiError:
    return line_refused(error, f"requests[{(error.line or 1) - 1}].")
