"""`auto` becomes a dtype when a configuration is loaded, and nothing after that sees the word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from selfemo.commands.main import app
from selfemo.config.dtype import automatic, gpus_here, this_machine, with_dtypes
from selfemo.config.load import as_yaml, load_config, read_config

CPUINFO = "processor\t: 0\nmodel name\t: A processor\nflags\t\t: fpu {}\nbugs\t\t: amx_bf16\n"
AUTO = ["train.dtype=auto", "rollout.dtype=auto"]


@pytest.mark.parametrize(
    ("flags", "has_gpu", "dtype"),
    [
        ("avx512f avx512_bf16", False, "bfloat16"),
        ("amx_bf16 amx_tile", False, "bfloat16"),
        ("avx2 avx512f avx512_vnni", False, "float32"),
        ("avx2", True, "bfloat16"),
    ],
)
def test_bfloat16_where_the_machine_computes_in_it(flags: str, has_gpu: bool, dtype: str) -> None:
    found = automatic(CPUINFO.format(flags), has_gpu)
    assert found.dtype == dtype
    assert with_dtypes(read_config(None, AUTO), found) == read_config(
        None, [f"train.dtype={dtype}", f"rollout.dtype={dtype}"]
    )


def test_without_flags_it_is_float32() -> None:
    assert (
        automatic("", has_gpu=False).dtype == "float32"
    )  # no Linux, or an Arm processor, whose line is "Features"


def test_a_loaded_configuration_is_settled_and_so_is_what_a_run_records() -> None:
    found = this_machine().dtype
    settled = load_config(None, AUTO)
    assert (settled.train.dtype, settled.rollout.dtype) == (found, found)
    assert f"dtype: {found}" in as_yaml(settled)
    assert "dtype: auto" not in as_yaml(settled)
    mixed = load_config(None, ["train.dtype=auto", "rollout.dtype=float32"])
    assert (mixed.train.dtype, mixed.rollout.dtype) == (found, "float32")


def test_a_plan_is_for_gpus_and_the_doctor_says_what_it_is_here() -> None:
    arguments = ["plan", "--model", "qwen3-8b", "parallel.tensor=2", "--json"]
    plans = [
        CliRunner().invoke(app, [*arguments, f"train.dtype={dtype}", f"rollout.dtype={dtype}"]).stdout
        for dtype in ("auto", "bfloat16")
    ]
    assert json.loads(plans[0]) == json.loads(plans[1])
    findings = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)["findings"]
    (said,) = (finding for finding in findings if finding["name"] == "dtype=auto")
    assert said["status"] == "ok"
    assert said["found"].startswith(f"{this_machine().dtype}: ")


@pytest.mark.parametrize(
    ("listed", "count"),
    [(None, 4), ("", 0), ("-1", 0), ("0,3", 2), ("MIG-aa, MIG-bb", 2), ("GPU-aa,", 1)]
    + [("NoDevFiles", 0), ("none", 0), ("0,9,1", 1), ("00,03,3", 3), ("0," + 5000 * "9", 1), ("0" * 5000, 1)],
)
def test_gpus_are_those_that_processes_can_use(tmp_path: Path, listed: str | None, count: int) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia2", "nvidia3", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    environment = {} if listed is None else {"CUDA_VISIBLE_DEVICES": listed}
    assert gpus_here(environment, tmp_path) == count


def test_a_list_of_gpus_makes_none_where_there_is_none(tmp_path: Path) -> None:
    assert gpus_here({"CUDA_VISIBLE_DEVICES": "0,1"}, tmp_path) == 0
