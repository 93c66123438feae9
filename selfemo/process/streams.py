"""Gives a command its standard streams, whatever its caller has done to them.

A daemon, cron or `>&-` closes them. The next file that is opened then gets the number of the closed stream,
and what a library prints there is written into that file. A locale may lack the letters of a dialogue.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from selfemo.common.errors import UserError

LOST = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EFBIG)


@contextmanager
def standard_streams() -> Iterator[None]:
    """Run a command whose output is lost if standard output or error is closed.

    A reader that has gone (`| head`) ends it in silence, with exit status 1. A closed standard input stays
    None.

    Raises:
        UserError: standard output cannot be written.
    """
    _open_closed()
    try:
        try:
            yield
        except SystemExit:
            sys.stdout.flush()
            raise
    except OSError as error:
        if error.filename is not None or error.errno not in (*LOST, errno.EPIPE):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is written as the interpreter ends
        if error.errno == errno.EPIPE:
            sys.exit(1)
        raise UserError(
            f"standard output cannot be written ({error.strerror}): free space, or send it elsewhere"
        ) from None


def _open_closed() -> None:
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    if sys.stdout is None:
        sys.stdout = os.fdopen(1, "w", closefd=False)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", closefd=False)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a locale of few letters, such as Latin-1
