"""`promptmill doctor`: what is wrong, and what to do about it. Health is a fresh heartbeat while there is work, not a
process being up."""

import asyncio
import json
import os
import time
from dataclasses import asdict, dataclass
from typing import Annotated, Literal

import redis.asyncio as redis
import sqlalchemy as sa
import typer
from redis.exceptions import RedisError

from cli import standstill
from promptmill import schema
from promptmill.engine import Database
from promptmill.errors import PromptmillError
from promptmill.job import LaneState
from promptmill.settings import Settings, load
from promptmill.store import lanes, pauses, workers
from promptmill.store.active import active

#: Clocks that differ by more than this make retries and deadlines fall at odd times.
_SKEW_SECONDS = 2.0

Level = Literal["ok", "note", "wrong"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    level: Level
    subject: str
    words: str


def doctor(
    *,
    db: Annotated[str | None, typer.Option(help="Database file or URL.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for machines.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only what is wrong.")] = False,
) -> None:
    """Say what is wrong, and what to do. Exit 1 when anything is."""
    findings = asyncio.run(examine(load(os.environ, database_url=db)))
    wrong = any(finding.level == "wrong" for finding in findings)
    if as_json:
        print(json.dumps({"healthy": not wrong, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        marks = {"ok": "✓", "note": "•", "wrong": "✗"}
        for finding in findings:
            if not quiet or finding.level == "wrong":
                print(f"{marks[finding.level]} {finding.subject}: {finding.words}")
    raise typer.Exit(1 if wrong else 0)


async def examine(settings: Settings) -> list[Finding]:
    """Everything that can be looked at from here."""
    findings = [await _redis(settings.redis_url)] if settings.redis_url else []
    db = Database(settings.database_url)
    try:
        found = await schema.version(db)
        if found != schema.HEAD:
            words = f"the tables are at {found or 'nothing'}, {schema.HEAD} is needed; run: promptmill migrate"
            return [*findings, Finding("wrong", "database", words)]
        findings.append(Finding("ok", "database", f"reachable, tables at {found}"))
        now = time.time()
        findings.append(await _clock(db, now))
        findings += await _workers(db, now)
        findings += await _lanes(db, now)
        findings += [Finding("note", "paused", standstill.named(pause, name)) for pause, name in await pauses.named(db)]
    except (OSError, sa.exc.SQLAlchemyError, PromptmillError) as error:
        words = str(getattr(error, "orig", None) or error).partition("\n")[0]
        findings.append(Finding("wrong", "database", f"cannot be used: {words}"))
    finally:
        await db.aclose()
    return findings


async def _redis(url: str) -> Finding:
    try:
        async with redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2) as client:
            await client.ping()
    except (RedisError, OSError) as error:
        words = f"away ({type(error).__name__}): workers go on with a part of the limits each; new work is found late"
        return Finding("wrong", "redis", words)
    return Finding("ok", "redis", "reachable")


async def _clock(db: Database, now: float) -> Finding:
    if db.is_sqlite:
        return Finding("ok", "clock", "the database has no clock of its own")
    async with db.read() as connection:
        theirs = float((await connection.execute(sa.text("SELECT extract(epoch FROM clock_timestamp())"))).scalar_one())
    skew = theirs - now
    if abs(skew) > _SKEW_SECONDS:
        return Finding("wrong", "clock", f"this host differs from the database by {skew:+.1f} s; set up NTP")
    return Finding("ok", "clock", f"within {abs(skew):.1f} s of the database's")


async def _workers(db: Database, now: float) -> list[Finding]:
    alive = await workers.alive(db, now=now)
    silent = await workers.silent(db, now=now)
    ready = await active(db, now=time.time())
    open_lanes = {row.id for row in await lanes.read(db) if row.state is not LaneState.HALTED}
    claimable = any(each.lane_id in open_lanes for each in ready)
    findings = []
    if silent:
        words = f"{len(silent)} stopped without a word; their jobs are given back by the next that does upkeep"
        findings.append(Finding("wrong", "workers", words))
    if alive:
        findings.append(Finding("ok", "workers", f"{alive} alive"))
    elif claimable:
        command = "promptmill serve" if db.is_sqlite else "celery -A worker.app worker -Q drain"
        words = f"none is alive while jobs are ready; start one: {command}"
        findings.append(Finding("wrong", "workers", words))
    else:
        findings.append(Finding("note", "workers", "none is at work, and no job is ready"))
    return findings


async def _lanes(db: Database, now: float) -> list[Finding]:
    findings = []
    not_served = (await workers.at_work(db, now=now)).not_served
    for row in await lanes.read(db):
        if row.id in not_served:
            findings.append(Finding("wrong", f"lane {row.model}", standstill.not_served(row)))
        if row.state is LaneState.HALTED:
            words = f"halted: {row.reason}; when it is mended: promptmill resume"
            findings.append(Finding("wrong", f"lane {row.model}", words))
        elif row.paused_until is not None and row.paused_until > now:
            words = f"paused for {row.paused_until - now:.0f} s, as the upstream asked"
            findings.append(Finding("note", f"lane {row.model}", words))
    return findings
