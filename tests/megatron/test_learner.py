"""Test the learner beyond parity: exact on-policy figures, bad steps, checkpoints for any layout.

A bad step must leave the model untouched.
"""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from selfemo.common.errors import UserError
from selfemo.config.schema import ParallelConfig
from selfemo.grpo.samples import TrainingSample
from selfemo.kernels import LossConfig
from selfemo.megatron import learner as learner_module
from selfemo.megatron.checkpoint import TensorWrite, read_tensors
from selfemo.megatron.cpu_adam import CpuFusedAdam
from selfemo.megatron.packing import balance_by_tokens
from selfemo.megatron.step_stats import TokenGap
from tests.helpers.parity import DEFAULT, LEARNING_RATE, Options, learner, samples
from tests.helpers.tiny_model import save_tiny

OVERFLOWING = 3e38
"""A finite fp32 number (the kernels refuse others) so large that every gradient overflows."""
LOSS = LossConfig.preset("self_grpo", kl_beta=0.1)


@pytest.fixture(scope="module")
def hf_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("learner") / "model", "qwen3", True))


@given(st.lists(st.integers(1, 50), max_size=60), st.integers(50, 200), st.sampled_from([1, 2, 4]))
def test_micro_batches_partition_the_samples_within_the_cap(lengths, max_tokens, multiple_of):
    bins = balance_by_tokens(lengths, max_tokens, multiple_of)
    assert sorted(index for members in bins for index in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= max_tokens for members in bins)
    assert len(bins) % multiple_of == 0
    assert balance_by_tokens(lengths, max_tokens, multiple_of) == bins


