"""Checks figures that must not pass: a loss or gradient that is not finite, rewards and ratios out of bounds.

The learner skips a bad step on all ranks alike. One skipped step now and then is the price of low precision.
If several in a row are skipped, the run learns nothing: it ends, and the batch is kept, since it is worth
more than the time that would be lost.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from selfemo.common.errors import UserError, on_all_ranks
from selfemo.common.files import replace_text
from selfemo.config.schema import RewardConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.megatron.step_stats import PolicyStats, StepStats
from selfemo.records.directory import DUMP_NAME
from selfemo.rewards.components import Component
from selfemo.rewards.scoring import ScoredGroup

ON_POLICY_TOLERANCE = 1e-3
RATIO_MEAN_LIMIT = 100.0
"""A mean ratio above this, or below its inverse, is beyond any policy that a clip could keep near."""
ROUNDING = 1e-6


def skipped_step(
    where: str,
    stats: StepStats,
    samples: Mapping[int, TrainingSample],
    in_a_row: int,
    limit: int,
    dump: Path,
) -> str:
    """Describe a skipped step in one line, and end the run if too many were skipped in a row.

    Args:
        in_a_row: skipped steps since the last good one, this one included; the run ends at `limit`.
        samples: those that this rank writes if the run ends, by index in the batch.
        dump: directory for them.

    Raises:
        UserError: as many in a row as are allowed; the batch has been written.
    """
    line = (
        f"{where}: loss {stats.loss:g}, gradient norm {stats.grad_norm:g}: "
        f"step skipped on all ranks, {in_a_row} in a row"
    )
    if in_a_row < limit:
        return line
    dump_batch(dump, line, samples)
    advice = f"the batch is in {DUMP_NAME}: look at its samples, or lower the learning rate"
    raise on_all_ranks(UserError(f"{line} (train.max_skipped_steps); {advice}"))


def dump_batch(directory: Path, line: str, samples: Mapping[int, TrainingSample]) -> None:
    """Write this rank's samples of a batch to disk, by index in the whole batch; nothing if it has none.

    Token ids and logprobs as safetensors, one entry per sample; the problem, advantages and weights as JSON.
    The names of the files of ranks other than rank 0 end in the rank.
    """
    if not samples:
        return
    directory.mkdir(exist_ok=True)
    rank = dist.get_rank() if dist.is_initialized() else 0
    of_rank = f"-{rank:05d}" if rank else ""
    tensors = {}
    for index, sample in samples.items():
        tensors[f"{index:05d}.prompt_ids"] = torch.tensor(sample.prompt_ids, dtype=torch.int32)
        tensors[f"{index:05d}.completion_ids"] = torch.tensor(sample.completion_ids, dtype=torch.int32)
        tensors[f"{index:05d}.rollout_logprobs"] = torch.tensor(sample.rollout_logprobs, dtype=torch.float64)
    save_file(tensors, directory / f"samples{of_rank}.safetensors")
    rows = [
        {"sample": i, "advantage": repr(s.advantage), "weight": repr(s.weight)} for i, s in samples.items()
    ]
    text = json.dumps({"problem": line, "samples": rows}, indent=1) + "\n"
    replace_text(directory / f"batch{of_rank}.json", text)


def check_rewards(groups: Sequence[ScoredGroup], config: RewardConfig) -> None:
    """Raise if a reward is outside its component's bounds, or a score outside [0, 1].

    Raises:
        ArithmeticError: names iteration, episode, turn, sample and component; it is a bug, or broken weights.
    """
    bounds_of: dict[tuple[Component, ...], list[tuple[str, float, float]]] = {}
    for scored in groups:
        if scored.components not in bounds_of:
            bounds = [(c.name, *c.bounds_in(config)) for c in scored.components]
            bounds_of[scored.components] = [*bounds, ("score", 0.0, 1.0)]
        columns = [*zip(*scored.rewards, strict=True), scored.scores]
        for (name, low, high), column in zip(bounds_of[scored.components], columns, strict=True):
            for index, value in enumerate(column):
                if not low - ROUNDING <= value <= high + ROUNDING:  # true for NaN too
                    group = scored.group
                    raise ArithmeticError(
                        f"reward out of bounds: {name} of {group.role} sample {index}, "
                        f"iteration {group.iteration}, "
                        f"episode {group.episode}, turn {group.turn} is {value}, expected {low:g} to {high:g}"
                    )


def check_ratio(stats: PolicyStats, on_policy: bool) -> None:
    """Raise if a mean ratio is one that no update could have.

    That is a ratio other than 1 on policy, or one beyond RATIO_MEAN_LIMIT. The batch must not be empty.

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
