"""Test the messages of a run that fails.

An error on one rank is reported, and one on all ranks is reported once.
"""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from selfemo.commands.train import OWN_STORES
from selfemo.common.errors import UserError
from selfemo.config.schema import CorpusConfig, RunConfig

ROOT = Path(__file__).resolve().parents[2]
FAILS = """
import sys
from types import SimpleNamespace
from selfemo.common.errors import UserError, on_all_ranks
from selfemo.commands.train import _tell_failures
terminal = SimpleNamespace(error=lambda line: print(line, flush=True), log_path="rank.log")
_tell_failures(terminal, RANK)
raise ERROR
"""


def told(rank: int, error: str) -> tuple[int, str]:
    program = FAILS.replace("RANK", str(rank)).replace("ERROR", error)
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    return result.returncode, result.stdout


@pytest.mark.parametrize(
    ("rank", "error", "line"),
    [
        (0, "UserError('no corpus')", "selfemo: no corpus\n"),
        (3, "UserError('no corpus')", f"selfemo: rank 3 on {socket.gethostname()}: no corpus\n"),
        (0, "on_all_ranks(UserError('no corpus'))", "selfemo: no corpus\n"),
        (3, "on_all_ranks(UserError('no corpus'))", ""),
    ],
)
def test_a_user_error_is_told_by_rank_0_or_by_the_rank_that_alone_knows_of_it(rank, error, line):
    assert told(rank, error) == (2, line)


CONFIG = RunConfig(corpus=CorpusConfig(name="everyday"))


def _end_of_a_run_whose_files_are_missing_on_rank_1(config: RunConfig, root: str) -> tuple[str, bool]:
    from selfemo.megatron.parallel import leave_parallel
    from selfemo.process.stop import StopSignals
    from selfemo.records.directory import RunDirectory
    from selfemo.trainer import train

    if os.environ["RANK"] == "1":
        config = dataclasses.replace(config, corpus=CorpusConfig(name="meld", path=f"{root}/absent"))
    terminal = SimpleNamespace(say=lambda line: None, log_path=Path(root), error=None)
    try:
        train(config, RunDirectory(Path(root)), terminal, StopSignals())
    except UserError as error:
        return str(error), error.shared
    finally:
        leave_parallel()
    return "", False


def test_a_corpus_that_one_rank_cannot_read_ends_every_rank_and_names_that_one(distributed, tmp_path):
    first, second = distributed(2, _end_of_a_run_whose_files_are_missing_on_rank_1, CONFIG, str(tmp_path))
    assert first == second
    assert first[0].startswith(f"rank 1 on {socket.gethostname()}: {tmp_path}/absent")
    assert first[1]


def _read_model(root: str) -> tuple[str, bool]:
    from selfemo.config.training_corpus import load_run_corpus
    from selfemo.records.directory import RunDirectory
    from selfemo.system import build_system

    config = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, path=f"{root}/absent"))
    try:
        build_system(config, SimpleNamespace(), RunDirectory(Path(root)), load_run_corpus(config))
    except UserError as error:
        return str(error), error.shared
    return "", False


def test_a_model_directory_that_no_rank_can_read_is_told_once(distributed, tmp_path):
    first, second = distributed(2, _read_model, str(tmp_path))
    assert first == second
    assert f"{tmp_path}/absent" in first[0]
    assert "rank" not in first[0]
    assert first[1]


STARTS = """
import sys, types
from selfemo.config.schema import RunConfig
from selfemo.commands.train import run_training
sys.modules["selfemo.trainer"] = types.SimpleNamespace(train=lambda *parts: None)
run_training(RunConfig(output_dir=sys.argv[1]))
"""


@pytest.mark.parametrize(
    ("environment", "warned"),
    [({}, False), ({"TORCHELASTIC_MAX_RESTARTS": "0"}, False), ({"TORCHELASTIC_MAX_RESTARTS": "3"}, True)]
    + [({"TORCHELASTIC_MAX_RESTARTS": "3", OWN_STORES: "1"}, False)],
)
def test_a_run_says_what_torchruns_restarts_need(tmp_path, environment, warned):
    command = [sys.executable, "-c", STARTS, str(tmp_path / "run")]
    bare = {
        name: value
        for name, value in os.environ.items()
        if name not in ("TORCHELASTIC_MAX_RESTARTS", OWN_STORES)
    }
    ended = subprocess.run(
        command, cwd=ROOT, env=bare | environment, capture_output=True, text=True, timeout=120, check=True
    )
    assert (f"export {OWN_STORES}=1" in ended.stderr) == warned
