"""Whether a line may come in, and where it goes: the same for every door."""

from pathlib import Path

import sqlalchemy as sa

from promptmill import data_uri
from promptmill.engine import Database
from promptmill.errors import LineError
from promptmill.jsonl import InputFormat, Line
from promptmill.kinds import multipart_fields
from promptmill.request import Defaults, ParsedLine, parse_line, render
from promptmill.settings import Settings, UpstreamConfig
from promptmill.store import files, lanes
from promptmill.store.batches import BatchRow
from promptmill.store.contents import store_bytes
from promptmill.tables import attachments


class Checker:
    """Checks the lines of one input."""

    def __init__(
        self,
        db: Database,
        settings: Settings,
        defaults: Defaults,
        *,
        file_id: int,
        tenant_id: int,
        created_at: float,
        folder: Path | None = None,
        endpoint_check: str | None = None,
    ) -> None:
        """`file_id` is the input's own file; `folder`: lines may name files in it (None: only stored ones);
        `endpoint_check`: the path that every line must have."""
        self.input_format = InputFormat.JSON
        self._db = db
        self._settings = settings
        self._defaults = defaults
        self._file_id = file_id
        self._tenant_id = tenant_id
        self._created_at = created_at
        self._folder = folder
        self._endpoint_check = endpoint_check
        self._lane_ids: dict[str, int | LineError] = {}
        self._attached: set[str] = set()

    @classmethod
    def of_batch(cls, db: Database, settings: Settings, batch: BatchRow) -> "Checker":
        """For lines that come into a batch of the HTTP door: of one endpoint, where its dialect says so."""
        mixed = settings.mixed_batches or batch.dialect == "together"
        return cls(
            db, settings, Defaults.from_json(batch.defaults),
            file_id=batch.file_id, tenant_id=batch.tenant_id, created_at=batch.created_at,
            endpoint_check=None if mixed else batch.endpoint,
        )  # fmt: skip

    def parsed(self, line: Line, *, allow_stream: bool = False) -> ParsedLine | LineError:
        """What the line asks for, or what is wrong with it by itself."""
        return parse_line(
            line, self.input_format, self._defaults, max_body_bytes=self._settings.max_line_bytes,
            endpoint_check=self._endpoint_check, allow_stream=allow_stream,
        )  # fmt: skip

    def known_lane(self, parsed: ParsedLine) -> int | None:
        """The lane, where the database need not be asked for anything: the usual case, a million times."""
        lane_id = self._lane_ids.get(parsed.model)
        return lane_id if isinstance(lane_id, int) and parsed.kind != "transcriptions" else None

    async def lane(self, line: Line, parsed: ParsedLine) -> int | LineError:
        """On which lane it goes, and its file kept where it names one; or what is wrong with it."""
        lane_id = self._lane_ids.get(parsed.model)
        if lane_id is None:
            lane_id = await self._lane(parsed.model)
        if isinstance(lane_id, LineError):
            return LineError(line.number, lane_id.code, lane_id.message, lane_id.param)
        if parsed.kind == "transcriptions" and (problem := await self._attach(line, parsed)):
            return problem
        return lane_id

    async def _lane(self, model: str) -> int | LineError:
        upstream = self._settings.upstream_for(model)
        if upstream is None:
            names = ", ".join(sorted({glob for u in self._settings.upstreams for glob in u.models}))
            self._lane_ids[model] = LineError(
                None, "model_not_found", f"no upstream serves the model {model!r}; configured are: {names}", "model"
            )
        else:
            self._lane_ids[model] = await self._made_lane(upstream, model)
        return self._lane_ids[model]

    async def _made_lane(self, upstream: UpstreamConfig, model: str) -> int:
        return await lanes.ensure(self._db, upstream.name, model)

    async def _attach(self, line: Line, parsed: ParsedLine) -> LineError | None:
        """Keep the file that the line names, so that any worker can send it, even when the file is gone."""
        request = render(line.data, parsed.form, self._defaults)
        _, name = multipart_fields(request.body)
        if name is None or name in self._attached:
            return None
        if name.startswith(data_uri.PREFIX):
            try:
                data_uri.decoded(name)
            except ValueError as error:
                return LineError(line.number, "invalid_request", str(error), "file")
            return None
        if name.startswith("file-") and await files.find(self._db, name, tenant_id=self._tenant_id) is not None:
            return None
        if self._folder is None:
            return LineError(line.number, "file_not_found", f"there is no file {name!r}; upload it first", "file")
        path = self._folder / name
        try:
            content = path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: no file can have such a name
            why = f"cannot read {str(path)!r}: {getattr(error, 'strerror', error)}"
            return LineError(line.number, "file_not_found", why, "file")
        await self._keep(name, content)
        self._attached.add(name)
        return None

    async def _keep(self, name: str, content: bytes) -> None:
        attached_id, _ = await store_bytes(
            self._db, content, filename=Path(name).name, purpose="user_data", tenant_id=self._tenant_id,
            now=self._created_at,
        )  # fmt: skip
        async with self._db.write() as connection:
            mine = {"file_id": self._file_id, "name": name, "attached_id": attached_id}
            await connection.execute(sa.insert(attachments), mine)
