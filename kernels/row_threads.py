"""Runs chunks of rows on several threads, each of which runs torch's operators serially.

Torch splits each operator over its threads, and the threads wait for each other at its end. A walk over
logits in chunks is hundreds of operators of a fraction of a millisecond each: on a machine that is
shared, every one of these waits can last until a descheduled thread is given a core again
(docs/kernels.md has the cost of that). Rows are independent, so a thread here takes whole chunks and
waits for the others once. No operator is split, so no sum's last bit depends on the number of threads
either.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

# vLLM's CPU worker replaces torch.set_num_threads by a function that does nothing
from torch._C import set_num_threads

from selfemo.kernels.chunks import Rows


def on_threads(work: Callable[[Iterator[Rows]], None], chunks: Iterable[Rows], device: torch.device) -> None:
    """Run `work` on up to torch.get_num_threads() threads (one for a GPU).

    All draw from one iterator, so each chunk is taken once. The threads live as long as the call:
    nothing is left that a fork could break. set_num_threads, which makes operators serial in a thread,
    also sets the number that later threads inherit, so the caller's number is restored at the end.
    """
    shared, inference, threads = list(chunks), torch.is_inference_mode_enabled(), torch.get_num_threads()
    chunk = iter(shared)
    if threads == 1 or device.type != "cpu":
        work(chunk)
        return

    def run() -> None:
        with torch.inference_mode(inference), torch.no_grad():  # both are settings of one thread
            work(chunk)

    try:
        with ThreadPoolExecutor(threads, initializer=set_num_threads, initargs=(1,)) as pool:
            runs = [pool.submit(run) for _ in range(min(threads, len(shared)))]
    finally:
        set_num_threads(threads)
    for one in runs:
        one.result()
