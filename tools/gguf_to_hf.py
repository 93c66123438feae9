"""Turns a GGUF file of a Llama model into a Hugging Face directory.

    python -m tools.gguf_to_hf --gguf SmolLM2-135M-Instruct.Q4_1.gguf --output smollm2

`--layers 9` keeps the lowest nine layers under a head fitted to them (tools/fitted_head.py) on the texts of
the bundled corpus, for a cheap recognizer in studies. Weights are dequantised to fp32; tokenizer and chat
template are included. For machines that can reach a package index but no model hub. transformers reads the
file, which needs the packages gguf and accelerate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from selfemo.common.errors import UserError, told_in_one_line
from selfemo.common.pending import new_directory
from selfemo.models.architecture import read_architecture


def convert(gguf: Path, output: Path, layers: int = 0, chat_template: str = "") -> None:
    """Write the directory.

    Args:
        layers: number of the lowest layers to keep, fewer than the model has; 0 for all.
        chat_template: written in the place of the file's own, unless it is empty.

    Raises:
        UserError: the file is missing or no Llama model, it has fewer layers, a package is missing, or the
            output exists.
    """
    if not gguf.is_file():
        raise UserError(f"{gguf}: no such file; expected a GGUF model")
    with new_directory(output) as pending:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

        from selfemo.corpora.registry import load_corpus
        from tools.fitted_head import chats, fitted_head

        try:
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
            quantised = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32
            )
        except ImportError as error:
            raise UserError(
                f"{gguf}: {str(error).strip().splitlines()[0]}: pip install gguf accelerate"
            ) from None
        fields = quantised.config.to_dict()
        for name in ("quantization_config", "_name_or_path"):
            fields.pop(name, None)
        if fields["model_type"] != "llama":
            raise UserError(f"{gguf}: holds a {fields['model_type']} model; expected llama")
        if layers >= fields["num_hidden_layers"]:
            raise UserError(
                f"--layers {layers}: the model has {fields['num_hidden_layers']}; name fewer, or 0 for all"
            )
        fields |= {"architectures": ["LlamaForCausalLM"]}
        fields["num_hidden_layers"] = layers or fields["num_hidden_layers"]
        fields["tie_word_embeddings"] = fields["tie_word_embeddings"] and not layers
        model = type(quantised)(LlamaConfig(**fields))
        held = quantised.state_dict()
        if layers:
            texts = chats(load_corpus("everyday").split("train"), tokenizer, chat_template)
            held["lm_head.weight"] = fitted_head(quantised, layers, texts)
        model.load_state_dict({name: held[name] for name in model.state_dict()})
        model.save_pretrained(pending)
        tokenizer.chat_template = chat_template or tokenizer.chat_template
        tokenizer.save_pretrained(pending)
        read_architecture(pending)


def main(
    gguf: Annotated[Path, typer.Option(help="GGUF file of a Llama model")],
    output: Annotated[Path, typer.Option(help="Hugging Face directory to create")],
    layers: Annotated[int, typer.Option(min=0, help="lowest layers kept, under a fitted head; 0: all")] = 0,
) -> None:
    """Turn a GGUF file of a Llama model into a Hugging Face directory."""
    with told_in_one_line():
        convert(gguf, output, layers)


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
