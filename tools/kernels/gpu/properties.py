"""Lists the cases that are no comparison of one loss: shards, groups, the fused projection, repetition.

The same rules as in `cases` hold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from selfemo.kernels import AdvantageConfig, group_advantages, token_logprobs
from selfemo.kernels.dispatch import choose
from selfemo.kernels.vocab_parallel import VocabShard
from tests.helpers import kernel_oracle as oracle
from tests.helpers.kernel_cases import PRESETS, joined_stats, make_case, run, truth
from tools.kernels.gpu.cases import (
    BF16_GRADIENT,
    FP32_GRADIENT,
    QWEN3_VOCABULARY,
    Place,
    loss_cases,
    moved,
    require,
    within,
)

PROJECTED_BF16 = 3e-2
"""Bound in bf16 on the projection's results: its logits, up to 4, are rounded to bf16 again."""


def all_cases(place: Place) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yield every case's name and check, the cheapest first."""
    for normalise in ("std", "none", "leave_one_out"):
        yield f"group advantages, {normalise}", partial(check_groups, place, normalise)
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        for size in (2, 4, 8):
            yield f"{size} shards, {name}", partial(check_shards, place, size, dtype)
        yield f"fused projection, {name}", partial(check_projection, place, dtype)
    yield "forbidden tokens", partial(check_forbidden, place)
    yield from loss_cases(place)
    yield "two runs, bit for bit", partial(check_repetition, place)
    yield "on policy: ratio 1, KL 0", partial(check_on_policy, place)
    if not place.is_small:
        yield "offsets beyond 2^31", partial(check_offsets, place)


def check_groups(place: Place, normalise: str) -> str:
    """Compare advantages with the oracle's; a group of one and one of equal rewards get exactly 0."""
    config = AdvantageConfig(normalise=normalise)  # type: ignore[arg-type]
    scale_C = torch.tensor([1.0, 1.0, 100.0])
    rewards_SC = torch.rand(90, 3, generator=torch.Generator().manual_seed(3)) * scale_C
    rewards_SC[3:11] = torch.tensor([10.1, 0.3, 7.0])
    group_ptr, weights_C = torch.tensor([0, 2, 3, 11, 80, 90]), torch.tensor([1.0, 0.2, 0.1])
    on_device = (tensor.to(place.device) for tensor in (rewards_SC, group_ptr, weights_C))
    got_S = group_advantages(*on_device, config=config, impl=place.impl).advantage_S.cpu()
    require("equal rewards have an advantage", (got_S[2:11] == 0).all())
    error = oracle.worst(got_S, oracle.advantages(rewards_SC, group_ptr, weights_C, config))
    return f"advantage {within('advantage', error, place.logprob_bound):.1e}"


def check_shards(place: Place, size: int, dtype: torch.dtype) -> str:
    """Run both vocabulary kernels shard by shard, as tensor-parallel ranks do, and join the statistics.

    The last shards are padding in part or whole.
    """
    columns, vocab_size = (800, 590) if place.is_small else (QWEN3_VOCABULARY, 112_001)
    case = moved(make_case((3, 2), columns, vocab_size, dtype), place.device)
    truth_TV = case.logits_TV.double().requires_grad_()
    logprob_T, entropy_T = oracle.distribution(truth_TV, case.targets_T, 1.0, vocab_size)
    (2 * logprob_T.sum() + entropy_T.sum()).backward()
    assert truth_TV.grad is not None
    backend, width = choose(place.impl, case.logits_TV.device), columns // size
    starts = range(0, columns, width)
    shards = [VocabShard(start, width, min(max(vocab_size - start, 0), width), None) for start in starts]
    pieces_TV = [piece.contiguous() for piece in case.logits_TV.chunk(size, dim=1)]
    stats = [backend.vocab_stats(x, case.targets_T, None, shard, 1.0) for x, shard in zip(pieces_TV, shards)]
    softmax = joined_stats(stats)
    within("logprob", oracle.worst(softmax.logprob_T, logprob_T.detach()), place.logprob_bound)
    within("entropy", oracle.worst(softmax.entropy_T, entropy_T.detach()), place.logprob_bound)
    twos_T = torch.full((5,), 2.0, device=place.device)
    for piece_TV, shard in zip(pieces_TV, shards):
        backend.dlogits_(piece_TV, case.targets_T, softmax, twos_T, twos_T / 2, shard, 1.0)
    error = oracle.worst_of_scale(torch.cat(pieces_TV, dim=1), truth_TV.grad)
    bound = FP32_GRADIENT if dtype == torch.float32 else BF16_GRADIENT
    return f"gradient {within('gradient', error, bound):.1e}"


def check_projection(place: Place, dtype: torch.dtype) -> str:
    """Compare the loss from hidden states, and both gradients, with the oracle's in fp64."""
    columns, width = (203, 32) if place.is_small else (QWEN3_VOCABULARY, 512)
    case = moved(make_case((2, 1, 14), columns, columns), place.device)
    generator = torch.Generator().manual_seed(2)
    hidden_TH = torch.randn(17, width, generator=generator).to(place.device, dtype).requires_grad_()
    scale = width**-0.5
    weight_VH = (torch.randn(columns, width, generator=generator) * scale).to(place.device, dtype)
    weight_VH.requires_grad_()
    logits_TV = hidden_TH.detach().double() @ weight_VH.detach().double().t()
    expected = truth(replace(case, logits_TV=logits_TV), PRESETS["grpo"], on_policy=True)
    given = {"hidden_TH": hidden_TH, "weight_VH": weight_VH, "chunk_tokens": 8, "impl": place.impl}
    result = run(case, PRESETS["grpo"], None, on_policy=True, **given)
    result.loss.backward()
    assert hidden_TH.grad is not None
    assert weight_VH.grad is not None
    is_exact = dtype == torch.float32
    wanted_T = expected.logprob_T.where(case.mask_T, 0.0)
    bound = 2e-5 if is_exact else PROJECTED_BF16
    within("logprob", oracle.worst(result.logprob_T, wanted_T), bound)
    pairs = (
        ("hidden gradient", hidden_TH.grad, expected.dlogits_TV @ weight_VH.detach().double()),
        ("weight gradient", weight_VH.grad, expected.dlogits_TV.t() @ hidden_TH.detach().double()),
    )
    errors = [within(name, oracle.worst_of_scale(got, want), bound) for name, got, want in pairs]
    return f"hidden gradient {errors[0]:.1e}, weight gradient {errors[1]:.1e}"


