"""The exception for problems that users can fix.

A wrong config key, folder or file, or a second run, raises :class:`UserError`. Its single line names the key
or file, the value found and what is allowed. Entry points print that line and exit with status 1. An error of
the operating system that names a file becomes such a line, too. Any other exception is a defect and keeps its
traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

NAMED = 10  # number of names or problems that an error lists before it counts the others


class UserError(Exception):
    """A problem that the user can fix.

    Parameters
    ----------
    where : str
        The config key (``classifier.lr``) or the file that is wrong.
    found : object
        The value found there, or a description of the problem.
    allowed : str
        Values that are accepted, or what to do.
    """

    def __init__(self, where: str, found: object, allowed: str) -> None:
        self.where, self.found, self.allowed = where, found, allowed
        super().__init__(f"{where}: {found if not isinstance(found, str) else found.strip()}; {allowed}")

    def for_terminal(self) -> str:
        """Return the message for the terminal, with the program's name before each line."""
        return "\n".join(f"augbench: {line}" for line in str(self).splitlines())


def some(names: Sequence[str], most: int = NAMED) -> str:
    """List the first names, and give the number of the others."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


@contextmanager
def naming_files() -> Iterator[None]:
    """Raise :class:`UserError` if the operating system refuses the block a file: its name and the reason."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            raise
        where, reason = os.fsdecode(error.filename), error.strerror or type(error).__name__
        raise UserError(
            where, reason, "a file or folder that exists and that you may use is needed"
        ) from error


@contextmanager
def ending_in_one_line() -> Iterator[None]:
    """Exit with status 1 and the error's line if the block raises :class:`UserError`; for the Snakefile."""
    try:
        with naming_files():
            yield
    except UserError as error:
        sys.exit(error.for_terminal())
