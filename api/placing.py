"""Files that come in more than one request: pieces that are kept until they are whole, and a file put in the place
that was announced for it."""

from collections.abc import AsyncIterator

from starlette.requests import Request

from api.bodies import chunks
from api.errors import ApiError, invalid
from api.keeping import Terms, settled
from api.state import House
from promptmill.intake.kept import BATCH_PURPOSES, Kept, KeptFile
from promptmill.store import files, uploads
from promptmill.store.files import FileRow, FileStatus
from promptmill.store.uploads import PartRow, UploadRow


async def filled(file: KeptFile, body: AsyncIterator[bytes]) -> Kept:
    """The file with all of this in it. Raises what the body raises, and InputError; then nothing is left."""
    async with file.or_nothing():
        async for chunk in body:
            await file.feed(chunk)
        return await file.finish()


async def joined(house: House, pieces: list[PartRow]) -> AsyncIterator[bytes]:
    """The content of an upload's pieces, one after the other."""
    for piece in pieces:
        async for chunk in files.content(house.db, piece.file_id):
            yield chunk


def gone(what: str) -> ApiError:
    """It was completed, cancelled, used or deleted meanwhile."""
    return ApiError(409, f"The {what} takes no more: it was completed or cancelled.", code="upload_not_pending")


async def place(
    house: House,
    upload: UploadRow,
    announced: FileRow,
    body: AsyncIterator[bytes],
    *,
    close_it: bool,
    md5: str | None = None,
) -> FileRow:
    """Keep this content as the upload's file. Raises ApiError, and then nothing is left of it."""
    hash_name, expected = ("md5", md5.lower()) if md5 is not None else ("sha256", upload.checksum)
    file = await KeptFile.begin(
        house.db, house.settings, filename=announced.filename, tenant_id=upload.tenant_id, clock=house.clock,
        hash_name=hash_name if expected is not None else None,
    )  # fmt: skip
    file.checked = announced.purpose in BATCH_PURPOSES
    kept = await filled(file, body)
    async with file.or_nothing():
        if kept.checksum != expected:
            raise invalid(
                f"The content's {hash_name} is {kept.checksum}, which is not the checksum that was said.",
                param="md5" if md5 is not None else "checksum", code="checksum_mismatch",
            )  # fmt: skip
        values = settled(kept, announced.filename, Terms(announced.purpose, announced.expires_at))
        placed = await uploads.put_in_place(
            house.db, upload, file.file_id, values, now=house.clock(), close_it=close_it
        )
        if not placed:
            raise gone("address")
    return await files.by_id(house.db, file.file_id)


async def keep_part(request: Request, house: House, upload: UploadRow, *, number: int | None) -> tuple[str, str]:
    """A piece out of the request's body. Returns (its MD5, its public id)."""
    left = house.settings.max_file_bytes - await uploads.part_bytes(house.db, upload.id)
    body = chunks(request, max(0, left), "part, with those that are here,")
    file = await part_file(house, upload)
    return await add_part(house, upload, file, await filled(file, body), number=number)


async def part_file(house: House, upload: UploadRow) -> KeptFile:
    """Where a piece of the upload goes."""
    file = await KeptFile.begin(
        house.db, house.settings, filename="part", tenant_id=upload.tenant_id, clock=house.clock, hash_name="md5",
        purpose=uploads.PART_PURPOSE,
    )  # fmt: skip
    file.checked = False
    return file


async def add_part(
    house: House, upload: UploadRow, file: KeptFile, kept: Kept, *, number: int | None
) -> tuple[str, str]:
    """What came in is a piece of the upload. Raises ApiError, and then nothing is left of it."""
    async with file.or_nothing():
        whole = {"status": FileStatus.PROCESSED.value, "bytes": kept.size_bytes, "parts": kept.parts}
        await files.settle(house.db, file.file_id, whole)
        public_id = await uploads.add_part(
            house.db, upload, file_id=file.file_id, etag=kept.checksum or "", number=number, now=house.clock()
        )
        if public_id is None:
            raise gone("upload")
    return kept.checksum or "", public_id