def check_forbidden(place: Place) -> str:
    """Give -inf logits, among them a whole block: no NaN, no probability and no gradient there."""
    logits_TV = torch.randn(3, 5000, generator=torch.Generator().manual_seed(2)).to(place.device)
    logits_TV[:, :4500] = -torch.inf
    targets_T = torch.arange(3, device=place.device)
    wanted_T, _ = oracle.distribution(logits_TV[:, 4500:].double(), targets_T, 1.0, None)
    logits_TV.requires_grad_()
    got = token_logprobs(logits_TV, targets_T + 4500, impl=place.impl)
    (got.logprob_T.sum() + got.entropy_T.sum()).backward()
    assert logits_TV.grad is not None
    require("a forbidden token has a gradient", (logits_TV.grad[:, :4500] == 0).all())
    require("the gradient is not finite", logits_TV.grad.isfinite().all())
    error = oracle.worst(got.logprob_T.detach(), wanted_T)
    return f"logprob {within('logprob', error, place.logprob_bound):.1e}"


def check_repetition(place: Place) -> str:
    """Run loss, gradient, advantages and the fused projection twice: every bit must be the same."""
    first, second = (_everything(place) for _ in range(2))
    for name, tensor in first.items():
        require(f"{name} differs between two runs", torch.equal(tensor, second[name]))
    return f"{len(first)} tensors equal"


def _everything(place: Place) -> dict[str, Tensor]:
    lengths, columns = ((2, 1, 3), 205) if place.is_small else ((300, 1, 500), 4097)
    case = moved(make_case(lengths, columns, columns - 9, torch.bfloat16), place.device)
    logits_TV = case.logits_TV.clone().requires_grad_()
    result = run(case, PRESETS["everything"], logits_TV, impl=place.impl)
    result.loss.backward()
    assert logits_TV.grad is not None
    rewards_SC = torch.rand(64, 3, generator=torch.Generator().manual_seed(3)).to(place.device)
    group_ptr = torch.arange(0, 65, 8, device=place.device)
    generator = torch.Generator().manual_seed(4)
    hidden_TH = torch.randn(sum(lengths), 64, generator=generator).to(place.device, torch.bfloat16)
    weight_VH = torch.randn(columns, 64, generator=generator).to(place.device, torch.bfloat16)
    given = {"hidden_TH": hidden_TH.requires_grad_(), "weight_VH": weight_VH.requires_grad_()}
    run(case, PRESETS["grpo"], None, impl=place.impl, chunk_tokens=256, **given).loss.backward()
    assert hidden_TH.grad is not None
    assert weight_VH.grad is not None
    return {
        "loss": result.loss.detach(),
        "logprob": result.logprob_T,
        "entropy": result.entropy_T,
        "gradient": logits_TV.grad,
        "advantage": group_advantages(rewards_SC, group_ptr, impl=place.impl).advantage_S,
        "hidden gradient": hidden_TH.grad,
        "weight gradient": weight_VH.grad,
    }


def check_on_policy(place: Place) -> str:
    """Take the ratio and the KL against the same weights: exactly 1 and exactly 0."""
    config = PRESETS["self_grpo"]
    case = moved(make_case((2, 1, 3), 4097, 4000), place.device)
    own_T = token_logprobs(
        case.logits_TV.clone(),
        case.targets_T,
        mask_T=case.mask_T,
        vocab_size=4000,
        temperature=config.temperature,
        impl=place.impl,
    ).logprob_T
    metrics = run(replace(case, ref_T=own_T), config, case.logits_TV.clone(), True, impl=place.impl).metrics
    require("the ratio is not 1", metrics.ratio == metrics.tokens)
    require("the KL is not 0", metrics.kl == 0.0)
    return "exact"


def check_offsets(place: Place) -> str:
    """Address rows whose offset needs more than 32 bits, in 5 GB of logits; the last rows are compared."""
    rows = 2**31 // QWEN3_VOCABULARY + 8
    logits_TV = torch.zeros(rows, QWEN3_VOCABULARY, dtype=torch.bfloat16, device=place.device)
    last = moved(make_case((3, 1, 4), QWEN3_VOCABULARY, QWEN3_VOCABULARY, torch.bfloat16), place.device)
    logits_TV[-8:] = last.logits_TV
    targets_T = torch.zeros(rows, dtype=torch.int64, device=place.device)
    targets_T[-8:] = last.targets_T
    wanted_T, _ = oracle.distribution(last.logits_TV.double(), last.targets_T, 1.0, None)
    got_T = token_logprobs(logits_TV.requires_grad_(), targets_T, impl=place.impl).logprob_T
    error = within("logprob", oracle.worst(got_T[-8:].detach(), wanted_T), place.logprob_bound)
    got_T[-8:].sum().backward()
    assert logits_TV.grad is not None
    require("the last row's gradient is 0", (logits_TV.grad[-1] != 0).any())
    return f"logprob {error:.1e}"
