"""The HTTP door: `uvicorn api.app:create_app --factory`. Puts the parts together; nothing happens at import."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from api import health
from promptmill.engine import Database
from promptmill.settings import Settings, load


def create_app(settings: Settings | None = None) -> FastAPI:
    """The application; settings come from the environment where none are given. Raises SettingsError."""
    chosen = load(os.environ) if settings is None else settings

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        """What it yields is the `state` of every request."""
        db = Database(chosen.database_url)
        try:
            yield {"settings": chosen, "db": db}
        finally:
            await db.aclose()

    app = FastAPI(title="promptmill", lifespan=lifespan)
    app.include_router(health.router)
    return app
