"""Test the choice of implementation, and that the CPU path needs neither CUDA nor Triton."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import torch

from selfemo.kernels import token_logprobs
from selfemo.kernels.dispatch import choose, load_backend
from selfemo.kernels.torch_backend import TorchBackend


def test_cpu_path_never_imports_triton() -> None:
    code = """
import sys, torch
before = {name for name in sys.modules if name.split(".")[0] == "triton"}
import selfemo.kernels
logits = torch.zeros(1, 4).requires_grad_()
selfemo.kernels.token_logprobs(logits, torch.tensor([1])).logprob_T.sum().backward()
after = {name for name in sys.modules if name.split(".")[0] == "triton"}
sys.exit(int(after != before))
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


def test_auto_takes_torch_on_a_cpu_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    load_backend.cache_clear()
    with caplog.at_level(logging.INFO, logger="selfemo.kernels.dispatch"):
        for _ in range(3):
            token_logprobs(torch.zeros(1, 4), torch.tensor([1]))
    assert [record.getMessage() for record in caplog.records] == ["kernels: torch on cpu tensors (impl=auto)"]
    assert isinstance(choose("auto", torch.device("cpu")), TorchBackend)


def test_triton_on_a_cpu_raises_every_time() -> None:
    for _ in range(2):
        with pytest.raises(
            ValueError,
            match="impl='triton' cannot run on cpu tensors: move them to a GPU, or use impl='auto'",
        ):
            choose("triton", torch.device("cpu"))