def test_the_cpu_adam_takes_torchs_steps():
    generator = torch.Generator().manual_seed(3)
    ours, theirs = (
        torch.nn.Parameter(torch.randn(7, 5, generator=torch.Generator().manual_seed(1))) for _ in range(2)
    )
    settings = {"lr": 0.02, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
    own, reference = CpuFusedAdam([ours], **settings), torch.optim.AdamW([theirs], **settings)
    for _ in range(6):
        ours.grad = torch.randn(7, 5, generator=generator)
        theirs.grad = ours.grad.clone()
        own.step()
        reference.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


def _on_policy(hf_dir: str) -> tuple[float, float, bool]:
    """Return the KL to an equal reference, the mean ratio, and whether `weights_of` restored every bit."""
    with learner(hf_dir, ParallelConfig(tensor=2)) as model:
        batch, reference = samples(model.architecture.vocab_size), model.snapshot()
        before = [tensor.clone() for _, tensor in model.hf_tensors(1 << 20)]
        plan = model.plan(batch)
        with model.weights_of([torch.zeros_like(tensor) for tensor in reference]):
            model.logprobs(plan)
        restored = all(a.equal(b) for a, (_, b) in zip(before, model.hf_tensors(1 << 20)))
        with model.weights_of(reference):
            kept = model.logprobs(plan)
        stats = model.policy_step(batch, plan, LOSS, LEARNING_RATE, reference=kept)
        return stats.kl, stats.ratio_mean, restored


def test_on_policy_kl_is_exactly_zero_and_the_ratio_exactly_one(distributed, hf_dir):
    assert distributed(2, _on_policy, hf_dir, timeout_s=240) == [(0.0, 1.0, True)] * 2


def _largest_gap(hf_dir: str) -> tuple[float, TokenGap]:
    """Return the gap of a step in which the engine found one token far less likely."""
    with learner(hf_dir, ParallelConfig()) as model:
        batch, loss = samples(model.architecture.vocab_size), LossConfig.preset("self_grpo", kl_beta=0.0)
        before = model.policy_step(batch, model.plan(batch), loss, learning_rate=0.0).largest_gap
        changed = max(range(len(batch)), key=lambda i: len(batch[i].completion_ids))
        logprobs = list(batch[changed].rollout_logprobs)
        logprobs[3] = -20.0
        batch[changed] = replace(batch[changed], rollout_logprobs=tuple(logprobs))
        stats = model.policy_step(batch, model.plan(batch), loss, learning_rate=0.0)
        at = stats.largest_gap
        assert before != at
        assert (at.sample, at.place, at.engine) == (changed, 3, -20.0)
        assert at.token == batch[changed].completion_ids[3]
        assert stats.logprob_gap_max == pytest.approx(at.trainer + 20.0)
        return stats.logprob_gap_max, at


def test_every_rank_knows_the_token_with_the_largest_gap(distributed, hf_dir):
    one, other = distributed(2, _largest_gap, hf_dir, timeout_s=240)
    assert one == other
    assert one[0] > 10


def _bad_step(hf_dir: str) -> tuple[bool, bool, bool]:
    """Poison one rank's data-parallel share.

    Returns (applied, every weight unchanged, the next good step is applied).
    """
    with learner(hf_dir, ParallelConfig()) as model:
        good = samples(model.architecture.vocab_size)
        poisoned = [
            TrainingSample(s.prompt_ids, s.completion_ids, s.rollout_logprobs, OVERFLOWING if i == 0 else 1.0)
            for i, s in enumerate(good)
        ]
        before = model.snapshot()
        config = LossConfig.preset("grpo", kl_beta=0.0)
        stats = model.policy_step(poisoned, model.plan(poisoned), config, LEARNING_RATE)
        unchanged = all(a.equal(b) for a, b in zip(before, model.snapshot()))
        after = model.policy_step(good, model.plan(good), config, LEARNING_RATE)
        return stats.step.applied, unchanged, after.step.applied


def test_a_gradient_that_is_not_finite_changes_nothing_on_any_rank(distributed, hf_dir):
    assert distributed(2, _bad_step, hf_dir, timeout_s=240) == [(False, True, True)] * 2


def _steps_then_save(
    hf_dir: str, directory: str, parallel: ParallelConfig, background: bool, options: Options = DEFAULT
) -> dict[str, torch.Tensor]:
    """Take two steps, write a checkpoint, take a third step; returns the weights after it."""
    with learner(hf_dir, parallel, options) as model:
        batch = samples(model.architecture.vocab_size)
        for step in range(3):
            if step == 2:
                Path(directory).mkdir(exist_ok=True)
                torch.distributed.barrier()
                TensorWrite(model, Path(directory), {"step": step}, in_background=background).is_done(
                    blocking=True
                )
            model.policy_step(
                batch, model.plan(batch), LOSS, LEARNING_RATE, reference=model.logprobs(model.plan(batch))
            )
        return {name: tensor.clone() for name, tensor in model.hf_tensors(1 << 20)}


def _load_then_step(
    hf_dir: str, directory: str, parallel: ParallelConfig, options: Options = DEFAULT
) -> tuple[int, dict[str, torch.Tensor]]:
    """Load the checkpoint into a fresh learner of a layout and take the third step."""
    with learner(hf_dir, parallel, options) as model:
        common = read_tensors(model, Path(directory))
        batch = samples(model.architecture.vocab_size)
        model.policy_step(
            batch, model.plan(batch), LOSS, LEARNING_RATE, reference=model.logprobs(model.plan(batch))
        )
        return common["step"], {name: tensor.clone() for name, tensor in model.hf_tensors(1 << 20)}


SAVED = {"TP2": ParallelConfig(tensor=2), "DP2 +DO": ParallelConfig(distributed_optimizer=True)}
LOADED = {
    "TP2": {
        "TP2": (2, ParallelConfig(tensor=2)),
        "TP1": (1, ParallelConfig()),
        "PP2": (2, ParallelConfig(pipeline=2)),
    },
    "DP2 +DO": {
        "DP2 +DO": (2, ParallelConfig(distributed_optimizer=True)),
        "TP2 +DO": (2, ParallelConfig(tensor=2, distributed_optimizer=True)),
    },
}


@pytest.mark.parametrize(
    ("saved", "background"),
    [
        pytest.param("TP2", False, id="TP2-waiting", marks=pytest.mark.slow),
        pytest.param("TP2", True, id="TP2-in the background", marks=pytest.mark.long),
        pytest.param("DP2 +DO", False, id="DP2 +DO-waiting"),
        pytest.param("DP2 +DO", True, id="DP2 +DO-in the background", marks=pytest.mark.slow),
    ],
)
def test_the_step_after_a_checkpoint_is_the_same_in_any_layout(
    distributed, hf_dir, tmp_path, saved, background
):
    directory = str(tmp_path / "checkpoint")
    wanted = distributed(2, _steps_then_save, hf_dir, directory, SAVED[saved], background, timeout_s=240)[0]
    for processes, parallel in LOADED[saved].values():
        for step, tensors in distributed(
            processes, _load_then_step, hf_dir, directory, parallel, timeout_s=240
        ):
            assert step == 2
            for name, tensor in tensors.items():
                torch.testing.assert_close(
                    tensor, wanted[name], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
                )


PIPELINE, SHARDED_PIPELINE = (ParallelConfig(pipeline=2, distributed_optimizer=on) for on in (False, True))
FROZEN: dict[str, tuple[ParallelConfig, Options, list[tuple[int, ParallelConfig]]]] = {
    "fp32": (
        PIPELINE,
        Options(frozen_layers=1),
        [(2, PIPELINE), (2, ParallelConfig(tensor=2)), (1, ParallelConfig())],
    ),
    "sharded": (
        SHARDED_PIPELINE,
        Options(frozen_layers=1),
        [(2, SHARDED_PIPELINE), (2, ParallelConfig(tensor=2, distributed_optimizer=True))],
    ),
    "bf16": (PIPELINE, Options(frozen_layers=1, dtype="bfloat16"), [(2, PIPELINE)]),
}
"""One of the model's two layers is frozen: the first stage has no optimizer state. (Saved, with, loaded.)"""


@pytest.mark.parametrize(
    "name",
    [pytest.param("fp32", marks=pytest.mark.slow), pytest.param("sharded", marks=pytest.mark.long), "bf16"],
)
def test_the_step_after_a_checkpoint_with_frozen_layers_is_the_same(distributed, hf_dir, tmp_path, name):
    directory, (saved, options, loaded) = str(tmp_path / "checkpoint"), FROZEN[name]
    run = (hf_dir, directory, saved, False, options)
    wanted = distributed(2, _steps_then_save, *run, timeout_s=240)[0]
    for processes, parallel in loaded:
        for step, tensors in distributed(
            processes, _load_then_step, hf_dir, directory, parallel, options, timeout_s=240
        ):
            assert step == 2
            for tensor_name, tensor in tensors.items():
                assert float((tensor - wanted[tensor_name]).abs().max()) <= 1e-6, tensor_name


def _left_when_the_next_is_built(hf_dir: str, parallel: ParallelConfig) -> tuple[int, int]:
    """Begin a second stage; return how many tensors the old optimizer had, and how many of them were left
    when the new one was built.
    """
    with learner(hf_dir, parallel, Options(dtype="bfloat16")) as model:
        batch = samples(model.architecture.vocab_size)
        model.sft_step(batch, LEARNING_RATE)
        inner = [getattr(part, "optimizer", part) for part in model.optimizer.chained_optimizers]
        moments = [t for one in inner for state in one.state.values() for t in state.values()]
        weights = [p for group in model.optimizer.param_groups for p in group["params"]]
        old = [weakref.ref(tensor) for tensor in (*moments, *weights) if isinstance(tensor, torch.Tensor)]
        del inner, moments, weights
        alive: list[int] = []

        def counting(*given: object) -> object:
            alive.append(sum(tensor() is not None for tensor in old))
            return build(*given)

        build, learner_module.build_optimizer = learner_module.build_optimizer, counting
        try:
            model.begin_stage()
        finally:
            learner_module.build_optimizer = build
        assert model.sft_step(batch, LEARNING_RATE).applied
        return len(old), alive[0]


@pytest.mark.parametrize("sharded", [False, True])
def test_the_old_optimizer_is_let_go_before_the_new_one_is_built(distributed, hf_dir, sharded):
    parallel = ParallelConfig(distributed_optimizer=sharded)
    for held, left in distributed(2, _left_when_the_next_is_built, hf_dir, parallel, timeout_s=240):
        assert held > 10
        assert left == 0


def test_a_directory_without_a_checkpoint_is_refused(distributed, hf_dir, tmp_path):
    assert "not a checkpoint" in distributed(1, _refused, hf_dir, str(tmp_path), timeout_s=240)[0]


def _refused(hf_dir: str, directory: str) -> str:
    with learner(hf_dir, ParallelConfig()) as model, pytest.raises(UserError) as refused:
        read_tensors(model, Path(directory))
    return str(refused.value)


def _with_offload(
    hf_dir: str, parallel: ParallelConfig, options: Options
) -> tuple[list[torch.Tensor], set[int]]:
    """Take two steps with everything moved out between them.

    Returns the weights, and the bytes of gradient buffers while they were out.
    """
    with learner(hf_dir, parallel, options) as model:
        batch = samples(model.architecture.vocab_size)
        held = set()
        for _ in range(2):
            model.offload()
            model.offload()
            held.add(
                sum(
                    buffer.grad_data.untyped_storage().nbytes()
                    for chunk in model.wrapped
                    for buffer in chunk.buffers
                )
            )
            reference = model.logprobs(model.plan(batch))
            model.policy_step(batch, model.plan(batch), LOSS, LEARNING_RATE, reference=reference)
        return model.snapshot(), held


@pytest.mark.parametrize(
    ("parallel", "dtype"),
    [
        pytest.param(ParallelConfig(tensor=2), "float32", marks=pytest.mark.slow),
        (ParallelConfig(distributed_optimizer=True), "bfloat16"),
    ],
    ids=["tp2-fp32", "dp2-do-bf16"],
)
def test_offloading_between_steps_frees_gradients_and_changes_no_bit(distributed, hf_dir, parallel, dtype):
    """Offload on CPU: gradient buffers are freed and allocated again as on a GPU.

    The optimizer's state is in host memory already.
    """
    runs = [
        distributed(2, _with_offload, hf_dir, parallel, Options(offload=offload, dtype=dtype), timeout_s=240)
        for offload in (True, False)
    ]
    for (moved, empty), (stayed, full) in zip(*runs):
        assert empty == {0}
        assert 0 not in full
        assert all(a.equal(b) for a, b in zip(moved, stayed, strict=True))
