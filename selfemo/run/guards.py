"""Figures that must not pass as numbers: steps whose loss or gradient is not finite, rewards and ratios out of bounds.

The learner skips a bad step on all ranks alike. One now and then is the price of low precision; several in a row are a run that learns
nothing, and the batch that does it is worth more than the time it would waste.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

from selfemo.common.errors import UserError, on_all_ranks
from selfemo.common.files import replace_text
from selfemo.config.schema import RewardConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.learner import PolicyStats, StepStats
from selfemo.rewards.scoring import ScoredGroup

DUMP_NAME = "bad_batch"
ON_POLICY_TOLERANCE = 1e-3
RATIO_MEAN_LIMIT = 100.0
"""A mean ratio beyond this (or below its inverse) is no policy that a clip could keep near."""
ROUNDING = 1e-6


def skipped_step(
    where: str,
    stats: StepStats,
    batch: Sequence[TrainingSample],
    in_a_row: int,
    limit: int,
    dump: Path | None,
) -> str:
    """A line to show of a step that was skipped.

    Args:
        in_a_row: skipped steps since the last good one, this one included; the run ends at `limit`.
        dump: where the batch goes then; None on ranks that do not write.

    Raises:
        UserError: as many in a row as are allowed; the batch has been written.
    """
    line = f"{where}: loss {stats.loss:g}, gradient norm {stats.grad_norm:g}: step skipped on all ranks, {in_a_row} in a row"
    if in_a_row < limit:
        return line
    if dump:
        dump_batch(dump, line, batch)
    advice = f"the batch is in {DUMP_NAME}: look at its samples, or lower the learning rate"
    raise on_all_ranks(UserError(f"{line} (train.max_skipped_steps); {advice}"))


def dump_batch(directory: Path, line: str, batch: Sequence[TrainingSample]) -> None:
    """Write a batch: token ids and logprobs as safetensors, one entry per sample, and what was wrong with advantages as JSON."""
    directory.mkdir(exist_ok=True)
    tensors = {}
    for index, sample in enumerate(batch):
        tensors[f"{index:05d}.prompt_ids"] = torch.tensor(sample.prompt_ids, dtype=torch.int32)
        tensors[f"{index:05d}.completion_ids"] = torch.tensor(sample.completion_ids, dtype=torch.int32)
        tensors[f"{index:05d}.rollout_logprobs"] = torch.tensor(sample.rollout_logprobs, dtype=torch.float64)
    save_file(tensors, directory / "samples.safetensors")
    rows = [
        {"sample": i, "advantage": repr(s.advantage), "weight": repr(s.weight)} for i, s in enumerate(batch)
    ]
    replace_text(directory / "batch.json", json.dumps({"problem": line, "samples": rows}, indent=1) + "\n")


def check_rewards(groups: Sequence[ScoredGroup], config: RewardConfig) -> None:
    """Refuse a reward outside what its component can be, or a score outside [0, 1].

    Raises:
        ArithmeticError: names iteration, episode, turn, sample and component; it is a bug, or broken weights.
    """
    for scored in groups:
        for index, (rewards, score) in enumerate(zip(scored.rewards, scored.scores, strict=True)):
            bounds = [(c.name, *c.bounds_in(config)) for c in scored.components]
            for (name, low, high), value in zip(
                [*bounds, ("score", 0.0, 1.0)], [*rewards, score], strict=True
            ):
                if not low - ROUNDING <= value <= high + ROUNDING:  # also where it is not a number
                    group = scored.group
                    raise ArithmeticError(
                        f"reward out of bounds: {name} of {group.role} sample {index}, iteration {group.iteration}, "
                        f"episode {group.episode}, turn {group.turn} is {value}, expected {low:g} to {high:g}"
                    )


def check_ratio(stats: PolicyStats, on_policy: bool) -> None:
    """Refuse a mean ratio that no update could have: other than 1 on policy, or out of all proportion. For a batch that is not empty.

    Raises:
        ArithmeticError: names the figure.
    """
    ratio = stats.ratio_mean
    if stats.step.applied:
        low, high = (
            (1 - ON_POLICY_TOLERANCE, 1 + ON_POLICY_TOLERANCE)
            if on_policy
            else (1 / RATIO_MEAN_LIMIT, RATIO_MEAN_LIMIT)
        )
        if not low <= ratio <= high or not math.isfinite(stats.logprob_gap_max):
            raise ArithmeticError(
                f"policy ratio out of bounds: its mean is {ratio}, expected {low:g} to {high:g}; "
                f"largest trainer-engine logprob gap {stats.logprob_gap_max}"
            )
