"""Test that bad input is refused by name and index, before anything is written."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch

from selfemo.kernels import (
    AdvantageConfig,
    BatchCounts,
    LossConfig,
    group_advantages,
    grpo_loss,
    token_logprobs,
)


def arguments() -> dict[str, Any]:
    """Make a sound call of the loss: 6 tokens, 2 sequences, 10 columns."""
    generator = torch.Generator().manual_seed(0)
    return {
        "logits_TV": torch.randn(6, 10, generator=generator),
        "targets_T": torch.arange(6),
        "cu_seqlens": torch.tensor([0, 4, 6]),
        "config": LossConfig(),
        "advantage_S": torch.ones(2),
        "mask_T": torch.ones(6, dtype=torch.bool),
    }


def with_(tensor: torch.Tensor, index: Any, value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[index] = value
    return changed


BAD = {
    "target too large": (
        {"targets_T": with_(torch.arange(6), 3, 10)},
        "targets_T[3] is 10: expected a token id from 0 to 9",
    ),
    "target negative": ({"targets_T": with_(torch.arange(6), 5, -100)}, "targets_T[5] is -100"),
    "target in the padding": ({"vocab_size": 5}, "targets_T[5] is 5: expected a token id from 0 to 4"),
    "targets of another length": ({"targets_T": torch.arange(5)}, "targets_T has shape [5]: expected [6]"),
    "float targets": (
        {"targets_T": torch.arange(6.0)},
        "targets_T is torch.float32: expected int32 or int64",
    ),
    "no targets": ({"targets_T": None}, "targets_T is missing"),
    "integer logits": ({"logits_TV": torch.zeros(6, 10, dtype=torch.int64)}, "logits_TV is torch.int64"),
    "three-dimensional logits": ({"logits_TV": torch.zeros(6, 1, 10)}, "logits_TV has shape [6, 1, 10]"),
    "transposed logits": ({"logits_TV": torch.zeros(10, 6).T}, "logits_TV has stride 6 along the vocabulary"),
    "empty logits": ({"logits_TV": torch.zeros(6, 0)}, "logits_TV has shape [6, 0]"),
    "logits and hidden": (
        {"hidden_TH": torch.zeros(6, 3), "weight_VH": torch.zeros(10, 3)},
        "exactly one of the two sources",
    ),
    "vocabulary larger than the columns": ({"vocab_size": 11}, "vocab_size is 11: expected 1 to 10"),
    "borders do not start at 0": ({"cu_seqlens": torch.tensor([1, 4, 6])}, "cu_seqlens[0] is 1: expected 0"),
    "borders do not end at T": ({"cu_seqlens": torch.tensor([0, 4, 5])}, "cu_seqlens[2] is 5: expected 6"),
    "borders fall": (
        {"cu_seqlens": torch.tensor([0, 7, 6])},
        "cu_seqlens[2] is 6 after 7: sequence 1 would be empty",
    ),
    "empty sequence": (
        {"cu_seqlens": torch.tensor([0, 6, 6])},
        "cu_seqlens[2] is 6 after 6: sequence 1 would be empty",
    ),
    "no sequence": ({"cu_seqlens": torch.tensor([0])}, "cu_seqlens has 1 entries"),
    "float borders": ({"cu_seqlens": torch.tensor([0.0, 4.0, 6.0])}, "cu_seqlens is torch.float32"),
    "float mask": ({"mask_T": torch.ones(6)}, "mask_T is torch.float32: expected torch.bool"),
    "short mask": ({"mask_T": torch.ones(5, dtype=torch.bool)}, "mask_T has shape [5]"),
    "NaN advantage": ({"advantage_S": torch.tensor([1.0, math.nan])}, "advantage_S[1] is nan"),
    "advantages of another length": (
        {"advantage_S": torch.ones(3)},
        "advantage_S has shape [3]: expected [2]",
    ),
    "infinite weight": ({"sequence_weight_S": torch.tensor([math.inf, 1.0])}, "sequence_weight_S[0] is inf"),
    "NaN old logprob": ({"old_logprob_T": with_(torch.zeros(6), 2, math.nan)}, "old_logprob_T[2] is nan"),
    "infinite rollout logprob": (
        {"rollout_logprob_T": with_(torch.zeros(6), 4, -math.inf)},
        "rollout_logprob_T[4] is -inf",
    ),
    "KL without a reference": ({"config": LossConfig(kl_beta=0.1)}, "ref_logprob_T is missing"),
    "main gradient without a weight": (
        {"weight_main_grad_VH": torch.zeros(10, 3)},
        "weight_main_grad_VH is given without weight_VH",
    ),
    "triton on a CPU tensor": ({"impl": "triton"}, "impl='triton' cannot run on cpu tensors"),
    "unknown impl": ({"impl": "cuda"}, "impl is 'cuda'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_loss_arguments_are_named_and_nothing_is_written(name: str) -> None:
    changes, message = BAD[name]
    given = arguments() | changes
    before = {key: value.clone() for key, value in given.items() if isinstance(value, torch.Tensor)}
    with pytest.raises(ValueError, match=re.escape(message)):
        grpo_loss(**given)
    for key, value in before.items():
        assert torch.equal(torch.nan_to_num(given[key].double()), torch.nan_to_num(value.double())), key


def test_hidden_and_weight_must_fit() -> None:
    given = arguments() | {"logits_TV": None, "hidden_TH": torch.zeros(6, 3), "weight_VH": torch.zeros(10, 4)}
    with pytest.raises(ValueError, match=re.escape("weight_VH has shape [10, 4]: expected [any, 3]")):
        grpo_loss(**given)
    given["weight_VH"] = torch.zeros(10, 3, dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=re.escape("weight_VH is torch.bfloat16: expected torch.float32")):
        grpo_loss(**given)
    given["weight_VH"] = torch.zeros(10, 3)
    with pytest.raises(ValueError, match=re.escape("chunk_tokens is 0")):
        grpo_loss(**given, chunk_tokens=0)
    with pytest.raises(ValueError, match=re.escape("weight_main_grad_VH is torch.float16")):
        grpo_loss(**given, weight_main_grad_VH=torch.zeros(10, 3, dtype=torch.float16))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards_SC": torch.tensor([[1.0], [math.nan], [0.0]])}, "rewards_SC[1, 0] is nan"),
        ({"rewards_SC": torch.tensor([[1.0], [0.0], [math.inf]])}, "rewards_SC[2, 0] is inf"),
        ({"rewards_SC": torch.ones(3)}, "rewards_SC has shape [3]"),
        ({"rewards_SC": torch.ones(3, 0)}, "rewards_SC has shape [3, 0]: expected at least one component"),
        ({"group_ptr": torch.tensor([0, 2])}, "group_ptr[1] is 2: expected 3"),
        ({"group_ptr": torch.tensor([0, 0, 3])}, "group_ptr[1] is 0 after 0: group 0 would be empty"),
        ({"reward_weights_C": torch.ones(2)}, "reward_weights_C has shape [2]: expected [1]"),
        ({"reward_weights_C": torch.tensor([math.nan])}, "reward_weights_C[0] is nan"),
        ({"group_weight_G": torch.ones(2)}, "group_weight_G has shape [2]: expected [1]"),
        ({"config": AdvantageConfig(range_component=1)}, "range_component is 1: rewards_SC has 1 components"),
    ],
)
def test_bad_rewards_are_named(changes: dict[str, Any], message: str) -> None:
    given = {"rewards_SC": torch.ones(3, 1), "group_ptr": torch.tensor([0, 3])} | changes
    with pytest.raises(ValueError, match=re.escape(message)):
        group_advantages(**given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"aggregation": "mean"}, "aggregation is 'mean'"),
        ({"clip_low": -0.1}, "clip_low is -0.1"),
        ({"clip_high": math.nan}, "clip_high is nan"),
        ({"dual_clip": 0.5}, "dual_clip is 0.5"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"aggregation": "sequence_sum"}, "max_length is None"),
        ({"truncated_importance_cap": 0.0}, "truncated_importance_cap is 0.0"),
    ],
)
def test_bad_configurations_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LossConfig(**changes)


def test_unknown_preset_and_negative_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="preset 'ppo' does not exist"):
        LossConfig.preset("ppo")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=re.escape("counts.tokens is -1")):
        BatchCounts(sequences=1, tokens=-1)


def test_token_logprobs_checks_its_targets() -> None:
    with pytest.raises(ValueError, match=re.escape("targets_T[0] is 7")):
        token_logprobs(torch.zeros(1, 5), torch.tensor([7]))
    with pytest.raises(ValueError, match="temperature is inf"):
        token_logprobs(torch.zeros(1, 5), torch.tensor([0]), temperature=math.inf)
    with pytest.raises(ValueError, match="targets_T is missing"):
        token_logprobs(torch.zeros(1, 5))


def test_masked_references_may_hold_anything() -> None:
    given = arguments()
    given["mask_T"][2] = False
    grpo_loss(**given, old_logprob_T=with_(torch.zeros(6), 2, math.nan))
