"""Step `sync`: sends weights from Megatron into vLLM on both paths.

Checksums and the greedy probe verify each transfer, and raise if it went wrong.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from typing import Literal

from selfemo.rollout.api import GenerationRequest
from selfemo.sync.sync import WeightSync
from tools.gpu_check.system import small_config, small_system


def main() -> None:
    """Collective: torchrun runs it on every rank; rank 0 prints."""
    config = small_config()
    system = small_system(config)
    world = system.world.layout
    prompt = system.encoder.encode_text("How do you feel about it?")
    seen = []
    modes: tuple[Literal["checkpoint", "auto"], ...] = ("checkpoint", "auto")
    for version, mode in enumerate(modes, start=1):
        chosen, engine = replace(config.sync, mode=mode), system.engine
        sync = WeightSync(
            system.learner, engine, str(system.model_dir), chosen, config.rollout.dtype, [prompt]
        )
        report = sync.sync(version)
        seen.append(system.engine.generate([GenerationRequest(prompt, 1, 24, 0.0)])[0].token_ids)
        if world.is_main:
            print(json.dumps(asdict(report)), flush=True)
    if seen[0] != seen[1]:
        raise SystemExit(
            f"rank {world.rank}: the two paths give other greedy continuations: {seen[0]} and {seen[1]}"
        )
    if world.is_main:
        print(
            f"both paths verified over {world.sizes.world_size} rank(s), tensor parallel {world.sizes.tensor}"
        )


if __name__ == "__main__":
    main()
