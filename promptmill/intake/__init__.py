"""The one way in, through five doors: `stream` (a file on the command line), `kept` (a file that is uploaded), `admit`
(a batch of such a file), `append` (jobs added to an open batch) and `inbox` (jobs submitted singly). What a line means,
and whether it may come in, is `checker`'s, whichever door it comes through.
"""

from promptmill.intake.stream import Source, Taken, Terms, take_in

__all__ = ["Source", "Taken", "Terms", "take_in"]
