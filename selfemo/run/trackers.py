"""Sends records to TensorBoard, and to Weights & Biases if the configuration asks for it.

Both are views of metrics.jsonl and hold nothing of their own. They open with the first record and begin by
reading the whole file. If a run is resumed, with its records cut back to the checkpoint, the views therefore
equal the file again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Protocol

from selfemo.common.errors import UserError
from selfemo.config.schema import RunConfig
from selfemo.records.directory import TENSORBOARD_NAME
from selfemo.run.scalars import GROUP_AXES, Scalars, scalars_of

LOGIN_S = 1
"""Seconds to wait for a key that is asked for in the log, where nobody sees the question."""
FLUSH_S = 10
"""Seconds by which an open TensorBoard may lag behind."""


class Tracker(Protocol):
    """One view of the records."""

    def log(self, scalars: Scalars) -> None:
        """Add one record."""

    def close(self) -> None:
        """Write pending data and close the view."""


class TensorBoard:
    """Writes event files in RUN_DIR/tensorboard, which is made anew."""

    def __init__(self, root: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        directory = root / TENSORBOARD_NAME
        if directory.exists():
            shutil.rmtree(directory)
        self._writer = SummaryWriter(str(directory), flush_secs=FLUSH_S)

    def log(self, scalars: Scalars) -> None:
        """Add one point per scalar."""
        for name, value in scalars.values.items():
            self._writer.add_scalar(name, value, scalars.step)

    def close(self) -> None:
        """Flush and close the event file."""
        self._writer.close()


class WeightsAndBiases:
    """Writes one W&B run per start of a training; parts of a resumed run share a group."""

    def __init__(self, root: Path, config: RunConfig, mode: Literal["offline", "online"]) -> None:
        import wandb

        settings = wandb.Settings(console="off", silent=True, disable_git=True, disable_code=True)
        settings.login_timeout = LOGIN_S
        try:
            self._run = wandb.init(
                project=config.tracking.wandb_project,
                mode=mode,
                name=root.name,
                group=root.name,
                dir=str(root),  # offline files and logs stay with the run
                config=asdict(config),
                settings=settings,
            )
        except (wandb.Error, TimeoutError) as error:
            raise UserError(
                f"tracking.wandb={mode}: Weights & Biases does not start ({error}): run `wandb login`, or "
                "set tracking.wandb=offline"
            ) from error
        for group, event in GROUP_AXES.items():
            self._run.define_metric(f"{group}/*", step_metric=event)

    def log(self, scalars: Scalars) -> None:
        """Add one history row, with the step of its own axis."""
        self._run.log({scalars.event: scalars.step, **scalars.values})

    def close(self) -> None:
        """Send pending data and end the W&B run."""
        self._run.finish()


class Tracking:
    """All views of one run. Rank 0 alone has one."""

    def __init__(self, metrics: Path, config: RunConfig) -> None:
        """`metrics`: the run's metrics.jsonl, to which every record is appended before it is logged here."""
        self._metrics, self._config = metrics, config
        self._trackers: list[Tracker] | None = None

    def log(self, record: Mapping[str, Any]) -> None:
        """Show the record that was last appended to metrics.jsonl."""
        if self._trackers is None:
            self._trackers = self._open()
        else:
            self._log(record)

    def close(self) -> None:
        """Finish every view."""
        for tracker in self._trackers or ():
            tracker.close()

    def _open(self) -> list[Tracker]:
        root = self._metrics.parent
        self._trackers = [TensorBoard(root)]
        mode = self._config.tracking.wandb
        if mode != "none":
            self._trackers.append(WeightsAndBiases(root, self._config, mode))
        with self._metrics.open(encoding="utf-8") as lines:
            for line in lines:
                self._log(json.loads(line))
        return self._trackers

    def _log(self, record: Mapping[str, Any]) -> None:
        scalars = scalars_of(record)
        if scalars is not None:
            for tracker in self._trackers or ():
                tracker.log(scalars)
