"""Test the limits of any file from elsewhere: it cannot reach code, paths, the terminal or secrets.

Some tests read the product's source for calls that would break such a limit.
"""

from __future__ import annotations

import ast
import dataclasses
import io
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import MetadataIndex
from typer.testing import CliRunner

from selfemo.commands import main as cli
from selfemo.common.errors import UserError
from selfemo.common.printable import printable, quote
from selfemo.config.schema import RunConfig
from selfemo.flywheel.store import FlywheelStore
from selfemo.process.plain_console import plain_console
from selfemo.weights.metadata_pickle import METADATA_NAME, read_metadata
from tests.fuzz.test_flywheel import record
from tests.fuzz.test_weights import metadata

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = {  # selfemo/kernels is a link to kernels/
    path.relative_to(ROOT): ast.parse(path.read_text(encoding="utf-8"))
    for room in ("selfemo", "kernels", "tools", "examples")
    for path in sorted((ROOT / room).rglob("*.py"))
    if not path.is_relative_to(ROOT / "selfemo" / "kernels")
}
RUNS_CODE = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "marshal.load",
    "marshal.loads",
    "shelve.open",
}
UNSAFE = {
    "yaml.load",
    "yaml.full_load",
    "yaml.unsafe_load",
    "yaml.load_all",
    "pd.read_pickle",
    "joblib.load",
    "shutil.unpack_archive",
}
OWN_CONSOLE = {
    Path(f"selfemo/{name}.py")
    for name in ("process/plain_console", "commands/doctor", "commands/plan", "commands/eval")
}
"""Files, beside tools/, that may make a rich console with markup.

They print no dialogue, answer or label of a file as a plain string.
"""
HOSTILE = "\x1b]0;owned\x07\x1b[2J[red]x[/red] :joy: \u202egnp.exe\r\nfake: line"


def calls() -> Iterator[tuple[Path, ast.Call]]:
    """Find every call in the product's source."""
    for path, tree in PRODUCT.items():
        yield from ((path, node) for node in ast.walk(tree) if isinstance(node, ast.Call))


def test_nothing_in_the_product_runs_what_a_file_says() -> None:
    for path, call in calls():
        name, options = ast.unparse(call.func), {word.arg: ast.unparse(word.value) for word in call.keywords}
        where = f"{path}:{call.lineno}: {name}"
        assert name not in RUNS_CODE | UNSAFE, where
        assert options.get("shell", "False") == "False", where
        assert options.get("trust_remote_code", "False") == "False", where
        assert not name.endswith((".extractall", ".extract")), where
        if name.endswith("torch.load"):
            assert options.get("weights_only") == "True", where
        if name in ("np.load", "numpy.load"):
            assert options.get("allow_pickle", "False") == "False", where


def test_pickle_is_read_in_one_place() -> None:
    found = set()
    for path, tree in PRODUCT.items():
        names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        found |= {
            (str(path), name) for name in names if name.startswith(("pickle.", "dill.", "cloudpickle."))
        }
    reads_files = {("selfemo/weights/metadata_pickle.py", "pickle.Unpickler")}
    reads_memory_of_its_own_fork = {
        ("selfemo/megatron/checkpoint_writer.py", name) for name in ("pickle.dump", "pickle.loads")
    }
    times_what_it_pickled_itself = {
        ("tools/scaling/simulated_peers.py", name) for name in ("pickle.dumps", "pickle.loads")
    }
    # as torch's gather_object and its like do, over the process group of one run
    sends_to_ranks_of_its_own_run = {
        ("selfemo/process/exchange.py", name) for name in ("pickle.dumps", "pickle.loads")
    }
    expected = (
        reads_files
        | reads_memory_of_its_own_fork
        | times_what_it_pickled_itself
        | sends_to_ranks_of_its_own_run
    )
    assert {use for use in found if use[1] != "pickle.UnpicklingError"} == expected


class _LooksUpATorchFunction:
    """Reaches torch.load by `_get_device_module("load")`, which a list of modules instead of names
    would permit.
    """

    def __reduce__(self) -> tuple[object, tuple[str]]:
        from torch.distributed.checkpoint.filesystem import _get_device_module

        return _get_device_module, ("load",)


@pytest.mark.parametrize(
    "payload",
    [_LooksUpATorchFunction(), io.BytesIO(b"x"), torch.load, subprocess.run, print],
    ids=["a torch function", "an object in memory", "torch.load", "subprocess.run", "print"],
)
def test_metadata_names_records_alone(tmp_path: Path, payload: object) -> None:
    (tmp_path / METADATA_NAME).write_bytes(pickle.dumps(payload))
    with pytest.raises(UserError, match=r"not checkpoint metadata \(it asks for "):
        read_metadata(tmp_path)


