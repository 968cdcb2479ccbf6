"""One attempt, top to bottom: the line becomes a request, the request is sent, the reply is judged.

Whatever goes wrong on the way is the outcome's value; nothing is raised but cancellation.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import httpx
import sqlalchemy as sa

from promptmill import data_uri
from promptmill.engine import Database
from promptmill.errors import UsageError
from promptmill.hints import Hints, LocalHints
from promptmill.kinds import KINDS, Kind
from promptmill.outcome import Failure, Outcome, Reason
from promptmill.priority import HELD
from promptmill.request import Defaults, Form, Request, render, streams
from promptmill.settings import Settings, UpstreamConfig
from promptmill.store import files
from promptmill.store.claims import Claimed
from promptmill.tables import attachments, batches
from promptmill.tables import files as file_rows
from worker.callers import headers_for_caller
from worker.judge import Expectation, judge
from worker.streaming import streamed
from worker.upstream import Reply, Upstream, UpstreamSettings


@dataclass(frozen=True, slots=True)
class BatchContext:
    """What all jobs of a batch have in common."""

    defaults: Defaults
    max_attempts: int
    file_id: int
    priority: int
    tenant_id: int

    @property
    def is_held(self) -> bool:
        """Does somebody wait for each answer?"""
        return self.priority >= HELD


class BatchContexts:
    """The contexts of the batches that a drain works on, read once each."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._known: dict[int, BatchContext] = {}

    async def load(self, batch_ids: set[int]) -> None:
        """Know these batches from now on."""
        missing = batch_ids - self._known.keys()
        if not missing:
            return
        statement = sa.select(
            batches.c.id, batches.c.defaults, batches.c.max_attempts, batches.c.file_id, batches.c.priority,
            batches.c.tenant_id,
        )  # fmt: skip
        async with self._db.read() as connection:
            rows = await connection.execute(statement.where(self._db.any_of(batches.c.id, missing)))
            for batch_id, defaults, *more in rows:
                self._known[batch_id] = BatchContext(Defaults.from_json(defaults), *more)

    def __getitem__(self, batch_id: int) -> BatchContext:
        """The context of a batch that was loaded."""
        return self._known[batch_id]

    async def attached(self, file_id: int, name: str) -> tuple[str, bytes] | None:
        """(filename, content) of a file that a line names; None when it was not kept."""
        kept = sa.select(attachments.c.attached_id)
        kept = kept.where(attachments.c.file_id == file_id, attachments.c.name == name)
        statement = sa.select(file_rows.c.id, file_rows.c.filename).where(
            sa.or_(file_rows.c.id == kept.scalar_subquery(), file_rows.c.public_id == name)
        )
        async with self._db.read() as connection:
            found = (await connection.execute(statement.order_by(file_rows.c.id).limit(1))).one_or_none()
        if found is None:
            return None
        return found.filename, b"".join([slice_ async for slice_ in files.content(self._db, found.id)])


class CallInHand(Protocol):
    """What an attempt needs of a call: its job, and a place to note when it went out."""

    job: Claimed
    started_at: float | None


class Desk:
    """Sends requests to the upstreams of the settings and judges what comes back."""

    def __init__(self, settings: Settings, *, clock: Callable[[], float], hints: Hints | None = None) -> None:
        self._clock = clock
        self._hints = hints or LocalHints()
        self._upstreams: dict[str, Upstream] = {}
        self._by_name: Mapping[str, UpstreamConfig] = {config.name: config for config in settings.upstreams}

    def config_for(self, upstream: str) -> UpstreamConfig | None:
        """The settings of the upstream with this name; None where it is not configured (any more)."""
        return self._by_name.get(upstream)

    def client(self, upstream: str) -> Upstream:
        """The client for a configured upstream. Raises SettingsError for a key or a CA file that cannot be used."""
        config = self._by_name[upstream]
        if config.name not in self._upstreams:
            self._upstreams[config.name] = Upstream(
                UpstreamSettings(
                    url=config.url,
                    key=config.key or "",
                    connect_timeout_seconds=config.connect_timeout_seconds,
                    write_timeout_seconds=config.write_timeout_seconds,
                    between_bytes_timeout_seconds=config.between_bytes_timeout_seconds,
                    total_timeout_seconds=config.total_timeout_seconds,
                    ca_file=config.ca_file,
                )
            )
        return self._upstreams[config.name]

    async def aclose(self) -> None:
        """Close all connections."""
        for upstream in self._upstreams.values():
            await upstream.aclose()

    async def attempt(self, call: CallInHand, upstream_name: str, contexts: BatchContexts) -> Outcome:
        """One upstream call for one job."""
        job = call.job
        context = contexts[job.batch_id]
        try:
            request = render(job.line, Form(job.form) if job.form else None, context.defaults)
        except UsageError as error:
            return Failure(Reason.BAD_REQUEST, str(error))
        kind = KINDS[request.kind]
        upstream = self.client(upstream_name)
        sending = (
            await self._multipart(upstream, kind, request, job, contexts)
            if kind.sends == "multipart"
            else upstream.request(request.path, request.body)
        )
        if isinstance(sending, Failure):
            return sending
        as_it_comes = kind.answers_binary(request.body)
        valid = _any_text if as_it_comes and kind.answer is not None else kind.valid
        expects = Expectation(json=not as_it_comes, valid=valid, usage=kind.usage)
        call.started_at = self._clock()
        if streams(request.body):
            outcome, headers = await streamed(
                upstream, sending, job=(job.batch_id, job.position), epoch=job.epoch, hints=self._hints,
                expects=expects, clock=self._clock,
            )  # fmt: skip
        else:
            reply = await upstream.send(sending)
            headers = reply.headers if isinstance(reply, Reply) else None
            outcome = judge(reply, expects=expects, now=self._clock())
        if context.is_held and headers is not None:
            return replace(outcome, headers=headers_for_caller(headers))
        return outcome

    async def _multipart(
        self, upstream: Upstream, kind: Kind, request: Request, job: Claimed, contexts: BatchContexts
    ) -> httpx.Request | Failure:
        fields, name = kind.multipart_fields(request.body)
        parts: list[tuple[str, tuple[str | None, bytes | str]]] = [(key, (None, value)) for key, value in fields]
        if name is not None:
            if name.startswith(data_uri.PREFIX):
                found: tuple[str, bytes] | None = data_uri.decoded(name)  # intake has seen that it can be
            else:
                found = await contexts.attached(job.file_id, name)
            if found is None:
                return Failure(
                    Reason.BAD_REQUEST, f"the file {name!r} was not kept; submit the batch again with it there"
                )
            parts.append(("file", (found[0].rpartition("/")[2], found[1])))
        encoded = httpx.Request("POST", "http://multipart.invalid/", files=parts)
        return upstream.request(request.path, encoded.read(), encoded.headers["content-type"])


def _any_text(_: bytes) -> None:
    """Nothing is wrong with it: what was asked for is text, of a kind that otherwise answers in JSON."""
