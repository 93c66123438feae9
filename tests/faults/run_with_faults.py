"""Run `selfemo` with faults patched in from outside: the product has no hooks for them.

    python -m tests.faults.run_with_faults \\
        '[{"at": "rollout", "count": 2, "rank": 0, "do": "kill"}]' train --config ...

A fault strikes when its point (POINTS) has been passed `count` times on `rank` (-1: on every rank).
`do` is one of "kill" (SIGKILL to itself), "stop" (SIGSTOP), "term", "usr1", "raise", "hang", or
"nan" (the loss that the function receives is NaN from then on). With "attempt", it strikes only in
that attempt of torchrun.
"""

from __future__ import annotations

import functools
import importlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Place = tuple[str, str, str]
"""Point -> (module, class or "", function); strikes before the call, or after it if the point ends
in "-done".
"""

POINTS: dict[str, Place] = {
    "setup": ("selfemo.rollout.vllm_engine", "RolloutEngine", "__init__"),
    "sync": ("selfemo.sync.sync", "WeightSync", "sync"),
    "sync-tensor": ("selfemo.weights.gather", "", "fill_hf"),
    "sync-loading": ("selfemo.rollout.vllm_engine", "RolloutEngine", "receive_checkpoint_tensors"),
    "sync-done": ("selfemo.sync.sync", "WeightSync", "sync"),
    "evaluation": ("selfemo.run.episodes", "EpisodesByEngine", "read_greedily"),
    "evaluation-done": ("selfemo.run.episodes", "EpisodesByEngine", "read_greedily"),
    "sft": ("selfemo.megatron.learner", "Learner", "sft_step"),
    "sft-done": ("selfemo.megatron.learner", "Learner", "sft_step"),
    "rollout": ("selfemo.selfplay.episode", "SelfPlay", "play"),
    "generate": ("selfemo.rollout.vllm_session", "VllmSession", "add"),
    "generate-done": ("selfemo.rollout.vllm_session", "VllmSession", "add"),
    "reward": ("selfemo.rewards.scoring", "Rewards", "figures"),
    "flywheel": ("selfemo.flywheel.store", "FlywheelStore", "append"),
    "flywheel-record": ("selfemo.flywheel.store", "FlywheelStore", "_insert"),
    "flywheel-done": ("selfemo.flywheel.store", "FlywheelStore", "append"),
    "logprobs": ("selfemo.megatron.learner", "Learner", "logprobs"),
    "step": ("selfemo.megatron.learner", "Learner", "policy_step"),
    "optimizer": ("selfemo.megatron.learner", "Learner", "_optimizer_step"),
    "step-done": ("selfemo.megatron.learner", "Learner", "policy_step"),
    "metrics": ("selfemo.records.directory", "RunDirectory", "append_jsonl"),
    "metrics-done": ("selfemo.records.directory", "RunDirectory", "append_jsonl"),
    "checkpoint": ("selfemo.run.checkpoints", "Checkpoints", "save"),
    "checkpoint-tensors": ("selfemo.megatron.checkpoint", "TensorWrite", "__init__"),
    "checkpoint-tensors-done": ("selfemo.megatron.checkpoint", "TensorWrite", "__init__"),
    "checkpoint-commit": ("selfemo.run.checkpoints", "", "_commit"),
    "checkpoint-rename": ("selfemo.run.checkpoints", "", "_rename"),
    "checkpoint-rename-done": ("selfemo.run.checkpoints", "", "_rename"),
    "checkpoint-prune": ("selfemo.run.checkpoints", "", "_prune"),
    "checkpoint-done": ("selfemo.run.checkpoints", "Checkpoints", "finish"),
    "export": ("selfemo.run.state", "", "save_hf"),
    "export-done": ("selfemo.run.state", "", "save_hf"),
    "summary": ("selfemo.run.journal", "Journal", "finish"),
}


def main(faults: list[dict[str, Any]]) -> int:
    """Run the `selfemo` command of sys.argv with faults; returns the exit status."""
    rank = int(os.environ.get("RANK", "0"))
    for fault in faults:
        attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
        if fault.get("rank", 0) in (-1, rank) and fault.get("attempt", attempt) == attempt:
            _patch(POINTS[fault["at"]], fault)
    from selfemo.commands.main import main as selfemo

    try:
        selfemo()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


def _patch(place: Place, fault: dict[str, Any]) -> None:
    module_name, class_name, name = place
    owner: Any = importlib.import_module(module_name)
    owner = getattr(owner, class_name) if class_name else owner
    function: Callable[..., Any] = getattr(owner, name)
    passed = 0

    @functools.wraps(function)
    def watched(*args: Any, **kwargs: Any) -> Any:
        nonlocal passed
        passed += 1
        if fault["do"] == "nan":
            args = (args[0], math.nan, *args[2:]) if passed >= fault["count"] else args
            return function(*args, **kwargs)
        mine = passed == fault.get("count", 1)
        if mine and not fault["at"].endswith("-done"):
            strike(fault["do"])
        result = function(*args, **kwargs)
        if mine and fault["at"].endswith("-done"):
            strike(fault["do"])
        return result

    setattr(owner, name, watched)


def strike(what: str) -> None:
    """Inflict the fault on this process, and write the time to logs/struck."""
    run = next(argument.partition("=")[2] for argument in sys.argv if argument.startswith("output_dir="))
    (Path(run) / "logs" / "struck").write_text(str(time.time()))
    if what in ("kill", "stop", "term", "usr1"):
        os.kill(
            os.getpid(),
            {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM, "usr1": signal.SIGUSR1}[
                what
            ],
        )
    elif what == "raise":
        raise RuntimeError("the engine died")
    elif what == "hang":
        time.sleep(3600)
    else:
        raise ValueError(f"unknown fault {what!r}")


if __name__ == "__main__":
    wanted = json.loads(sys.argv.pop(1))
    sys.argv[0] = "selfemo"
    sys.exit(main(wanted))
