"""Run training in one process of torchrun's world: set up output, and report failures in one line.

Rank 0 reports to the user. A rank that fails prints one line that names rank and host, leaves the
traceback in its log file, and ends at once: its peers may wait in a collective, and an orderly
shutdown would wait for them. A watchdog ends a rank that takes too long.

Rank 0 prints a UserError bare, any other rank with rank and host. If every rank is known to raise
it (`errors.on_all_ranks`), rank 0 alone prints it. In doubt a line is printed twice, since a run
must not end in silence.

Rank 0 takes the run's lock before anything else, and the other ranks write nothing before they know
that it has it.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from selfemo.commands.preflight import check_layout, check_views, with_pinned_model
from selfemo.common.errors import EXIT_USER_ERROR, UserError
from selfemo.common.printable import quote
from selfemo.config.schema import RunConfig
from selfemo.process import watchdog
from selfemo.process.admission import Place, Verdict, agree
from selfemo.process.run_lock import RunLock
from selfemo.process.stop import StopSignals
from selfemo.process.terminal import Terminal
from selfemo.records.directory import LOCK_NAME, RunDirectory

FULL_OR_BARRED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)

DIGITS = 9
"""Most digits of a rank or a world's size."""
OWN_STORES = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Variable that torchrun (2.13) reads; without it torchrun keeps one store for all the worlds of a
job. A worker inherits it and cannot set it."""


def run_training(config: RunConfig) -> None:
    """Train in this process as one rank of torchrun's world."""
    signals = StopSignals()
    signals.listen()
    place = place_in_world()
    check_views(config)
    check_layout(config, place.world_size)
    run = RunDirectory(Path(config.output_dir))
    terminal = Terminal(place.rank == 0, run.root, place.rank)
    lock, verdict = None, None
    if place.rank == 0:
        config, lock, verdict = claim(config, terminal)
    on_tick = signals.limit(config.checkpoint.grace_s)
    watchdog.start(place.rank, config.timeout_s, config.startup_timeout_s, terminal.error, on_tick)
    _tell_failures(terminal, place.rank, lock)
    verdict = agree(place, verdict, config.startup_timeout_s)
    if verdict == "go on":
        terminal.open_log()
        _train(config, run, terminal, signals)
    else:
        terminal.drop_log()
    watchdog.stop()
    if lock:
        lock.release()
    if verdict == "refused":
        sys.exit(EXIT_USER_ERROR)


def place_in_world(environment: Mapping[str, str] = os.environ) -> Place:
    """Read the variables that torchrun sets for this process; without them it is alone.

    Raises:
        UserError: one of them is no whole number, the rank is not in the world, or the world has no place
            to meet at.
    """
    found = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    found |= {name: environment[name] for name in found if name in environment}
    for name, value in found.items():
        if not value.isascii() or not value.isdigit() or len(value) > DIGITS:
            raise UserError(f"{name}={quote(value)}: expected a whole number, as torchrun sets it: unset it")
    rank, size = int(found["RANK"]), int(found["WORLD_SIZE"])
    if rank >= size:
        raise UserError(f"RANK={rank} is not below WORLD_SIZE={size}: start the command with torchrun")
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if not environment.get(name)]
    if size > 1 and missing:
        raise UserError(
            f"WORLD_SIZE={size} and no {missing[0]}: start the command with torchrun, which sets them, or "
            "unset WORLD_SIZE for one process"
        )
    port = environment.get("MASTER_PORT", "")
    if size > 1 and not (port.isascii() and port.isdigit() and len(port) <= DIGITS):
        raise UserError(
            f"MASTER_PORT={quote(port)}: expected a number (a Kubernetes service called master sets an "
            "address there): set it, or start the command with torchrun"
        )
    return Place(rank, size)


def claim(config: RunConfig, terminal: Terminal) -> tuple[RunConfig, RunLock | None, Verdict]:
    """Lock and claim the run's directory, and tell the user if this launch must not go on.

    Nothing there changes unless it may. The configuration comes back with the hub's commit in it.
    """
    root, lock = Path(config.output_dir), None
    try:
        config = with_pinned_model(config)
        if not (root / LOCK_NAME).exists() and RunDirectory.check(config).is_complete:
            run = RunDirectory(root)
        else:
            lock = RunLock.take(root, terminal.say)
            run = RunDirectory.claim(config)
    except UserError as error:
        terminal.error(f"selfemo: {error}")
        if lock:
            lock.release()
        return config, None, "refused"
    if not run.is_complete:
        return config, lock, "go on"
    terminal.say(f"{run.root}: this run is complete, see summary.json; remove the directory to run it again")
    if lock:
        lock.release()
    return config, None, "complete"


def _train(config: RunConfig, run: RunDirectory, terminal: Terminal, signals: StopSignals) -> None:
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and not os.environ.get(OWN_STORES):
        terminal.say(
            "torchrun restarts workers with the store of the previous world, "
            f"through which they may not find each other: export {OWN_STORES}=1"
        )
    from selfemo.trainer import train

    try:
        train(config, run, terminal, signals)
    except UserError as error:  # the command line would print it too, but in an orderly shutdown
        sys.excepthook(UserError, error, error.__traceback__)


def _tell_failures(terminal: Terminal, rank: int, lock: RunLock | None = None) -> None:
    def report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        traceback.print_exception(kind, error, trace)
        if isinstance(error, OSError) and error.errno in FULL_OR_BARRED:
            error = UserError(
                f"{error.filename or 'a file of the run'}: cannot be written ({error.strerror}): "
                "correct that, then run again"
            )
        if isinstance(error, UserError):
            if rank == 0:
                terminal.error(f"selfemo: {error}")
            elif not error.shared:
                terminal.error(f"selfemo: rank {rank} on {socket.gethostname()}: {error}")
        else:
            first_line = str(error).partition("\n")[0]
            terminal.error(
                f"selfemo: {watchdog.status(error)} failed: {kind.__name__}: "
                f"{first_line} (traceback in {terminal.log_path})"
            )
        watchdog.kill_stopped_peers()
        if lock:
            lock.release()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_USER_ERROR if isinstance(error, UserError) else 1)

    sys.excepthook = report
