"""What the exit codes mean; 2 is a usage error, and Typer's own."""

from typing import Final

#: Not every job succeeded.
EXIT_SOME_FAILED: Final = 3
#: Ctrl-C or SIGTERM; as shells have it, 128 + SIGINT.
EXIT_INTERRUPTED: Final = 130
