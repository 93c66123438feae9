"""Runs the steps, or those named, and writes the report.

    python -m tools.gpu_check [--device cpu] [--only STEP ...] [--output DIR] [--model DIR]

Exit status: 0 every step passed, 1 a step failed, 2 wrong arguments, 3 there is no GPU and nothing was run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from selfemo.commands.doctor import read_driver
from tools.gpu_check.runner import BAD, SKIPPED_STATUS, run_steps
from tools.gpu_check.steps import Machine, steps


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status."""
    options = _parser().parse_args(arguments)
    gpus = len(read_driver().gpus)
    root = Path.cwd()
    if not (root / "tests" / "kernels").is_dir():
        print("gpu-check: run it in a checkout of selfemo (tests/kernels is not here)", file=sys.stderr)
        return 2
    machine = Machine(options.device, gpus, root, options.output.resolve(), options.model)
    chosen = steps(machine)
    unknown = set(options.only) - {step.name for step in chosen}
    if unknown:
        print(
            f"gpu-check: no step {', '.join(sorted(unknown))}; steps: {', '.join(s.name for s in chosen)}",
            file=sys.stderr,
        )
        return 2
    chosen = tuple(step for step in chosen if not options.only or step.name in options.only)
    if options.device == "cuda" and not gpus:
        for step in chosen:
            print(f"{step.name}: not run, this machine has no NVIDIA GPU")
        print("gpu-check: nothing was run (exit status 3); --device cpu runs what a CPU can")
        return SKIPPED_STATUS
    minutes = sum(step.deadline_s for step in chosen) / 60
    print(f"gpu-check: {len(chosen)} step(s), at most {minutes:.0f} minutes by their deadlines", flush=True)
    outcomes = run_steps(chosen, machine, lambda line: print(line, flush=True))
    failed = [outcome.name for outcome in outcomes if outcome.result in BAD]
    if failed:
        print("gpu-check: what the failure of a step most likely means: docs/gpu_failures.md")
    print(
        f"gpu-check: {'failed: ' + ', '.join(failed) if failed else 'no step failed'}; to read: "
        f"{machine.output / 'report.md'}; send back the directory {machine.output}, logs included"
    )
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gpu-check", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: test the harness itself"
    )
    parser.add_argument("--only", nargs="+", default=[], metavar="STEP", help="run these steps alone")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/gpu-check"), help="where logs, figures and the report go"
    )
    parser.add_argument(
        "--model",
        default="",
        metavar="DIR",
        help="a Qwen3 directory for the last step, instead of a small new one",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
