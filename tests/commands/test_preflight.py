"""Test through the real command that a user's mistake is one line, exit status 2, no traceback, and
nothing written.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.commands.main import app
from selfemo.commands.preflight import WANDB_KEYS, check_gpus, check_wandb
from selfemo.common.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\r\n"
)


def dry_run(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(Path(sys.executable).with_name("selfemo")),
        "train",
        "--dry-run",
        *arguments,
        f"output_dir={tmp_path / 'run'}",
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def passed(tmp_path: Path, *arguments: str) -> str:
    """Run a command that must pass, in this process, which has imported its libraries; returns its output."""
    result = CliRunner().invoke(app, ["train", "--dry-run", *arguments, f"output_dir={tmp_path / 'run'}"])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(tmp_path: Path, *arguments: str) -> str:
    """Run a command that must be refused; returns the one line that it prints."""
    result = dry_run(tmp_path, *arguments)
    assert result.returncode == 2, result.stdout + result.stderr
    assert not (tmp_path / "run").exists()
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    return lines[0]


def everyday(*more: str) -> tuple[str, ...]:
    return ("corpus.name=everyday", *more)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (("corpus.name=jsonl", "corpus.path=/nowhere"), ("/nowhere", "does not exist")),
        (everyday("train.learning_rat=1"), ("unknown key train.learning_rat", "'learning_rate'")),
        (everyday("parallel.tensr=2"), ("unknown key parallel.tensr", "'tensor'")),
        (everyday("iterations=-1"), ("iterations=-1", "greater than or equal to 0")),
        (everyday("seed=often"), ("seed='often'", "integer")),
        (
            everyday("parallel.tensor=3", "--processes-per-node", "3"),
            ("parallel.tensor=3", "8 attention heads"),
        ),
        (everyday("parallel.pipeline=3", "--processes-per-node", "3"), ("parallel.pipeline", "4 layers")),
        (everyday("parallel.tensor=2", "--processes-per-node", "3"), ("parallel.tensor=2", "world of 3")),
        (everyday("train.frozen_layers=4"), ("train.frozen_layers=4", "freeze at most 3")),
        (everyday("train.frozen_layers=-1"), ("train.frozen_layers=-1", "greater than or equal to 0")),
        (everyday("model.path=/nowhere"), ("model.path=/nowhere", "no such directory")),
        (everyday("nonsense"), ("override 'nonsense'", "section.field=value")),
        (everyday("corpus.labelled_share=2"), ("corpus.labelled_share=2", "less than or equal to 1")),
        (everyday("corpus.labelled_share=0.001"), ("corpus.labelled_share=0.001", "no labelled turn")),
        (everyday("corpus.unlabelled=mled"), ("'mled' is neither a path nor a corpus", "'meld'")),
        (everyday("selfplay.unlabelled_share=0.5"), ("selfplay.unlabelled_share=0.5", "set corpus.")),
        (everyday("selfplay.views=[plain, shrt]"), ("selfplay.views names 'shrt'", "did you mean 'short'?")),
        (
            everyday("selfplay.views=[plain, short, labels]", "selfplay.recognizer_group_size=2"),
            ("selfplay.views names 3 views", "selfplay.recognizer_group_size=2"),
        ),
        (
            everyday("selfplay.teacher=round_start"),
            ("selfplay.teacher=round_start", "no dialogue without labels"),
        ),
        (
            everyday("selfplay.teacher=average", "flywheel.enabled=false", "corpus.labelled_share=0.5"),
            ("selfplay.teacher=average", "flywheel.enabled=true"),
        ),
        (everyday("selfplay.align_consensus=true"), ("selfplay.align_consensus=true", "needs a teacher")),
        (everyday("selfplay.align_strength=0.5"), ("selfplay.align_strength=0.5", "has nothing to weigh")),
        (everyday("selfplay.teacher_votes=probabilities"), ("selfplay.teacher_votes=", "needs a teacher")),
        (
            everyday("selfplay.teacher_votes=probabilities", "selfplay.thinking=true"),
            ("selfplay.teacher_votes=probabilities", "has not thought yet"),
        ),
        (everyday("flywheel.teach_labels=2"), ("flywheel.teach_labels=2", "divides a turn by probabilities")),
        (everyday("selfplay.teacher_words=0.3"), ("selfplay.teacher_words=0.3", "weighs probabilities")),
        (everyday("selfplay.rounds=99"), ("selfplay.rounds=99", "iterations=12")),
        (everyday("flywheel.teach_share=0.5"), ("flywheel.teach_share=0.5", "supervised_weight above 0")),
    ],
)
def test_mistakes_in_the_configuration(tmp_path, overrides, parts):
    line = refused(tmp_path, *overrides)
    for part in parts:
        assert part in line


def test_the_line_before_a_launch_counts_dialogues_with_labels_and_without(tmp_path):
    told = passed(tmp_path, *everyday("corpus.labelled_share=0.25"))
    assert "(dialogues: train 224, dev 40, test 40; train: 56 dialogues with labels (" in told
    assert "168 without (" in told


def test_a_yaml_error_names_file_and_line(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("seed: 1\ntrain: [unclosed\n")
    assert f"{config}:" in refused(tmp_path, "--config", str(config))


def test_a_malformed_csv_row_names_file_and_line(tmp_path):
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}_sent_emo.csv").write_text(HEADER + '1,Hi,Joey,joy,positive,0,0,1,1,"0","1"\r\n')
    with (tmp_path / "dev_sent_emo.csv").open("a") as file:
        file.write('2,Oh,Joey,joyy,positive,0,1,1,1,"0","1"\r\n')
    line = refused(tmp_path, "corpus.name=meld", f"corpus.path={tmp_path}")
    assert f"{tmp_path / 'dev_sent_emo.csv'}:3" in line
    assert "joyy" in line
    assert "joy" in line


def test_a_directory_of_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    result = dry_run(tmp_path, *everyday())
    assert result.returncode == 2
    assert "not a run of selfemo" in result.stderr
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_missing_dependency_is_named_with_its_remedy(tmp_path):
    """Hide vllm by a meta path entry, as on a machine where it was never installed."""
    program = (
        "import sys, importlib.abc\n"
        "class Hide(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'vllm': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Hide())\n"
        "sys.argv = ['selfemo', 'train', '--dry-run', 'corpus.name=everyday', "
        f"'output_dir={tmp_path / 'run'}']\n"
        "from selfemo.commands.main import main; main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    assert "vllm" in result.stderr
    assert "make setup" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_variable_that_the_engine_cannot_read_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "/nowhere")  # vLLM would end while it is imported
    monkeypatch.setenv("VLLM_PORT", "tcp://10.0.0.1:80")
    assert "VLLM_PORT: vLLM cannot read this variable" in refused(tmp_path, *everyday())


def test_a_dry_run_tells_of_destroyed_texts(tmp_path: Path) -> None:
    (tmp_path / "meld").mkdir()
    for split in ("train", "dev", "test"):
        (tmp_path / "meld" / f"{split}_sent_emo.csv").write_text(
            "Utterance,Speaker,Emotion,Dialogue_ID,Utterance_ID\n"
            f"It?s only ten minutes to {split}.,Ana,joy,0,0\nThen we walk to {split} at once.,Ben,anger,0,1\n"
        )
    told = passed(tmp_path, "corpus.name=meld", f"corpus.path={tmp_path / 'meld'}")
    assert "odd in the corpus" in told
    assert "train_sent_emo.csv:2: text has another character" in told
    assert "3 rows in all" in told


def test_a_dry_run_names_the_field_that_draws_a_dev_split(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text('["anger", "joy"]')
    lines = []
    for i in range(10):  # a text that dev holds too would be barred from training
        turns = [
            {"speaker": s, "text": f"{s} is glad of number {i}", "labels": ["joy"]} for s in ("Ana", "Bo")
        ]
        lines.append(json.dumps({"id": str(i), "turns": turns}) + "\n")
    (tmp_path / "mine.jsonl").write_text("".join(lines))
    line = refused(tmp_path, f"corpus.path={tmp_path / 'mine.jsonl'}")
    assert "corpus jsonl has no dev split" in line
    assert "corpus.dev_share" in line
    told = passed(tmp_path, f"corpus.path={tmp_path / 'mine.jsonl'}", "corpus.dev_share=0.3")
    assert "(dialogues: train 7, dev 3, test 0;" in told


def test_more_processes_than_gpus_are_refused_before_a_launch() -> None:
    with pytest.raises(
        UserError, match="8 processes on this node, which shows 4 GPUs: lower --nproc-per-node"
    ):
        check_gpus(8, 4)
    check_gpus(4, 4)
    check_gpus(2, 0)  # on a processor


def test_a_run_that_reports_to_a_service_has_a_key_of_it(tmp_path, monkeypatch):
    """W&B would ask for one in the run's log, after model and engine are built."""
    pytest.importorskip("wandb")
    for name in (*WANDB_KEYS, "WANDB_BASE_URL", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"tracking\.wandb=online, but no key for api\.wandb\.ai is here"):
        check_wandb("online", is_planned=False)
    check_wandb("offline", is_planned=False)
    check_wandb("online", is_planned=True)
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password x\n")
    check_wandb("online", is_planned=False)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(UserError, match=r"no key for wandb\.example\.org is here"):
        check_wandb("online", is_planned=False)
    monkeypatch.setenv("WANDB_API_KEY", "x")
    check_wandb("online", is_planned=False)
