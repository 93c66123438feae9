"""Test supervised examples dealt over gloo ranks: micro-batches are those of a batch that all ranks make."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist

from selfemo.common.errors import UserError
from selfemo.config.schema import ParallelConfig, TrainConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.kernels import LossConfig
from selfemo.megatron.batch import DealtBatch, whole_batch
from selfemo.megatron.example_dealer import deal_examples
from tests.helpers.parity import learner, samples
from tests.helpers.tiny_model import save_tiny
from tests.megatron.test_sample_dealer import layout_of_rank

CPU = torch.device("cpu")
WORLDS = [(1, 1), (2, 1), (2, 2), (4, 1), (4, 2)]
"""(ranks, tensor-parallel ranks of the trainer)."""
SIZES = [0, 3, 61]


def examples(size: int) -> list[TrainingSample]:
    """Make examples of different lengths, of which neighbours often have the same prompt."""
    rng = random.Random(size)
    prompts = [tuple(rng.randrange(64) for _ in range(length)) for length in (4, 4, 9, 25)]
    return [
        TrainingSample(
            rng.choice(prompts),
            tuple(rng.randrange(64) for _ in range(rng.choice((1, 2, 7, 20)))),
            weight=rng.choice((0.1, 0.7)),
        )
        for _ in range(size)
    ]


def _dealt(size: int, tensor: int, share_prompts: bool) -> tuple[DealtBatch, DealtBatch, list[int]]:
    """Return this rank's part, the part that it takes if it makes all examples, and which ones it made."""
    layout = layout_of_rank(dist.get_rank(), dist.get_world_size(), tensor)
    train = TrainConfig(max_tokens_per_microbatch=60, share_prompts=share_prompts)
    all_of_them, made = examples(size), []

    def make(index: int) -> TrainingSample:
        made.append(index)
        return all_of_them[index]

    dealt = deal_examples(make, [example.weight for example in all_of_them], train, layout, CPU)
    return dealt, whole_batch(all_of_them, train, layout), made


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize(("ranks", "tensor"), WORLDS)
def test_a_rank_takes_the_part_that_it_would_take_of_a_batch_made_whole(
    distributed, ranks: int, tensor: int, share_prompts: bool, size: int
) -> None:
    for dealt, whole, _ in distributed(ranks, _dealt, size, tensor, share_prompts):
        trained = {index for members in whole.micro_batches for index in members}
        assert dealt == replace(whole, samples={index: whole.samples[index] for index in sorted(trained)})


@pytest.mark.parametrize(("ranks", "tensor"), WORLDS)
def test_a_rank_makes_no_example_twice_and_few_that_it_does_not_train_on(
    distributed, ranks: int, tensor: int
) -> None:
    for dealt, _, made in distributed(ranks, _dealt, 61, tensor, True):
        assert len(made) == len(set(made))
        assert len(set(made) - set(dealt.samples)) <= -(-61 // ranks) + 1


def _refused(bad: list[int]) -> str:
    def make(index: int) -> TrainingSample:
        if index in bad:
            raise UserError(f"example {index} is too long")
        return examples(8)[index]

    try:
        layout = layout_of_rank(dist.get_rank(), dist.get_world_size(), 1)
        deal_examples(make, [1.0] * 8, TrainConfig(max_tokens_per_microbatch=30), layout, CPU)
    except UserError as error:
        return f"{error} {error.shared}"
    return ""


def test_an_example_that_one_rank_cannot_make_ends_all_ranks_and_the_first_is_named(distributed) -> None:
    assert distributed(4, _refused, [7, 3]) == ["example 3 is too long True"] * 4


def test_an_example_beyond_the_cap_of_a_micro_batch_is_refused_on_every_rank(distributed) -> None:
    found = distributed(2, _refused, [])
    assert found[0].startswith("sample ")
    assert "train.max_tokens_per_microbatch=30" in found[0]
    assert found == [found[0]] * 2


def _steps(hf_dir: str, parallel: ParallelConfig, dealt: bool) -> list[float]:
    """Return losses and gradient norms of an SFT step and of a policy step with supervised examples."""
    with learner(hf_dir, parallel) as model:
        batch = samples(model.architecture.vocab_size)
        taught = [replace(s, weight=0.3 + 0.1 * (i % 3)) for i, s in enumerate(batch[::2])]
        weights, device = [example.weight for example in taught], model.device.torch_device
        found = (
            deal_examples(taught.__getitem__, weights, model.train, model.layout, device) if dealt else taught
        )
        first = model.sft_step(found, 1e-2)
        loss = LossConfig.preset("self_grpo", kl_beta=0.0)
        second = model.policy_step(batch, model.plan(batch), loss, 1e-2, supervised=found)
        third = model.sft_step(found, 0.0)
        figures = [first, second.step, third]
        return [
            second.supervised_loss,
            *(x for s in figures for x in (s.loss, s.grad_norm, float(s.tokens))),
        ]


@pytest.mark.parametrize(
    ("ranks", "parallel"),
    [
        (2, ParallelConfig()),
        (2, ParallelConfig(pipeline=2, virtual_pipeline=2)),
        (4, ParallelConfig(tensor=2)),
    ],
    ids=["DP2", "PP2 VPP2", "TP2 DP2"],
)
def test_steps_are_those_of_a_batch_that_every_rank_holds_whole_to_the_bit(
    distributed, tmp_path, ranks: int, parallel: ParallelConfig
) -> None:
    hf_dir = str(save_tiny(tmp_path / "model", "qwen3", True, layers=4))
    whole, dealt = (distributed(ranks, _steps, hf_dir, parallel, way, timeout_s=240) for way in (False, True))
    assert dealt == whole
