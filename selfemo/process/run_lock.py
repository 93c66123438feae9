"""Locks a run's directory for one launch, before the launch changes anything there.

Two signs say that a launch is alive. flock is exact among the processes of one machine, containers included,
and is gone with its process. Another machine may not see it (NFS with local locks, Lustre without locks), so
the file also holds a record of its owner, with a count of heartbeats. A record of another machine counts as
dead once its count has stood still for LEASE_S; no clocks are compared.
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import os
import socket
import threading
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import IO

from selfemo.common.errors import UserError
from selfemo.common.files import close_in_children
from selfemo.process import watchdog
from selfemo.process.run_owner import (
    POLL_S,
    SETTLE_S,
    Owner,
    Say,
    is_alive,
    read_owner,
    read_settled,
    write_owner,
)
from selfemo.records.directory import LOCK_NAME, unwritable

HEARTBEAT_S = 5.0
PROBES = 10
"""A dry run holds the lock for an instant; a launch that meets it tries again, this often."""


class RunLock:
    """The lock of one run's directory, held by this process until `release`, or until it ends."""

    def __init__(self, root: Path, file: IO[bytes], owner: Owner) -> None:
        self._root, self._path, self._file, self._owner = root, root / LOCK_NAME, file, owner
        self._over = threading.Event()
        threading.Thread(target=self._keep, name="selfemo-run-lock", daemon=True).start()

    @classmethod
    def take(cls, root: Path, say: Say) -> RunLock:
        """Take the lock of a run's directory; the directory is made if it does not exist.

        Args:
            say: told once if a launch on another machine has to be watched.

        Raises:
            UserError: another launch holds it; names the launch. Nothing there has changed.
        """
        try:
            root.mkdir(parents=True, exist_ok=True)
            file, is_new, locks_work = _open_locked(root)
        except OSError as error:
            raise unwritable(root, error) from None
        try:
            return cls(root, file, _claim(root, file, is_new, locks_work, say))
        except BaseException as error:
            file.close()
            if isinstance(error, OSError):
                raise unwritable(root, error) from None
            raise

    def release(self) -> None:
        """Remove the lock. A second call does nothing."""
        if not self._over.is_set():
            self._over.set()
            with contextlib.suppress(OSError):
                found = read_owner(self._path)
                if found and found.token == self._owner.token:
                    self._path.unlink()
            self._file.close()

    def beat(self) -> str:
        """Write a heartbeat. Returns why this launch no longer holds the run; "" if it does."""
        try:
            found = read_owner(self._path)
        except FileNotFoundError:
            return f"{self._path} is gone: the run's directory was removed, moved or begun anew"
        except OSError:  # a server that is away for a while
            return ""
        if found and found.token != self._owner.token:
            return f"{self._root} was taken over by {found}"
        self._owner = replace(self._owner, beats=self._owner.beats + 1)
        with contextlib.suppress(OSError, ValueError):  # ValueError: released meanwhile
            write_owner(self._file, self._owner)
        return ""

    def _keep(self) -> None:
        while not self._over.wait(HEARTBEAT_S):
            if lost := self.beat():
                watchdog.limit(0.0, lost)


def find_owner(root: Path, say: Say) -> Owner | None:
    """Find the launch that holds a run's directory; None if there is none. Changes nothing."""
    path = root / LOCK_NAME
    try:
        with path.open("rb") as file:
            free = _flock(file, fcntl.LOCK_SH)
        found = read_settled(path)
        if free is False:
            return found or Owner("an unknown host", "", 0, "", "an unknown time", "")
        return found if found and is_alive(path, found, bool(free), say) else None
    except OSError:
        return None


def held(root: Path, owner: Owner | None) -> UserError:
    """Make the error of a launch whose run another launch holds."""
    return UserError(
        f"{root}: {owner or 'another launch'} holds this run: wait for its end, or choose another "
        "output_dir; nothing was changed"
    )


def _open_locked(root: Path) -> tuple[IO[bytes], bool, bool]:
    """Open the file and lock it. Returns it, whether it is new, and whether the file system has locks."""
    path = root / LOCK_NAME
    while True:
        try:
            # O_EXCL: of several machines, one alone makes the file
            file, is_new = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), "r+b"), True
        except FileExistsError:
            try:
                file, is_new = os.fdopen(os.open(path, os.O_RDWR), "r+b"), False
            except FileNotFoundError:  # released meanwhile
                continue
        close_in_children(file)
        free = _flock(file, fcntl.LOCK_EX)
        if free is False:
            file.close()
            raise held(root, read_settled(path))
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file, is_new, bool(free)
        file.close()  # that of a launch which has ended meanwhile and removed it


def _flock(file: IO[bytes], kind: int) -> bool | None:
    """Lock an open file. False: another process holds it; None: this file system has no such locks."""
    for _ in range(PROBES):
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(POLL_S)
        except OSError:
            return None
    return False


def _claim(root: Path, file: IO[bytes], is_new: bool, locks_work: bool, say: Say) -> Owner:
    """Write this launch into the file, unless the launch in it is alive."""
    path, here = root / LOCK_NAME, watchdog.this_process()
    found = None if is_new else read_settled(path)
    if found and is_alive(path, found, locks_work, say):
        raise held(root, found)
    since = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
    mine = Owner(socket.gethostname(), here.host, here.pid, here.started, since, uuid.uuid4().hex)
    write_owner(file, mine)
    if found and not (locks_work and found.is_of_this_kernel):
        time.sleep(SETTLE_S)  # a third machine may have found the same dead owner
        winner = read_owner(path)
        if winner is None or winner.token != mine.token:
            raise held(root, winner)
    return mine
