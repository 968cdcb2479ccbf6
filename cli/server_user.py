"""Whom local servers run as. PostgreSQL refuses to run as root, so root's servers run as somebody without rights."""

import os
import pwd
import stat
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from promptmill.errors import UsageError

#: The first that exists.
_UNPRIVILEGED: Final = ("postgres", "nobody")


def unprivileged_user(folder: Path) -> str | None:
    """None, or as root the user for both servers: the owner of the data that is there."""
    if os.geteuid() != 0:
        return None
    data = folder / "postgres"
    if data.exists():
        return pwd.getpwuid(data.stat().st_uid).pw_name
    for name in _UNPRIVILEGED:
        try:
            return pwd.getpwnam(name).pw_name
        except KeyError:
            continue
    raise UsageError("PostgreSQL does not run as root, and there is no user to run it as; start this as another user")


def let_through(user: str, places: Sequence[Path]) -> None:
    """Root only: make sure that the servers' user can pass through to these folders, and say what had to be opened."""
    for place in places:
        for folder in reversed([place.resolve(), *place.resolve().parents]):
            mode = folder.stat().st_mode
            if not mode & stat.S_IXOTH:
                folder.chmod(mode | stat.S_IXOTH)
                print(f"chmod o+x {folder}: PostgreSQL does not run as root, and {user} has to pass", file=sys.stderr)


def give(user: str | None, *paths: Path) -> None:
    """Make these the user's; nobody's but ours where there is none."""
    if user is not None:
        account = pwd.getpwnam(user)
        for path in paths:
            os.chown(path, account.pw_uid, account.pw_gid)
