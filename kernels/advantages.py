"""Computes group-relative advantages over a whole rollout batch.

This happens before micro-batching and the data-parallel split, because groups straddle both. The first
reward of a group is subtracted before its mean is taken, so that equal rewards give exactly 0: the
common (r - mean) / (std + epsilon) turns eight rewards of 10.1 into |advantage| = 0.47 in fp32.
Arithmetic is fp64: a rollout batch has thousands of rewards, not billions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from selfemo.kernels.backend import Impl
from selfemo.kernels.checks import (
    ValueChecks,
    check_finite,
    check_partition,
    check_vector,
    require_float,
    require_shape,
)
from selfemo.kernels.config import AdvantageConfig
from selfemo.kernels.dispatch import choose
from selfemo.kernels.results import GroupAdvantages


def group_advantages(
    rewards_SC: Tensor,
    group_ptr: Tensor,
    reward_weights_C: Tensor | None = None,
    *,
    config: AdvantageConfig | None = None,
    group_weight_G: Tensor | None = None,
    impl: Impl = "auto",
    check_values: bool = True,
) -> GroupAdvantages:
    """Compute the advantages of S samples in G groups of any sizes.

    Args:
        rewards_SC: float [S, C], one column per reward component; samples of a group are consecutive.
        group_ptr: int32 or int64 [G + 1]: group g holds samples group_ptr[g] to group_ptr[g + 1] - 1.
        reward_weights_C: float [C], weight of each component; None weighs all 1.
        config: normalisation and range threshold; None takes the defaults.
        group_weight_G: float [G], multiplied into the groups' weights (SELF-GRPO: their consistency);
            None is 1.
        impl: "auto", "triton" or "torch".
        check_values: read values from the device to check them; False skips the checks that need that.

    Raises:
        ValueError: names the argument and the offending index: shapes, dtypes, NaN or infinite rewards,
            a pointer that does not partition the samples, an empty group, or a range component that
            does not exist.

    Source: Shao et al. 2024 (arXiv 2402.03300) for the group baseline; docs/kernels.md for the gates.
    """
    config = config or AdvantageConfig()
    require_shape("rewards_SC", rewards_SC, (None, None))
    require_float("rewards_SC", rewards_SC)
    samples, components = rewards_SC.shape
    if components == 0:
        raise ValueError(f"rewards_SC has shape {list(rewards_SC.shape)}: expected at least one component")
    device = rewards_SC.device
    if reward_weights_C is None:
        reward_weights_C = torch.ones(components, device=device)
    check_vector("reward_weights_C", reward_weights_C, components, device)
    if config.range_component is not None and config.range_component >= components:
        raise ValueError(
            f"range_component is {config.range_component}: rewards_SC has {components} components"
        )
    checks = ValueChecks()
    check_partition(checks, "group_ptr", group_ptr, samples, "group", device)
    check_finite(checks, "rewards_SC", rewards_SC)
    check_finite(checks, "reward_weights_C", reward_weights_C)
    if group_weight_G is not None:
        check_vector("group_weight_G", group_weight_G, group_ptr.numel() - 1, device)
        check_finite(checks, "group_weight_G", group_weight_G)
    if check_values:
        checks.raise_first()

    group_ptr = group_ptr.long()
    with torch.no_grad():
        backend, rewards_SC, reward_weights_C = (
            choose(impl, device),
            rewards_SC.float().contiguous(),
            reward_weights_C.float().contiguous(),
        )
        stats = backend.group_advantages(rewards_SC, group_ptr, reward_weights_C, config)
        advantage_S = stats.advantage_S
        if config.per_component:
            # each component by itself, then weighted: as many small launches as there are components
            alone = (
                backend.group_advantages(rewards_SC, group_ptr, unit_C, config)
                for unit_C in torch.eye(components, device=device)
            )
            advantage_S = torch.stack([one.advantage_S for one in alone], dim=1) @ reward_weights_C
        weight_G = (stats.range_G >= config.range_threshold).float()
        if group_weight_G is not None:
            weight_G = weight_G * group_weight_G.float()
        weight_S = weight_G.repeat_interleave(group_ptr.diff(), output_size=samples)
    return GroupAdvantages(advantage_S, stats.mean_G, stats.std_G, stats.range_G, weight_G, weight_S)