@pytest.mark.parametrize("place", ["../other/__0_0.distcp", "/etc/passwd", "a/b", "..", "", "x\n"])
def test_metadata_names_files_beside_it(tmp_path: Path, place: str) -> None:
    told = metadata()
    told.storage_data[MetadataIndex("o")] = _StorageInfo(place, 0, 1)
    (tmp_path / METADATA_NAME).write_bytes(pickle.dumps(told))
    with pytest.raises(UserError, match="expected a file of the same directory"):
        read_metadata(tmp_path)


def test_a_message_is_one_printable_line() -> None:
    message = str(UserError(f"{HOSTILE}: expected text"))
    assert message.isprintable()
    assert "\\x1b" in message
    assert printable("Grüße, 你好 😀") == "Grüße, 你好 😀"
    assert quote("x" * 10**6) == "'" + "x" * 56 + "..."


def test_consoles_that_read_markup_are_few() -> None:
    found = {
        path
        for path, call in calls()
        if ast.unparse(call.func) in ("Console", "rich.print", "rich.console.Console")
    }
    assert {path for path in found if path.parts[0] != "tools"} == OWN_CONSOLE


def test_a_plain_console_prints_what_it_is_given() -> None:
    output = io.StringIO()
    plain_console(file=output, width=200, force_terminal=True, color_system=None).print(
        "[red]x[/red] :joy: [/]"
    )
    assert output.getvalue() == "[red]x[/red] :joy: [/]\n"


def test_flywheel_commands_show_hostile_text_as_text(tmp_path: Path) -> None:
    sound = record(1)
    candidate = dataclasses.replace(sound.candidates[0], text=HOSTILE, reading=HOSTILE)
    tampered = dataclasses.replace(
        sound, text=HOSTILE, speaker=HOSTILE, reason=HOSTILE, source=HOSTILE, candidates=(candidate,)
    )
    store = FlywheelStore(tmp_path / "flywheel.sqlite", writable=True, labels=("joy", "sadness"))
    store.append([tampered])
    store.close()
    for command in (["list"], ["show", "1"]):
        result = CliRunner().invoke(
            cli.app, ["flywheel", command[0], str(tmp_path), *command[1:]], env={"COLUMNS": "400"}
        )
        assert result.exit_code == 0, result.output
        assert not {"\x1b", "\x07", "\r", "\u202e"} & set(result.output)
        assert "[red]x[/red] :joy:" in result.output
        assert "\\x1b]0;owned" in result.output


def test_no_setting_is_a_secret() -> None:
    """Check that no setting is a secret, since a run writes its configuration down.

    Keys and tokens stay in the environment, where the libraries that use them find them.
    """
    fields = [
        name
        for section in dataclasses.asdict(RunConfig()).values()
        if isinstance(section, dict)
        for name in section
    ]
    assert not [
        name
        for name in fields
        if any(word in name for word in ("token_", "api_key", "secret", "password", "credential"))
    ]


def test_the_environment_is_read_by_name_and_never_written_down() -> None:
    """Allow whole environments only for child processes and for doctor's checks, which look up
    names in them.
    """
    for path, call in calls():
        whole = [
            argument
            for argument in (*call.args, *(word.value for word in call.keywords))
            if ast.unparse(argument) == "os.environ"
        ]
        allowed = ("selfemo/commands/doctor.py", "tools/set_up.py")  # the latter for uv, a child process
        assert not whole or str(path) in allowed, f"{path}:{call.lineno}"
    for path, tree in PRODUCT.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FormattedValue | ast.Return):
                assert node.value is None or ast.unparse(node.value) != "os.environ", f"{path}:{node.lineno}"


SECRETS = {
    name: f"never-shown-{name.lower()}"
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY")
}


PLAN = ["plan", "--model", "qwen3-4b", "--json", "rollout.kv_cache_bytes=2000000000"]


@pytest.mark.parametrize(
    "command", [["doctor", "--json"], PLAN, ["train", "--dry-run", "corpus.name=everyday"]]
)
def test_commands_do_not_show_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli.app, command, env=SECRETS)
    assert result.output
    assert not [secret for secret in SECRETS.values() if secret in result.output + str(result.exception)]
    assert not [
        path
        for path in tmp_path.rglob("*")
        if path.is_file() and any(s in path.read_text() for s in SECRETS.values())
    ]
