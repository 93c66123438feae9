"""Test group advantages: exact zeros, invariances, gates."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from selfemo.kernels import AdvantageConfig, group_advantages
from tests.helpers import kernel_oracle as oracle

CONFIGS = [
    AdvantageConfig(normalise=normalise, per_component=alone)
    for normalise in ("std", "none", "leave_one_out")
    for alone in (False, True)
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_advantages_match_the_oracle(config: AdvantageConfig) -> None:
    generator = torch.Generator().manual_seed(1)
    rewards_SC = torch.rand(90, 3, generator=generator) * torch.tensor([1.0, 100.0, 0.01])
    group_ptr, weights_C = torch.tensor([0, 2, 3, 11, 80, 90]), torch.tensor([1.0, 0.2, 0.1])
    expected_S = oracle.advantages(rewards_SC, group_ptr, weights_C, config)
    got = group_advantages(rewards_SC, group_ptr, weights_C, config=config)
    assert oracle.worst(got.advantage_S, expected_S) <= 1e-6
    total_S = rewards_SC.double() @ weights_C.double()
    for g, (begin, end) in enumerate([(0, 2), (3, 11), (11, 80)]):
        g = [0, 2, 3][g]
        assert float(got.mean_G[g]) == pytest.approx(float(total_S[begin:end].mean()), rel=1e-6)
        assert float(got.std_G[g]) == pytest.approx(float(total_S[begin:end].std()), rel=1e-6)
    assert float(got.advantage_S[2]) == 0.0  # a group of one


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("size", [1, 2, 8, 200])
def test_equal_rewards_give_exactly_zero(size: int, config: AdvantageConfig) -> None:
    rewards_SC = torch.tensor([[10.1, 0.1, 0.3]]).repeat(size, 1)
    got = group_advantages(rewards_SC, torch.tensor([0, size]), torch.tensor([1.0, 0.2, 0.1]), config=config)
    assert bool((got.advantage_S == 0).all())


def test_equal_totals_from_different_components_give_no_phantom_advantage() -> None:
    """Sum 0.1 + 0.2 + 0.3 in two orders, which differs by one bit in fp32: divided by its own
    spread, +-0.7.
    """
    rewards_SC = torch.tensor([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1], [0.2, 0.3, 0.1]])
    got = group_advantages(rewards_SC, torch.tensor([0, 3]))
    assert float(got.advantage_S.abs().max()) == 0.0


def test_tiny_spread_on_a_large_reward_is_resolved() -> None:
    rewards_SC = torch.tensor([[1000.0], [1000.125], [1000.25], [999.5]])
    expected_S = oracle.advantages(rewards_SC, torch.tensor([0, 4]), torch.ones(1), AdvantageConfig())
    assert oracle.worst(group_advantages(rewards_SC, torch.tensor([0, 4])).advantage_S, expected_S) <= 1e-6


@settings(max_examples=60, deadline=None)
@given(
    rewards=st.lists(st.integers(-64, 64), min_size=2, max_size=12),
    log2_scale=st.integers(-6, 6),
    offset=st.integers(-1000, 1000),
    order=st.randoms(use_true_random=False),
)
def test_affine_rewards_and_member_order_change_nothing(
    rewards: list[int], log2_scale: int, offset: int, order: object
) -> None:
    """Shift, scale and permute rewards that are dyadic, so that this is exact.

    The std's epsilon limits the comparison.
    """
    config = AdvantageConfig(epsilon=0.0)
    ptr = torch.tensor([0, len(rewards)])
    base_S = group_advantages(
        torch.tensor(rewards, dtype=torch.float32)[:, None] / 64, ptr, config=config
    ).advantage_S
    moved = torch.tensor(rewards, dtype=torch.float32)[:, None] / 64 * 2.0**log2_scale + offset
    assert torch.allclose(
        group_advantages(moved, ptr, config=config).advantage_S, base_S, rtol=1e-5, atol=1e-5
    )
    permutation = torch.tensor(order.sample(range(len(rewards)), len(rewards)))  # type: ignore[attr-defined]
    shuffled = torch.tensor(rewards, dtype=torch.float32)[permutation][:, None] / 64
    assert torch.allclose(
        group_advantages(shuffled, ptr, config=config).advantage_S, base_S[permutation], rtol=1e-6, atol=1e-6
    )


def test_group_order_does_not_matter() -> None:
    rewards_SC = torch.rand(10, 2, generator=torch.Generator().manual_seed(2))
    together = group_advantages(rewards_SC, torch.tensor([0, 4, 10])).advantage_S
    swapped = group_advantages(
        torch.cat((rewards_SC[4:], rewards_SC[:4])), torch.tensor([0, 6, 10])
    ).advantage_S
    assert torch.equal(torch.cat((swapped[6:], swapped[:6])), together)


def test_advantages_of_a_group_sum_to_zero_and_have_unit_spread() -> None:
    rewards_SC = torch.rand(8, 1, generator=torch.Generator().manual_seed(3))
    advantage_S = group_advantages(
        rewards_SC, torch.tensor([0, 8]), config=AdvantageConfig(epsilon=0.0)
    ).advantage_S
    assert abs(float(advantage_S.sum())) < 1e-6
    assert float(advantage_S.std()) == pytest.approx(1.0, rel=1e-6)


def test_range_threshold_gates_on_the_chosen_component() -> None:
    """Gate two groups: in group 0 the alignment (component 0) is flat and only a bonus differs.

    Group 1 ranks by alignment.
    """
    rewards_SC = torch.tensor([[0.50, 0.0], [0.52, 1.0], [0.51, 0.5], [0.2, 0.0], [0.9, 0.0], [0.4, 0.0]])
    config = AdvantageConfig(range_threshold=0.05, range_component=0)
    got = group_advantages(
        rewards_SC, torch.tensor([0, 3, 6]), config=config, group_weight_G=torch.tensor([2.0, 0.5])
    )
    assert got.weight_G.tolist() == [0.0, 0.5]
    assert got.weight_S.tolist() == [0.0] * 3 + [0.5] * 3
    assert got.range_G.tolist() == pytest.approx([0.02, 0.7], rel=1e-5)
    by_total = group_advantages(
        rewards_SC, torch.tensor([0, 3, 6]), config=AdvantageConfig(range_threshold=0.05)
    )
    assert by_total.weight_G.tolist() == [1.0, 1.0]
