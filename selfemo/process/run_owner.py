"""Records which launch holds a run, and judges from the record whether that launch is alive.

selfemo.process.run_lock says when the record is asked.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import IO

from pydantic import TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from selfemo.common.printable import printable
from selfemo.config.types import STRICT
from selfemo.process import watchdog

LEASE_S = 60.0
"""Seconds without a heartbeat after which a launch on another machine counts as dead."""
SETTLE_S = 2.0
"""Seconds within which a launch that has begun to write its record has written it."""
POLL_S = 0.1
RECORD_BYTES = 1024

Say = Callable[[str], None]


@dataclass(frozen=True, config=STRICT)
class Owner:
    """The launch that holds a run."""

    host: str
    machine: str
    """Boot id and process namespace, as in watchdog.Process.host."""
    pid: int
    started: str
    """Start of the process, in clock ticks since boot."""
    since: str
    token: str
    beats: int = 0

    def __str__(self) -> str:
        return printable(f"a launch on {self.host} (process {self.pid}, since {self.since})")

    @property
    def is_of_this_kernel(self) -> bool:
        """Whether it runs, or ran, under this boot of this machine, in whatever container."""
        return self.machine.partition(" ")[0] == watchdog.this_process().host.partition(" ")[0]


_ADAPTER: TypeAdapter[Owner] = TypeAdapter(Owner)


def read_owner(path: Path) -> Owner | None:
    """Read a record; None if it is not whole. NFS shows the newest state to whoever opens the file anew."""
    with path.open("rb") as file:
        text = file.read(RECORD_BYTES)
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError:
        return None


def read_settled(path: Path) -> Owner | None:
    """Read a record; a launch that has just made the file is given SETTLE_S to write it."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        with contextlib.suppress(FileNotFoundError):
            if found := read_owner(path):
                return found
        if time.monotonic() > deadline:
            return None
        time.sleep(POLL_S)


def write_owner(file: IO[bytes], owner: Owner) -> None:
    """Write a record in one piece of fixed length, and have it reach the disk or the server."""
    os.pwrite(file.fileno(), json.dumps(asdict(owner)).encode().ljust(RECORD_BYTES), 0)
    os.fsync(file.fileno())


def is_alive(path: Path, owner: Owner, locks_work: bool, say: Say) -> bool:
    """Decide whether the launch in a file is alive, although nobody is seen to hold the file's lock.

    Args:
        locks_work: the file system has locks; it then shows every holder under this kernel.
        say: told once if a launch on another machine is watched, which takes up to LEASE_S.
    """
    if locks_work and owner.is_of_this_kernel:
        return False
    if owner.machine == watchdog.this_process().host:
        return watchdog.is_running(watchdog.Process(owner.machine, owner.pid, owner.started))
    say(f"{path.parent}: watching for up to {LEASE_S:.0f} s whether {owner} is alive")
    deadline = time.monotonic() + LEASE_S
    while time.monotonic() < deadline:
        try:
            found = read_owner(path)
        except FileNotFoundError:
            return False
        if found is not None and found != owner:
            return True
        time.sleep(POLL_S)
    return False
