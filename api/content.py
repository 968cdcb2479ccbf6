"""What a batch brought forth, as content: its output and error files, and single answers that are not JSON."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Final, Protocol

from starlette.requests import Request
from starlette.responses import Response

from api.auth import Caller
from api.errors import not_found
from api.ranges import content_response
from api.state import House
from promptmill.job import BATCH_FINISHED
from promptmill.output import is_binary
from promptmill.store import batches, results, views
from promptmill.store.files import FileRow, FileStatus
from promptmill.store.results import Result

_ANSWER_ID: Final = re.compile(r"file-([0-9a-f]{32})-(0|[1-9][0-9]{0,17})")
_LAST_POSITION: Final = 2**63 - 1
#: Whatever the upstream called it, it is not shown as a page of ours.
_MEDIA_TYPE: Final = re.compile(r"[a-z0-9.+-]+/[a-z0-9.+-]+", re.IGNORECASE)


class ResultFile(Protocol):
    """A row of `files` that shows a batch's results."""

    @property
    def id(self) -> int: ...
    @property
    def batch_id(self) -> int | None: ...
    @property
    def view(self) -> str | None: ...
    @property
    def filename(self) -> str: ...


async def result_file(request: Request, house: House, file_row: ResultFile) -> Response:
    """The lines of an output or error file, in input order; of a batch that still runs, those that there are.

    `X-Incomplete` says whether there will be more, `X-Last-Line` how many lines this is. The file is the caller's: who
    routes here has made sure of it.
    """
    if file_row.batch_id is None or file_row.view not in views.STATES:
        raise not_found("file", str(file_row.id))
    view: views.View = "output" if file_row.view == "output" else "errors"
    batch = await batches.get(house.db, file_row.batch_id)
    rendered = await house.rendered.of(batch, file_row.id, view)
    return content_response(
        request,
        chunks_from=rendered.chunks_from,
        size=rendered.size,
        media_type="application/jsonl",
        filename=file_row.filename,
        headers={
            "X-Incomplete": "false" if batch.state in BATCH_FINISHED else "true",
            "X-Last-Line": str(rendered.lines),
        },
    )


def is_answer_id(public_id: str) -> bool:
    """Does this name a job's answer, rather than a file?"""
    return _ANSWER_ID.fullmatch(public_id) is not None


@dataclass(frozen=True, slots=True)
class AnswerFile:
    """A job's answer that is neither JSON nor text (audio, a picture), as a file."""

    row: FileRow
    result: Result
    media_type: str

    def response(self, request: Request) -> Response:
        """The answer's bytes, as they came. Raises ApiError (416)."""
        body = self.result.body

        async def chunks_from(start: int) -> AsyncIterator[bytes]:
            yield body[start:]

        return content_response(
            request, chunks_from=chunks_from, size=len(body), media_type=self.media_type, filename=self.row.filename
        )


async def answer_of(house: House, caller: Caller, public_id: str) -> AnswerFile:
    """The answer that has this id. Raises ApiError."""
    named = _ANSWER_ID.fullmatch(public_id)
    position = int(named[2]) if named else 0
    batch = None
    if named is not None and position <= _LAST_POSITION:
        batch = await batches.by_public_id(house.db, f"batch_{named[1]}", tenant_id=caller.tenant_id)
    found = [] if batch is None else await results.of_jobs(house.db, batch.id, [position])
    if not found or not is_binary(found[0]):
        raise not_found("file", public_id)
    result = found[0]
    media_type = result.content_type.partition(";")[0].strip()
    if not _MEDIA_TYPE.fullmatch(media_type):
        media_type = "application/octet-stream"
    # It is no row of its own: the job's result is what is kept.
    row = FileRow(
        id=0, public_id=public_id, tenant_id=caller.tenant_id,
        filename=f"{public_id}{_ENDINGS.get(media_type.lower(), '')}", purpose="batch_output",
        status=FileStatus.PROCESSED, status_details=None, bytes=len(result.body), parts=1, batch_id=None, view=None,
        created_at=result.finished_at, expires_at=None, deleted_at=None,
    )  # fmt: skip
    return AnswerFile(row, result, media_type)


_ENDINGS: Final = {
    "audio/mpeg": ".mp3", "audio/wav": ".wav", "audio/x-wav": ".wav", "audio/ogg": ".ogg", "audio/flac": ".flac",
    "audio/aac": ".aac", "image/png": ".png", "image/jpeg": ".jpg", "image/webp": ".webp",
}  # fmt: skip
