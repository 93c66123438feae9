"""Names what decides the last bits of this process's results besides program, weights and input."""

from __future__ import annotations


def arithmetic() -> list[str | int]:
    """Return torch's version, the processor's or GPU's kind, and the number of threads: where one of them
    differs, equal computations may round otherwise.
    """
    import torch

    on_gpu = torch.cuda.is_available()
    machine = torch.cuda.get_device_name() if on_gpu else torch.backends.cpu.get_cpu_capability()
    return [torch.__version__, machine, torch.get_num_threads()]
