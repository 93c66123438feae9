"""Test that the head of a cut model says what the whole model says, as far as its states tell."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tools.fitted_head import fitted_head

WIDTH, VOCABULARY, LOWER = 32, 96, 2


def small_model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "intermediate_size": 64, "vocab_size": VOCABULARY}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 4}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads, tie_word_embeddings=True, initializer_range=0.3))
    torch.nn.init.uniform_(model.model.norm.weight, 0.5, 2.0)
    return model.eval()


def texts(seed: int, count: int = 40) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCABULARY, (50,), generator=generator) for _ in range(count)]


def logits_of_both(model: LlamaForCausalLM, head: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of the whole model, and of its lower layers under the head, on texts of another seed."""
    with torch.no_grad():
        states = model.model(torch.stack(texts(1)), output_hidden_states=True)
        whole = states.last_hidden_state @ model.lm_head.weight.T
        return whole, model.model.norm(states.hidden_states[LOWER]) @ head.T


def test_layers_that_add_nothing_leave_the_head_as_it_is():
    model = small_model()
    for layer in model.model.layers[LOWER:]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    whole, cut = logits_of_both(model, fitted_head(model, LOWER, texts(0)))
    assert (cut - whole).norm() < 0.03 * whole.norm()  # the ridge


def test_the_fit_is_nearer_the_whole_model_than_its_own_head_is():
    model = small_model()
    whole, fitted = logits_of_both(model, fitted_head(model, LOWER, texts(0)))
    _, own = logits_of_both(model, model.lm_head.weight)
    assert (fitted - whole).norm() < 0.9 * (own - whole).norm()
