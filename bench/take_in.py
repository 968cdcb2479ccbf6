"""One intake in a process of its own: python -m bench.take_in FILE DATABASE. Prints seconds and jobs as JSON."""

import json
import sys
import time
from pathlib import Path

import uvloop

from promptmill import schema
from promptmill.engine import Database
from promptmill.intake import Source, Terms, take_in
from promptmill.jsonl import open_input
from promptmill.settings import load


async def take(path: Path, database: str) -> dict[str, float]:
    """Take the file in, as `promptmill run` does."""
    settings = load({}, database_url=database, base_url="http://127.0.0.1:1/v1")
    db = Database(settings.database_url)
    try:
        await schema.ensure(db)
        started = time.perf_counter()
        with open_input(str(path)) as chunks:
            source = Source(name=str(path), chunks=chunks, folder=path.parent)
            taken = await take_in(db, settings, source, Terms(), clock=time.time)
        return {"jobs": taken.jobs, "seconds": time.perf_counter() - started}
    finally:
        await db.aclose()


if __name__ == "__main__":
    print(json.dumps(uvloop.run(take(Path(sys.argv[1]), sys.argv[2]))))
