"""Step `sleep`: puts the engine to sleep, then wakes it and sends it its weights.

Asleep, it gives its memory back and refuses to generate; awake again, it answers as before. On a CPU
the engine stays resident: the cycle runs, and memory has nothing to show.
"""

from __future__ import annotations

import torch

from selfemo.rollout.api import GenerationRequest
from tools.gpu_check.system import small_config, small_system

RETURNED_SHARE = 0.9
"""Share of weights and cache that must come back: vLLM keeps CUDA graphs and workspaces."""


def main() -> None:
    """Collective: torchrun runs it on every rank; rank 0 prints."""
    config = small_config()
    system = small_system(config)
    device, layout = system.world.device, system.world.layout
    request = GenerationRequest(system.encoder.encode_text("How do you feel about it?"), 1, 24, 0.0)
    system.weight_sync.sync(1)
    before = system.engine.generate([request])[0].token_ids
    awake = _free_bytes()
    system.engine.sleep()
    asleep = _free_bytes()
    if device.is_cuda:
        _must_refuse(system.engine, request)
        held = config.rollout.kv_cache_bytes
        if asleep - awake < RETURNED_SHARE * held:
            raise SystemExit(
                f"rank {layout.rank}: sleep returned {asleep - awake} bytes, expected at least "
                f"{RETURNED_SHARE:.0%} of {held}"
            )
    system.weight_sync.sync(2)  # wakes the engine
    after = system.engine.generate([request])[0].token_ids
    if after != before:
        raise SystemExit(f"rank {layout.rank}: after waking the same weights give {after}, before {before}")
    if layout.is_main:
        if device.is_cuda:
            print(f"free bytes: awake {awake}, asleep {asleep}, awake again {_free_bytes()}")
        else:
            print("the CPU engine does not sleep: the cycle ran, its memory was not checked")
        print("the same greedy continuation before and after")


def _must_refuse(engine: object, request: GenerationRequest) -> None:
    try:
        engine.generate([request])  # type: ignore[attr-defined]
    except RuntimeError:
        return
    raise SystemExit("a sleeping engine generated")


def _free_bytes() -> int:
    if not torch.cuda.is_available():
        return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    free: int = torch.cuda.mem_get_info()[0]
    return free


if __name__ == "__main__":
    main()
