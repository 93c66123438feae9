"""Test megatron-core's announcements about the parts that this project uses.

If a test fails, read docs/upgrading.md before megatron-core is upgraded.
"""

from __future__ import annotations

import inspect

import pytest

READ = "read docs/upgrading.md before megatron-core is upgraded"


def test_gpt_model_is_still_there_and_still_deprecated():
    """Find GPTModel's notice.

    In 0.19 megatron-core accepts only critical fixes for it and points to HybridModel. A later
    version removes it.
    """
    try:
        from megatron.core.models.gpt import GPTModel
    except ImportError as error:
        pytest.fail(f"megatron-core has no GPTModel any more ({error}): {READ}")
    built = inspect.getsource(GPTModel.__init__)
    assert "GPTModel IS DEPRECATED" in built, (
        f"megatron-core changed what it announces about GPTModel: {READ}"
    )
    assert "HybridModel" in built, f"megatron-core names another successor of GPTModel: {READ}"


def test_gpt_model_takes_an_output_processor():
    """Find the argument of GPTModel; selfemo.megatron.output_layer is such a processor.

    HybridModel of 0.19.2 has no such hook.
    """
    from megatron.core.models.gpt import GPTModel

    taken = inspect.signature(GPTModel.forward).parameters
    assert {"output_processor", "output_processor_context", "loss_mask"} <= set(taken), READ
