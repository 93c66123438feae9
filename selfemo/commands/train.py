"""Run training in one process of torchrun's world: set up output, and report failures in one line.

Rank 0 reports to the user. A rank that fails prints one line that names rank and host, leaves the
traceback in its log file, and ends at once: its peers may wait in a collective, and an orderly
shutdown would wait for them. A watchdog ends a rank that takes too long.

Rank 0 prints a UserError bare, any other rank with rank and host. If every rank is known to raise
it (`errors.on_all_ranks`), rank 0 alone prints it. In doubt a line is printed twice, since a run
must not end in silence.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import traceback
from pathlib import Path
from types import TracebackType

from selfemo.commands.preflight import check_layout, check_views, with_pinned_model
from selfemo.common.errors import EXIT_USER_ERROR, UserError
from selfemo.config.schema import RunConfig
from selfemo.process import watchdog
from selfemo.process.stop import StopSignals
from selfemo.process.terminal import Terminal
from selfemo.records.directory import RunDirectory

FULL_OR_BARRED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EROFS)

OWN_STORES = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
"""Variable that torchrun (2.13) reads; without it torchrun keeps one store for all the worlds of a
job. A worker inherits it and cannot set it."""


def run_training(config: RunConfig) -> None:
    """Train in this process as one rank of torchrun's world."""
    signals = StopSignals()
    signals.listen()
    rank = int(os.environ.get("RANK", "0"))
    check_views(config)
    if rank == 0:
        config = with_pinned_model(config)
    check_layout(config, int(os.environ.get("WORLD_SIZE", "1")))
    run = RunDirectory.claim(config) if rank == 0 else RunDirectory(Path(config.output_dir))
    terminal = Terminal(rank == 0, run.root, rank)
    if run.is_complete:
        terminal.say(
            f"{run.root}: this run is complete, see summary.json; remove the directory to run it again"
        )
        return
    if int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0")) and not os.environ.get(OWN_STORES):
        terminal.say(
            "torchrun restarts workers with the store of the previous world, "
            f"through which they may not find each other: export {OWN_STORES}=1"
        )
    on_tick = signals.limit(config.checkpoint.grace_s)
    watchdog.start(rank, config.timeout_s, config.startup_timeout_s, terminal.error, on_tick)
    _tell_failures(terminal, rank)
    from selfemo.trainer import train

    try:
        train(config, run, terminal, signals)
    except UserError as error:  # the command line would print it too, but in an orderly shutdown
        sys.excepthook(UserError, error, error.__traceback__)
    watchdog.stop()


def _tell_failures(terminal: Terminal, rank: int) -> None:
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
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(EXIT_USER_ERROR if isinstance(error, UserError) else 1)

    sys.excepthook = report
