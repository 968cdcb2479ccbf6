"""Results as Parquet, for DuckDB, pandas, Spark: typed columns, compressed, a few thousand rows in memory at a time."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from cli.target import Target
from promptmill.errors import UsageError
from promptmill.output import is_binary, name_of
from promptmill.store.results import Result
from promptmill.words import said

if TYPE_CHECKING:
    import pyarrow as pa

#: A row group is written when it has this many rows, or its bodies this many bytes.
ROWS_IN_GROUP: Final = 4_000
BYTES_IN_GROUP: Final = 32 * 1024 * 1024


class ParquetWriter:
    """`body` is the answer where it is text or JSON, `body_bytes` where it is neither (audio). Both exactly as it came.

    Raises UsageError where pyarrow is not installed.
    """

    def __init__(self, target: Target) -> None:
        try:
            # Half a second to import, and an extra: only who asks for Parquet pays for it.
            import pyarrow as pa  # noqa: PLC0415 - see above
            import pyarrow.parquet as pq  # noqa: PLC0415 - see above
        except ImportError as error:
            raise UsageError("Parquet needs pyarrow; install it with: pip install 'promptmill[parquet]'") from error
        fields: list[pa.Field[Any]] = [
            pa.field("custom_id", pa.string(), nullable=False),
            pa.field("state", pa.string(), nullable=False),
            pa.field("status_code", pa.int32()),
            pa.field("text", pa.string()),
            pa.field("reasoning", pa.string()),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("model", pa.string()),
            pa.field("prompt_tokens", pa.int32(), nullable=False),
            pa.field("completion_tokens", pa.int32(), nullable=False),
            pa.field("reasoning_tokens", pa.int32(), nullable=False),
            pa.field("cached_tokens", pa.int32(), nullable=False),
            pa.field("attempts", pa.int32(), nullable=False),
            pa.field("finished_at", pa.timestamp("us", tz="UTC"), nullable=False),
            pa.field("request_id", pa.string()),
            pa.field("content_type", pa.string()),
            pa.field("body", pa.string()),
            pa.field("body_bytes", pa.binary()),
        ]
        self._schema = pa.schema(fields)
        self._make_group: Any = pa.RecordBatch.from_pylist
        sink: Any = _Sink(target)  # not an IO by its type, but it has all that pyarrow asks of one
        self._file = pq.ParquetWriter(sink, self._schema, compression="zstd")
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def write(self, result: Result) -> None:
        """Add a row."""
        self._rows.append(_row(result))
        self._bytes += len(result.body)
        if len(self._rows) >= ROWS_IN_GROUP or self._bytes >= BYTES_IN_GROUP:
            self._write_group()

    def finish(self) -> None:
        """Write what is left, and the footer without which it is no Parquet file."""
        self._write_group()
        self._file.close()

    def _write_group(self) -> None:
        if self._rows:
            group: pa.RecordBatch = self._make_group(self._rows, schema=self._schema)
            self._file.write_batch(group)
            self._rows.clear()
            self._bytes = 0


def _row(result: Result) -> dict[str, Any]:
    words, usage = said(result), result.usage
    body = None if is_binary(result) else _text(result.body)
    return {
        "custom_id": name_of(result),
        "state": result.state.value,
        "status_code": result.status_code,
        "text": words.text,
        "reasoning": words.reasoning,
        "error_code": result.error_code,
        "error_message": result.error_message,
        "model": result.model or None,
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cached_tokens": usage.cached_tokens,
        "attempts": result.attempts,
        "finished_at": datetime.fromtimestamp(result.finished_at, UTC),
        "request_id": result.request_id,
        "content_type": result.content_type or None,
        "body": body,
        "body_bytes": result.body if body is None and result.body else None,
    }


def _text(body: bytes) -> str | None:
    """The body, unless reading it as UTF-8 would change it."""
    try:
        return body.decode() or None
    except UnicodeDecodeError:
        return None


class _Sink:
    """What pyarrow takes for a file. A writer that was given up ends itself later: nothing is written then."""

    closed = False

    def __init__(self, target: Target) -> None:
        self._target = target

    def write(self, data: bytes) -> int:
        return len(data) if self._target.closed else self._target.write(data)

    def tell(self) -> int:
        return self._target.tell()

    def flush(self) -> None:
        pass
