"""Proves and times the kernels on one GPU, in a checkout, with torch and Triton alone.

    python tools/gpu_kernels.py --output runs/gpu-kernels

Nothing needs to be installed: every kernel is compared with the fp64 oracle, two runs bit for bit, then
timed beside other implementations, and with other block sizes. DIR then holds kernels.md to read,
kernels.json for tools, and launches.json, the fastest blocks of this card. Without a GPU the same program
runs at small sizes: the CPU path, and the kernels in Triton's interpreter.

Exit status: 0 every case agrees with the oracle, 1 one does not, 2 wrong arguments or no such device.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUDGET_S = 300
GRACE_S = 60
"""Seconds after the budget in which a call that was begun may end; then a hang is told and ended."""


def main(arguments: list[str] | None = None) -> int:
    """Return the exit status."""
    options = _parser().parse_args(arguments)
    device = options.device or ("cuda" if list(Path("/dev").glob("nvidia[0-9]*")) else "cpu")
    # The script's own directory would hide top-level packages behind tools/'s.
    sys.path[:1] = [str(ROOT)]
    if device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # Triton reads it when a kernel is defined
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        print(
            f"gpu_kernels: torch {torch.__version__} sees no GPU: see nvidia-smi, or give --device cpu",
            file=sys.stderr,
        )
        return 2
    try:
        options.output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(
            f"gpu_kernels: {options.output} cannot be made ({error.strerror}): name another", file=sys.stderr
        )
        return 2
    from tools.kernels.gpu.program import Program

    print(f"gpu_kernels on {device}: at most {options.budget:.0f} s, and what was begun by then", flush=True)
    faulthandler.dump_traceback_later(options.budget + GRACE_S, exit=True)
    program = Program(device, options.output, options.budget, lambda line: print(line, flush=True))
    findings = program.run()
    faulthandler.cancel_dump_traceback_later()
    print(f"send back {options.output / 'kernels.json'} and kernels.md", flush=True)
    return 1 if findings.failures else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the findings go")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], help="default: cuda where there is an NVIDIA GPU"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=BUDGET_S,
        metavar="SECONDS",
        help="begin nothing after so long; default %(default)s",
    )
    return parser


def _refuse(reason: str) -> int:
    print(f"gpu_kernels: {reason}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
