"""Two questions that whoever runs us asks: does the process live (else restart it), and can it serve (else send nobody
here). The first never depends on others: a database that is away is no reason to restart a server."""

import asyncio
from typing import Any, Final

import redis.asyncio as redis
import sqlalchemy as sa
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from redis.exceptions import RedisError

from promptmill import schema
from promptmill.engine import Database
from promptmill.errors import StoreError
from promptmill.settings import Settings

router = APIRouter(tags=["health"])

#: Whoever asks waits a few seconds at most.
_DATABASE_SECONDS: Final = 3.0
_REDIS_SECONDS: Final = 1.0

_TEXT: Final = {"type": "string"}


_FOUND: Final = {
    "type": "object",
    "required": ["status", "database", "redis"],
    "properties": {"status": {"enum": ["ok", "unavailable"]}, "database": _TEXT, "redis": _TEXT},
}
_READY: Final[dict[int | str, dict[str, Any]]] = {
    200: {"description": "It can serve.", "content": {"application/json": {"schema": _FOUND}}},
    503: {"description": "It cannot; `database` says why.", "content": {"application/json": {"schema": _FOUND}}},
}


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """The process lives."""
    return {"status": "ok"}


@router.get("/readyz", responses=_READY)
async def readyz(request: Request) -> JSONResponse:
    """The database can be reached and has our tables. Redis is reported only: without it things are found later."""
    settings: Settings = request.state.settings
    database, redis_state = await asyncio.gather(_database(request.state.db), _redis(settings.redis_url))
    ready = database == "ok"
    content = {"status": "ok" if ready else "unavailable", "database": database, "redis": redis_state}
    return JSONResponse(content, status_code=200 if ready else 503)


async def _database(db: Database) -> str:
    try:
        async with asyncio.timeout(_DATABASE_SECONDS):
            found = await schema.version(db)
    except TimeoutError:
        return f"no answer within {_DATABASE_SECONDS:g} s"
    except (OSError, sa.exc.SQLAlchemyError, StoreError) as error:
        return f"cannot be reached ({type(getattr(error, 'orig', None) or error).__name__})"
    if found != schema.HEAD:
        return f"the schema is {found or 'missing'}, {schema.HEAD} is needed; run: promptmill migrate"
    return "ok"


async def _redis(url: str | None) -> str:
    if url is None:
        return "not configured"
    client = redis.Redis.from_url(url, socket_connect_timeout=_REDIS_SECONDS, socket_timeout=_REDIS_SECONDS)
    try:
        async with client:
            await client.ping()
    except (RedisError, OSError) as error:
        return f"cannot be reached ({type(error).__name__})"
    return "ok"
