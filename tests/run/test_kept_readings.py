"""Test that kept readings answer for the same model, requests and engine, and for nothing else."""

from __future__ import annotations

import random
import shutil
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import pytest
import torch.distributed as dist

from selfemo.common.errors import UserError
from selfemo.config.load import load_config
from selfemo.process.dealing import one_by_one
from selfemo.process.engine_ranks import EngineRanks
from selfemo.records.content import model_digests
from selfemo.rollout.api import Completion, GenerationRequest
from selfemo.run.kept_readings import KeepingGenerator, KeptReadings, reader_digest
from tests.helpers.scripted import ScriptedGenerator
from tests.records.test_inputs import write_model

REQUESTS = [GenerationRequest((5, 6, n), n, 4, 0.0, (7, 9)) for n in range(10)]


class _Scoring(ScriptedGenerator):
    """Answers and scores by the prompt, with logprobs that no short decimal number equals."""

    def __init__(self) -> None:
        super().__init__(lambda prompt, request: "joy" if crc32(prompt.encode()) % 2 else "sadness")

    def _complete(self, request: GenerationRequest) -> Completion:
        draws = random.Random(crc32(repr(request.prompt_ids).encode()))
        told = super()._complete(request)
        return replace(
            told,
            logprobs=tuple(-draws.random() / 3 for _ in told.token_ids),
            scored_logprobs=tuple(-draws.random() * 7 for _ in request.scored_ids),
        )


def asked(directory: Path, requests: list[GenerationRequest], reader: str = "a model") -> tuple[list, int]:
    """Return a new run's completions, and how many calls its engine got."""
    engine = _Scoring()
    found = KeepingGenerator(KeptReadings(directory, reader), engine, one_by_one).generate(requests)
    return found, len(engine.calls)


def test_a_second_run_is_given_what_the_first_one_read_and_asks_nothing(tmp_path: Path) -> None:
    want = _Scoring().generate(REQUESTS)
    assert {completion.finished for completion in want} == {True, False}
    assert asked(tmp_path / "new" / "kept", REQUESTS) == (want, 1)
    assert asked(tmp_path / "new" / "kept", REQUESTS) == (want, 0)
    assert len(list((tmp_path / "new" / "kept").iterdir())) == 1, "nothing half written is left"


@pytest.mark.parametrize(
    "other",
    [
        REQUESTS[:-1],
        REQUESTS[::-1],
        [replace(REQUESTS[0], prompt_ids=(5, 6, 11)), *REQUESTS[1:]],
        [replace(REQUESTS[0], max_tokens=5), *REQUESTS[1:]],
        [replace(REQUESTS[0], scored_ids=(9, 7)), *REQUESTS[1:]],
    ],
    ids=["fewer", "another order", "a prompt", "a cap", "scored tokens"],
)
def test_other_requests_are_read(tmp_path: Path, other: list[GenerationRequest]) -> None:
    asked(tmp_path, REQUESTS)
    assert asked(tmp_path, other) == (_Scoring().generate(other), 1)


def test_another_reader_reads_for_itself(tmp_path: Path) -> None:
    asked(tmp_path, REQUESTS)
    assert asked(tmp_path, REQUESTS, "another model")[1] == 1


@pytest.mark.parametrize("damage", ["", "[1, 2]", '{"a": 1}', "[[1, 2, 3, 4]]", "null"])
def test_a_damaged_file_is_named_and_never_read_past(tmp_path: Path, damage: str) -> None:
    asked(tmp_path, REQUESTS)
    (file,) = tmp_path.iterdir()
    file.write_text(damage)
    with pytest.raises(UserError, match=rf"{file.name}: not readings that a run kept .*: remove it"):
        asked(tmp_path, REQUESTS)


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/kept/.*selfplay\.teacher_cache"):
        asked(tmp_path / "file" / "kept", REQUESTS)


def _in_an_engine(directory: str) -> list[tuple[list[Completion], int]]:
    ranks, found = EngineRanks.join(2), []
    for _ in range(2):
        engine = _Scoring()
        keeping = KeepingGenerator(KeptReadings(Path(directory), "a model"), engine, ranks.deal)
        found.append((keeping.generate(REQUESTS), len(engine.calls)))
    return found


def test_ranks_of_one_engine_find_readings_or_ask_together(distributed, tmp_path: Path) -> None:
    """One that finds the file while another does not would leave the other alone in the engine."""
    want = _Scoring().generate(REQUESTS)
    assert distributed(2, _in_an_engine, str(tmp_path)) == [[(want, 1), (want, 0)]] * 2


def _beside_each_other(directory: str) -> int:
    for number in range(100):
        requests = [replace(REQUESTS[0], prompt_ids=(number, 5))]
        dist.barrier()
        asked(Path(directory), requests)
    return len(list(Path(directory).iterdir()))


def test_two_runs_that_keep_the_same_readings_at_once_are_both_right(distributed, tmp_path: Path) -> None:
    """Two arms of a draw that begin together end their reading together."""
    assert distributed(2, _beside_each_other, str(tmp_path))[0] >= 100
    assert len(list(tmp_path.glob("*.json"))) == len(list(tmp_path.iterdir())) == 100


def test_a_reader_is_every_byte_of_its_weights(tmp_path: Path) -> None:
    """A run's record of its model samples the weights; a neighbour's readings need more."""
    config, model = load_config(None, []), write_model(tmp_path / "model")
    digest, sampled = reader_digest(config, model), model_digests(model)
    assert reader_digest(config, shutil.move(model, tmp_path / "moved")) == digest
    weights = tmp_path / "moved" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2 + 40_000] ^= 1
    weights.write_bytes(data)
    assert model_digests(tmp_path / "moved") == sampled
    assert reader_digest(config, tmp_path / "moved") != digest


@pytest.mark.parametrize(
    "other",
    ["rollout.max_num_seqs=3", "rollout.dtype=bfloat16", "train.dtype=bfloat16", "model.max_length=65"],
)
def test_a_reader_is_its_precision_and_its_engine(tmp_path: Path, other: str) -> None:
    model = write_model(tmp_path / "model")
    assert reader_digest(load_config(None, [other]), model) != reader_digest(load_config(None, []), model)
