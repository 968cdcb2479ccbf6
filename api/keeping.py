"""What every way of bringing a file has in common: what it is for, how long it is kept, and when it is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from starlette.requests import Request

from api.auth import Caller
from api.errors import invalid
from api.state import House
from api.uploading import Form, receive
from promptmill.intake.kept import BATCH_PURPOSES, Kept, KeptFile, is_lines
from promptmill.store import files
from promptmill.store.files import FileRow

#: OpenAI's and Together's.
PURPOSES: Final = (
    "batch", "batch-api", "assistants", "fine-tune", "vision", "user_data", "evals", "eval", "eval-sample",
    "eval-output", "eval-summary",
)  # fmt: skip
FILE_TYPES: Final = ("jsonl", "csv", "parquet")
#: Checked by ours, in words of ours; the OpenAPI document tells of the values all the same.
Purpose = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(PURPOSES)})]
FileType = Annotated[str, msgspec.Meta(extra_json_schema={"enum": list(FILE_TYPES)})]
#: OpenAI's: an input file of a batch goes after this long, where its producer does not say another time.
BATCH_FILE_SECONDS: Final = 30 * 86_400
LEAST_SECONDS: Final = 3_600
MOST_SECONDS: Final = 30 * 86_400
_SECONDS_DIGITS: Final = 9


@dataclass(frozen=True, slots=True)
class Terms:
    """What is said of a file beside its content."""

    purpose: str
    expires_at: float | None


def purpose_of(fields: Mapping[str, str]) -> str:
    """What the file is for. Raises ApiError."""
    given = fields.get("purpose", "")
    if not given:
        raise invalid("There is no purpose; send the field `purpose` (for a batch: `batch`).", param="purpose")
    if given not in PURPOSES:
        raise invalid(f"The purpose {given[:60]!r} is not known; use one of {', '.join(PURPOSES)}.", param="purpose")
    return given


def check_name(purpose: str, filename: str) -> None:
    """A batch is made of lines. Raises ApiError."""
    if purpose in BATCH_PURPOSES and not is_lines(filename):
        raise invalid("Invalid file format for Batch API. Must be .jsonl", param="file", code="invalid_file_format")


def check_type(given: str | None) -> None:
    """Together's `file_type`. Raises ApiError."""
    if given is not None and given not in FILE_TYPES:
        raise invalid(f"file_type must be one of {', '.join(FILE_TYPES)}, not {given[:40]!r}.", param="file_type")


def terms_of(fields: Mapping[str, str], created_at: float) -> Terms:
    """What a form says of a file that was made at this moment. Raises ApiError."""
    anchor, seconds = fields.get("expires_after[anchor]"), fields.get("expires_after[seconds]")
    number = None
    if anchor is not None or seconds is not None:
        if anchor is None or seconds is None:
            raise invalid("expires_after needs both, anchor and seconds.", param="expires_after")
        number = int(seconds) if seconds.isascii() and seconds.isdecimal() and len(seconds) <= _SECONDS_DIGITS else -1
    return terms(purpose_of(fields), anchor, number, created_at)


def terms(purpose: str, anchor: str | None, seconds: int | None, created_at: float) -> Terms:
    """What was said. Raises ApiError."""
    if seconds is None:
        return Terms(purpose, created_at + BATCH_FILE_SECONDS if purpose == "batch" else None)
    if anchor != "created_at":
        raise invalid("expires_after.anchor must be `created_at`.", param="expires_after")
    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise invalid(
            f"expires_after.seconds must be a whole number from {LEAST_SECONDS} to {MOST_SECONDS}.",
            param="expires_after",
        )
    return Terms(purpose, created_at + seconds)


def settled(kept: Kept, filename: str, terms: Terms) -> dict[str, Any]:
    """The columns of a file that came in. Raises ApiError where it is none that is kept."""
    check_name(terms.purpose, filename)
    if not kept.parts:  # blank lines alone are no lines
        raise invalid("The file is empty.", param="file", code="empty_file")
    status, details = kept.status(terms.purpose)
    return {
        "filename": filename, "purpose": terms.purpose, "status": status.value, "status_details": details,
        "bytes": kept.size_bytes, "parts": kept.parts, "expires_at": terms.expires_at,
    }  # fmt: skip


class FormFile:
    """The file of a form, on its way into the database."""

    def __init__(self, house: House, caller: Caller) -> None:
        self._house = house
        self._caller = caller
        self._kept: KeptFile | None = None
        self._name = ""

    async def take(self, request: Request) -> FileRow | Form:
        """The file; or the form, where no file is in it. Raises ApiError, and then nothing is left of it."""
        try:
            form = await receive(request, self._house.settings.max_file_bytes, self._opened)
            if self._kept is None:
                return form
            terms = terms_of(form.fields, self._kept.created_at)
            values = settled(await self._whole(form.fields), self._name, terms)
            await files.settle(self._house.db, self._kept.file_id, values)
        except BaseException:
            if self._kept is not None:
                await self._kept.discard()
            raise
        return await files.by_id(self._house.db, self._kept.file_id)

    async def _opened(self, filename: str, fields: Mapping[str, str]) -> KeptFile:
        self._name = fields.get("file_name") or filename
        if "purpose" in fields:
            check_name(purpose_of(fields), self._name)
        self._kept = await KeptFile.begin(
            self._house.db, self._house.settings, filename=self._name, tenant_id=self._caller.tenant_id,
            clock=self._house.clock,
        )  # fmt: skip
        self._kept.checked = fields.get("purpose", "batch") in BATCH_PURPOSES
        return self._kept

    async def _whole(self, fields: Mapping[str, str]) -> Kept:
        check_type(fields.get("file_type"))
        purpose_of(fields)
        assert self._kept is not None  # noqa: S101 - for the type checker
        name = fields.get("file_name") or self._name
        if is_lines(name) != is_lines(self._name):
            raise invalid("file_name and the file's own name end differently; send file_name first.", param="file_name")
        self._name = name
        return await self._kept.finish()
