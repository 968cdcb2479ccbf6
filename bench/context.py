"""What every scenario is handed."""

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Bench:
    """One run of the bench."""

    folder: Path
    quick: bool
    open_files: int
    with_nginx: bool = True
    started: float = field(default_factory=time.monotonic)

    def pick(self, quick: T, full: T) -> T:
        """The one that fits the run."""
        return quick if self.quick else full

    def tell(self, words: str) -> None:
        """What is going on, for whoever waits; not part of the result."""
        print(f"[{time.monotonic() - self.started:5.0f} s] {words}", file=sys.stderr, flush=True)
