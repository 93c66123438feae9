"""Train a small policy: logits for every completion token of some groups.

Its gradient is that of the real advantages and the real loss.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from selfemo.config.schema import RunConfig
from selfemo.grpo.advantages import loss_config, training_samples, with_advantages
from selfemo.kernels import grpo_loss
from selfemo.rewards.scoring import score_group
from selfemo.selfplay.records import Group
from tests.helpers.groups import SCORE
from tests.helpers.scripted import LABELS


def gradients(groups: Sequence[Group], config: RunConfig) -> list[torch.Tensor]:
    """Compute the gradient [tokens, vocabulary] of each sample's logits, groups in order.

    The policy is the one that sampled: no KL, no old policy.
    """
    scored = [score_group(group, config.reward, SCORE, dict.fromkeys(LABELS, 1.0)) for group in groups]
    samples = training_samples(with_advantages(scored, config.algorithm))
    lengths = [len(sample.completion_ids) for sample in samples]
    targets_T = torch.tensor([token for sample in samples for token in sample.completion_ids])
    torch.manual_seed(3)
    logits_TV = torch.randn(sum(lengths), int(targets_T.max()) + 1).requires_grad_()
    result = grpo_loss(
        logits_TV,
        targets_T,
        torch.tensor([0, *accumulate(lengths)]),
        config=loss_config(config.algorithm, config.selfplay),
        advantage_S=torch.tensor([sample.advantage for sample in samples]),
        sequence_weight_S=torch.tensor([sample.weight for sample in samples]),
    )
    result.loss.backward()
    assert logits_TV.grad is not None
    return list(logits_TV.grad.split(lengths))
