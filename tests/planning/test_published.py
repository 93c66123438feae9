"""Compare with step times that others published: one run fits the rates, the others are held out."""

from __future__ import annotations

from dataclasses import replace

import pytest

from selfemo.models.architecture import architecture_by_name
from selfemo.planning.parameters import total_elements
from selfemo.planning.published import (
    ASSUMED,
    FITTED,
    HELD_OUT,
    LLAMA_8B,
    LLAMA_70B,
    PROMPT_TOKENS,
    QWEN3_8B,
    QWEN3_32B,
    SEARCH_R1_TOKENS,
    PublishedRun,
    fitted_rates,
    predict,
)

TOLERANCE = 0.25


def test_the_models_have_their_published_sizes() -> None:
    sizes = [round(total_elements(a) / 1e9, 2) for a in (LLAMA_8B, LLAMA_70B, QWEN3_32B)]
    assert sizes == [8.03, 70.55, 32.76]


def test_the_fitted_run_is_met_phase_by_phase() -> None:
    predicted, wanted = predict(FITTED, fitted_rates()), FITTED.phases
    assert wanted is not None
    for phase in ("train", "sync", "other"):
        assert getattr(predicted, phase) == pytest.approx(getattr(wanted, phase), rel=1e-6)
    # Not quite linear: some steps are compute-bound.
    assert predicted.generate == pytest.approx(wanted.generate, rel=0.02)
    assert predicted.total == pytest.approx(FITTED.step_s, rel=0.05)


@pytest.mark.parametrize("run", HELD_OUT, ids=lambda run: run.name)
def test_held_out_steps_are_met_within_a_quarter(run: PublishedRun) -> None:
    predicted = predict(run, fitted_rates())
    assert predicted.total == pytest.approx(run.step_s, rel=TOLERANCE)
    if run.phases is not None:
        for phase in ("generate", "logprob", "train", "sync"):
            assert getattr(predicted, phase) == pytest.approx(getattr(run.phases, phase), rel=TOLERANCE), (
                phase
            )


def test_guessed_runs_are_as_long_as_their_recipe_allows_and_count_as_nothing_else() -> None:
    assert not set(ASSUMED) & {FITTED, *HELD_OUT}
    assert total_elements(QWEN3_8B) == total_elements(architecture_by_name("qwen3-8b"))
    for run in ASSUMED:
        assert PROMPT_TOKENS + run.turns * run.completion_tokens == SEARCH_R1_TOKENS
        shorter = replace(run, completion_tokens=run.completion_tokens / 2)
        assert predict(shorter, fitted_rates()).total < predict(run, fitted_rates()).total


def test_engines_of_their_own_take_the_batch_whatever_the_trainer_has() -> None:
    run = ASSUMED[0]
    assert run.engine_replicas == 1 != run.layout.replicas
    alone, two = (predict(replace(run, engine_replicas=count), fitted_rates()) for count in (1, 2))
    assert (
        two.generate == predict(replace(run, engine_replicas=None), fitted_rates()).generate < alone.generate
    )
    assert two.train == alone.train


def test_fitted_rates_are_physical() -> None:
    rates = fitted_rates()
    assert 0 < rates.layer_s < 5e-3
    assert 0 < rates.decode_step_s < 20e-3
    assert rates.refit_rate > 1e9
