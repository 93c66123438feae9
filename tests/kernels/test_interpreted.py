"""Run the Triton kernels in Triton's interpreter on CPU tensors.

test_interpreter.py starts their process. Triton decides between compiling and interpreting when
@triton.jit runs, so these cases need TRITON_INTERPRET=1 before the first import and a process of
their own. The interpreter runs the kernels' own arithmetic in numpy: it cannot show layout, races
or time. It truncates bf16 stores where a GPU rounds them, which doubles their rounding error to
2^-7.
"""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from selfemo.kernels import AdvantageConfig, LossConfig, group_advantages, grpo_loss, token_logprobs
from tests.helpers import kernel_oracle as oracle
from tests.helpers.kernel_cases import PRESETS, Case, joined_stats, make_case, run, truth
from tests.kernels.test_loss import part_of
from tools.kernels.traffic import interpreted_traffic

pytestmark = pytest.mark.interpreted


def tolerance(dtype: torch.dtype) -> float:
    return 5e-6 if dtype == torch.float32 else 1e-2


@pytest.mark.parametrize("on_policy", [False, True], ids=["off_policy", "on_policy"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", PRESETS)
def test_loss_and_gradient_match_the_oracle(name: str, dtype: torch.dtype, on_policy: bool) -> None:
    config = PRESETS[name]
    case = make_case(
        lengths=(5, 1, 9), columns=1003, vocab_size=990, dtype=dtype, temperature=config.temperature
    )
    expected = truth(case, config, on_policy)
    logits_TV = case.logits_TV.clone().requires_grad_()
    result = run(case, config, logits_TV, on_policy, impl="triton")
    (2.0 * result.loss).backward()
    assert abs(float(result.loss.detach() - expected.loss)) <= 1e-6 * max(1.0, abs(float(expected.loss)))
    assert oracle.worst(result.logprob_T, expected.logprob_T.where(case.mask_T, 0.0)) <= 1e-6
    assert oracle.worst(result.entropy_T, expected.entropy_T.where(case.mask_T, 0.0)) <= 1e-6
    assert oracle.worst_of_scale(logits_TV.grad / 2, expected.dlogits_TV) <= tolerance(dtype)
    on_torch = run(case, config, case.logits_TV, on_policy, impl="torch")
    for field in fields(result.metrics):
        got, want = (float(getattr(one.metrics, field.name)) for one in (result, on_torch))
        assert got == pytest.approx(want, rel=1e-5, abs=2e-6), field.name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    ("columns", "vocab_size"), [(151_936, 151_936), (151_936, 151_669)], ids=["whole", "padded"]
)
def test_real_vocabulary_with_logits_around_minus_ten(
    columns: int, vocab_size: int, dtype: torch.dtype
) -> None:
    """Use 151,936 columns, no multiple of the block.

    Fill values of the last one must weigh exp(-inf), not exp(0).
    """
    case = make_case(
        lengths=(2, 1),
        columns=columns,
        vocab_size=vocab_size,
        dtype=dtype,
        shift=-10.0,
        scale=1.0,
        temperature=0.8,
    )
    case = replace(case, mask_T=torch.tensor([True, False, True]))
    config = LossConfig.preset("self_grpo", entropy_weight=0.01, temperature=0.8)
    expected = truth(case, config)
    logits_TV = case.logits_TV.clone().requires_grad_()
    result = run(case, config, logits_TV, impl="triton")
    result.loss.backward()
    assert oracle.worst(result.logprob_T, expected.logprob_T.where(case.mask_T, 0.0)) <= 1e-6
    assert oracle.worst(result.entropy_T, expected.entropy_T.where(case.mask_T, 0.0)) <= 1e-6
    assert oracle.worst_of_scale(logits_TV.grad, expected.dlogits_TV) <= tolerance(dtype)
    assert bool((logits_TV.grad[:, vocab_size:] == 0).all())


@pytest.mark.parametrize("columns", [1, 2, 17, 4096, 4097])
def test_any_vocabulary_size(columns: int) -> None:
    logits_TV = torch.randn(2, columns, generator=torch.Generator().manual_seed(1)) * 3
    targets_T = torch.tensor([0, columns - 1])
    truth_TV = logits_TV.double().requires_grad_()
    logprob_T, entropy_T = oracle.distribution(truth_TV, targets_T, 1.0, None)
    (logprob_T.sum() - 2 * entropy_T.sum()).backward()
    logits_TV.requires_grad_()
    got = token_logprobs(logits_TV, targets_T, impl="triton")
    (got.logprob_T.sum() - 2 * got.entropy_T.sum()).backward()
    assert oracle.worst(got.logprob_T, logprob_T.detach()) <= 1e-6
    assert oracle.worst(got.entropy_T, entropy_T.detach()) <= 1e-6
    assert float((logits_TV.grad.double() - truth_TV.grad).abs().max()) <= 5e-6


@pytest.mark.parametrize("shift", [300.0, -300.0])
def test_shifted_logits_cost_no_precision(shift: float) -> None:
    case = make_case(lengths=(3, 2), columns=1003, vocab_size=1003, shift=shift)
    config = PRESETS["self_grpo"]
    expected = truth(case, config)
    logits_TV = case.logits_TV.clone().requires_grad_()
    result = run(case, config, logits_TV, impl="triton")
    result.loss.backward()
    assert oracle.worst(result.logprob_T, expected.logprob_T.where(case.mask_T, 0.0)) <= 1e-6
    assert oracle.worst_of_scale(logits_TV.grad, expected.dlogits_TV) <= 5e-6
    assert float(logits_TV.grad.double().sum(-1).abs().max()) <= 1e-6 * float(
        logits_TV.grad.abs().sum(-1).max()
    )


def test_forbidden_tokens_and_a_shard_of_padding_make_no_nan() -> None:
    logits_TV = torch.randn(3, 5000, generator=torch.Generator().manual_seed(2))
    logits_TV[:, :4500] = -torch.inf  # the whole first block
    expected, entropy_T = oracle.distribution(logits_TV[:, 4500:].double(), torch.arange(3), 1.0, None)
    logits_TV.requires_grad_()
    got = token_logprobs(logits_TV, torch.arange(3) + 4500, impl="triton")
    assert oracle.worst(got.logprob_T, expected) <= 1e-6
    assert oracle.worst(got.entropy_T, entropy_T) <= 1e-6
    (got.logprob_T.sum() + got.entropy_T.sum()).backward()
    assert bool((logits_TV.grad[:, :4500] == 0).all())
    assert bool(logits_TV.grad.isfinite().all())


@pytest.mark.parametrize("size", [2, 4])
def test_shards_combine_to_the_whole(size: int) -> None:
    """Call `vocab_stats` and `dlogits_` per shard and reduce here.

    The last shard of four is all padding.
    """
    from selfemo.kernels.triton_backend import TritonBackend
    from selfemo.kernels.vocab_parallel import ShardStats, VocabShard

    case = make_case(lengths=(3, 2), columns=800, vocab_size=590)
    truth_TV = case.logits_TV.double().requires_grad_()
    logprob_T, entropy_T = oracle.distribution(truth_TV, case.targets_T, 1.0, 590)
    (2 * logprob_T.sum() + entropy_T.sum()).backward()
    backend, width = TritonBackend(), 800 // size
    shards = [
        VocabShard(start, width, min(max(590 - start, 0), width), None) for start in range(0, 800, width)
    ]
    pieces_TV = [piece.contiguous() for piece in case.logits_TV.chunk(size, dim=1)]
    stats: list[ShardStats] = [
        backend.vocab_stats(x, case.targets_T, None, shard, 1.0) for x, shard in zip(pieces_TV, shards)
    ]
    softmax = joined_stats(stats)
    assert oracle.worst(softmax.logprob_T, logprob_T.detach()) <= 1e-6
    assert oracle.worst(softmax.entropy_T, entropy_T.detach()) <= 1e-6
    for piece_TV, shard in zip(pieces_TV, shards):
        backend.dlogits_(piece_TV, case.targets_T, softmax, torch.full((5,), 2.0), torch.ones(5), shard, 1.0)
    assert oracle.worst_of_scale(torch.cat(pieces_TV, dim=1), truth_TV.grad) <= 5e-6


@pytest.mark.parametrize("normalise", ["std", "none", "leave_one_out"])
@pytest.mark.parametrize("per_component", [False, True])
def test_group_advantages(normalise: str, per_component: bool) -> None:
    config = AdvantageConfig(
        normalise=normalise, per_component=per_component, range_component=1, range_threshold=0.3
    )  # type: ignore[arg-type]
    rewards_SC = torch.rand(90, 3, generator=torch.Generator().manual_seed(3)) * torch.tensor(
        [1.0, 1.0, 100.0]
    )
    rewards_SC[3:11] = torch.tensor([10.1, 0.3, 7.0])
    group_ptr, weights_C = torch.tensor([0, 2, 3, 11, 80, 90]), torch.tensor([1.0, 0.2, 0.1])
    got = group_advantages(rewards_SC, group_ptr, weights_C, config=config, impl="triton")
    on_torch = group_advantages(rewards_SC, group_ptr, weights_C, config=config, impl="torch")
    assert oracle.worst(got.advantage_S, oracle.advantages(rewards_SC, group_ptr, weights_C, config)) <= 1e-6
    assert bool((got.advantage_S[2:11] == 0).all())  # a group of one, and one of equal rewards
    assert torch.equal(got.weight_S, on_torch.weight_S)
    for name in ("mean_G", "std_G", "range_G"):
        assert torch.allclose(getattr(got, name), getattr(on_torch, name), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", PRESETS)
def test_on_policy_ratio_is_exactly_one_and_kl_exactly_zero(name: str) -> None:
    config = PRESETS[name]
    case = make_case(lengths=(3, 1, 6), columns=500, vocab_size=499)
    own_T = token_logprobs(
        case.logits_TV,
        case.targets_T,
        mask_T=case.mask_T,
        vocab_size=499,
        temperature=config.temperature,
        impl="triton",
    ).logprob_T
    case = replace(case, old_T=own_T, ref_T=own_T)
    for on_policy in (False, True):
        result = run(case, config, case.logits_TV, on_policy, impl="triton")
        assert float(result.metrics.ratio) == float(result.metrics.tokens) == float(case.mask_T.sum())
        assert float(result.metrics.kl) == 0.0


def test_microbatches_add_up_and_two_runs_agree_bitwise() -> None:
    case = make_case(lengths=(5, 1, 8), columns=300, vocab_size=300)
    config = LossConfig.preset("gspo", kl_beta=0.1)

    def gradient(part: Case) -> tuple[float, torch.Tensor]:
        logits_TV = part.logits_TV.clone().requires_grad_()
        loss = run(part, config, logits_TV, impl="triton").loss
        loss.backward()
        return float(loss.detach()), logits_TV.grad

    whole_loss, whole_TV = gradient(case)
    again_loss, again_TV = gradient(case)
    assert whole_loss == again_loss
    assert torch.equal(whole_TV, again_TV)
    parts = [gradient(part_of(case, s, s + 1)) for s in range(3)]
    assert sum(loss for loss, _ in parts) == pytest.approx(whole_loss, rel=1e-6)
    assert torch.equal(torch.cat([part_TV for _, part_TV in parts]), whole_TV)


def test_long_sequence_spans_several_blocks() -> None:
    """Use 1,100 tokens.

    A program walks 256 at a time, so that there are five blocks, the last one partly filled.
    """
    generator = torch.Generator().manual_seed(5)
    tokens = 1100
    case = make_case(lengths=(tokens,), columns=3, vocab_size=3)
    case = replace(case, mask_T=torch.rand(tokens, generator=generator) > 0.3)
    for name in ("gspo", "everything"):
        expected = truth(case, PRESETS[name])
        logits_TV = case.logits_TV.clone().requires_grad_()
        result = run(case, PRESETS[name], logits_TV, impl="triton")
        result.loss.backward()
        assert oracle.worst(result.loss.detach(), expected.loss) <= 1e-6
        assert oracle.worst_of_scale(logits_TV.grad, expected.dlogits_TV) <= 5e-6


@pytest.mark.parametrize("name", ["self_grpo", "gspo"])
def test_fused_projection(name: str) -> None:
    config = PRESETS[name]
    case = make_case(lengths=(5, 1, 8), columns=200, vocab_size=190, temperature=config.temperature)
    generator = torch.Generator().manual_seed(6)
    hidden_TH, weight_VH = torch.randn(14, 8, generator=generator), torch.randn(200, 8, generator=generator)
    results = []
    for fused in (True, False):
        h, w = hidden_TH.clone().requires_grad_(), weight_VH.clone().requires_grad_()
        source = (
            {"hidden_TH": h, "weight_VH": w, "chunk_tokens": 4, "impl": "triton"}
            if fused
            else {"impl": "torch"}
        )
        run(case, config, None if fused else h @ w.T, **source).loss.backward()
        results.append((h.grad, w.grad))
    for fused_gradient, plain_gradient in zip(*results):
        assert oracle.worst_of_scale(fused_gradient, plain_gradient) <= 3e-6


def test_rows_of_a_wider_buffer() -> None:
    case = make_case(lengths=(2, 2), columns=100, vocab_size=100)
    buffer = torch.randn(4, 300, generator=torch.Generator().manual_seed(7))
    whole = buffer.clone()
    view_TV = buffer[:, 150:250].requires_grad_()
    given = {"advantage_S": torch.tensor([-1.0, 1.0]), "config": LossConfig(), "impl": "triton"}
    result = grpo_loss(view_TV, case.targets_T.int(), case.cu_seqlens.int(), **given)
    expected, _ = oracle.distribution(whole[:, 150:250].double(), case.targets_T, 1.0, None)
    assert oracle.worst(result.logprob_T, expected) <= 1e-6
    result.loss.backward()
    assert torch.equal(buffer[:, :150], whole[:, :150])
    assert torch.equal(buffer[:, 250:], whole[:, 250:])
    assert not torch.equal(buffer[:, 150:250], whole[:, 150:250])


def test_second_backward_raises() -> None:
    logits_TV = torch.randn(2, 20).requires_grad_()
    loss = token_logprobs(logits_TV, torch.zeros(2, dtype=torch.int64), impl="triton").logprob_T.sum()
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("columns", [1000, 4096])
def test_traffic_is_two_bytes_forward_and_six_in_all(columns: int) -> None:
    """Count every address in the logits that the two kernels touch; beside them, only the one logit
    of the target.
    """
    tokens = 8
    logits_TV = torch.randn(tokens, columns).bfloat16().requires_grad_()
    with interpreted_traffic(logits_TV) as forward:
        result = token_logprobs(logits_TV, torch.arange(tokens), impl="triton")
    assert forward.read_bytes == 2 * tokens * columns + 2 * tokens
    assert forward.written_bytes == 0
    with interpreted_traffic(logits_TV) as backward:
        (result.logprob_T.sum() + result.entropy_T.sum()).backward()
    assert backward.read_bytes == 2 * tokens * columns
    assert backward.written_bytes == 2 * tokens * columns


def test_masked_and_clipped_rows_are_not_read() -> None:
    """Mask two of four tokens, give one zero advantage: forward reads two rows, backward one."""
    logits_TV = torch.randn(4, 1000).bfloat16().requires_grad_()
    mask_T = torch.tensor([True, False, False, True])
    with interpreted_traffic(logits_TV) as forward:
        result = grpo_loss(
            logits_TV,
            torch.arange(4),
            torch.tensor([0, 2, 4]),
            config=LossConfig(),
            advantage_S=torch.tensor([1.0, 0.0]),
            mask_T=mask_T,
            impl="triton",
        )
    assert forward.read_bytes == 2 * 2 * 1000 + 2 * 2
    with interpreted_traffic(logits_TV) as backward:
        result.loss.backward()
    assert backward.read_bytes == 2 * 1000
    assert backward.written_bytes == 4 * 2 * 1000
    assert bool((logits_TV.grad[1:] == 0).all())
