"""Node, with the SDKs from npm in the versions that node/package.json names."""

import hashlib
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).parent / "node"
_INSTALL_SECONDS = 180


class NoNodeError(Exception):
    """There is no Node here, or npm reaches nothing."""


@dataclass(frozen=True)
class Node:
    """A folder in which scripts find the SDKs."""

    folder: Path

    def run(self, script: str | Path, environment: Mapping[str, str], seconds: float = 60.0) -> str:
        """What it prints."""
        done = subprocess.run(
            ["node", str(script)],
            cwd=self.folder, env=dict(environment), stdin=subprocess.DEVNULL, capture_output=True, text=True,
            timeout=seconds, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @staticmethod
    def checks_of(script: str) -> set[str]:
        """The names of the checks in a script."""
        return set(re.findall(r"^  async (\w+)\(\)", (SCRIPTS / script).read_text(), re.MULTILINE))


def installed(folder: Path) -> Node:
    """The scripts in an empty folder, and the SDKs beside them. Raises NoNodeError."""
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        raise NoNodeError(f"there is no {missing[0]} on the PATH")
    for path in SCRIPTS.iterdir():
        shutil.copy(path, folder)
    (folder / "node_modules").symlink_to(_packages(folder / "packages") / "node_modules")
    return Node(folder)


def _packages(otherwise: Path) -> Path:
    """They are installed once, beside the tools of this virtual environment; the repository stays as it is."""
    wanted = (SCRIPTS / "package.json").read_bytes()
    in_environment = sys.prefix != sys.base_prefix
    place = Path(sys.prefix, "node") if in_environment else otherwise
    place = place / hashlib.sha256(wanted).hexdigest()[:12]
    stamp = place / "installed"
    if not stamp.exists():
        place.mkdir(parents=True, exist_ok=True)
        (place / "package.json").write_bytes(wanted)
        done = subprocess.run(
            ["npm", "install", "--no-package-lock", "--no-audit", "--no-fund"],
            cwd=place, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_INSTALL_SECONDS, check=False,
        )  # fmt: skip
        if done.returncode != 0:
            raise NoNodeError(f"npm install failed: {done.stderr[-2000:]}")
        stamp.touch()
    return place
