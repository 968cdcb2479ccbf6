"""A file, in one object that both clients read: OpenAI's fields, and Together's beside them."""

from pathlib import PurePosixPath
from typing import Any, Final

from api.dialects import Dialect
from api.pages import page_schema
from promptmill.store.files import FileRow, FileStatus

#: What Together's clients know; whatever else it is, they are told the first.
_TYPES: Final = ("jsonl", "csv", "parquet")


#: Together's first Python client cannot read a list in which one file has a purpose that it does not know.
_PURPOSES: Final = frozenset({"fine-tune", "eval", "eval-sample", "eval-output", "eval-summary", "batch-api"})


def file_object(row: FileRow, dialect: Dialect = Dialect.OPENAI) -> dict[str, Any]:
    """The file as clients read it."""
    made = {
        "id": row.public_id,
        "object": "file",
        "bytes": row.bytes,
        "created_at": int(row.created_at),
        "filename": row.filename,
        "purpose": row.purpose if dialect is Dialect.OPENAI or row.purpose in _PURPOSES else "batch-api",
        "status": row.status.value,
        "FileType": file_type(row.filename),
        "Processed": row.status is not FileStatus.UPLOADED,
        "processing_status": "FAILED" if row.status is FileStatus.ERROR else "COMPLETED",
    }
    if row.expires_at is not None:
        made["expires_at"] = int(row.expires_at)
    if row.status_details is not None:
        made["status_details"] = row.status_details
    return made


def file_type(filename: str) -> str:
    """By the end of its name."""
    suffix = PurePosixPath(filename).suffix.lower().removeprefix(".")
    return suffix if suffix in _TYPES else _TYPES[0]


def deleted(public_id: str) -> dict[str, Any]:
    """The answer of DELETE."""
    return {"id": public_id, "object": "file", "deleted": True}


#: The schema of `file_object`, for the OpenAPI document.
FILE_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "object", "bytes", "created_at", "filename", "purpose", "status", "FileType", "Processed"],
    "properties": {
        "id": {"type": "string"},
        "object": {"const": "file"},
        "bytes": {"type": "integer"},
        "created_at": {"type": "integer", "description": "Unix seconds."},
        "expires_at": {"type": "integer", "description": "Unix seconds; absent where it does not expire."},
        "filename": {"type": "string"},
        "purpose": {"type": "string"},
        "status": {"enum": ["uploaded", "processed", "error"]},
        "status_details": {"type": "string", "description": "Which lines are wrong, where status is error."},
        "FileType": {"enum": list(_TYPES)},
        "Processed": {"type": "boolean"},
        "processing_status": {"type": "string"},
    },
}
LIST_SCHEMA: Final = page_schema(FILE_SCHEMA)
DELETED_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "object", "deleted"],
    "properties": {"id": {"type": "string"}, "object": {"const": "file"}, "deleted": {"const": True}},
}
