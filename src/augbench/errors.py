"""The one exception that users are meant to read.

Everything that a user can get wrong (a config key, a folder, a file, a second run) raises :class:`UserError` with a single
line that names the key or file, the value found and what is allowed. Entry points print that line and exit with status 1;
any other exception is a defect and keeps its traceback.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """A problem that the user can fix.

    Parameters
    ----------
    where : str
        The config key (``classifier.lr``) or the file that is wrong.
    found : object
        What stands there; shown with ``repr`` when it is a string.
    allowed : str
        What would be accepted, or what to do.
    """

    def __init__(self, where: str, found: object, allowed: str) -> None:
        self.where, self.found, self.allowed = where, found, allowed
        super().__init__(f"{where}: {found if not isinstance(found, str) else found.strip()}; {allowed}")

    def for_terminal(self) -> str:
        """What entry points print: each line of the message, under the program's name."""
        return "\n".join(f"augbench: {line}" for line in str(self).splitlines())


@contextmanager
def ending_in_one_line() -> Iterator[None]:
    """Around what the Snakefile calls: a :class:`UserError` ends the process with its line and status 1."""
    try:
        yield
    except UserError as error:
        sys.exit(error.for_terminal())
