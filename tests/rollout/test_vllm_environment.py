"""Test that a user's variables of vLLM's cannot change an engine in silence, or end it in a traceback."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from selfemo.common.errors import UserError
from selfemo.rollout.vllm_environment import (
    ENVIRONMENT,
    REMOVED,
    _tell_others,
    check_readable,
    environment_put_back,
    settle_environment,
)


@pytest.fixture(autouse=True)
def _own_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in [name for name in os.environ if name.startswith("VLLM_")]:
        monkeypatch.delenv(name)
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, os.environ.get(name, ""))  # undone after the test
    _tell_others.cache_clear()
    yield
    _tell_others.cache_clear()


def test_what_an_engines_settings_decide_is_ours(monkeypatch, caplog):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "6")
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "/nowhere")
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    settle_environment(ENVIRONMENT)
    assert not any(name in os.environ for name in REMOVED)
    assert {name: os.environ[name] for name in ENVIRONMENT} == ENVIRONMENT
    assert caplog.text == ""


def _build_that_fails() -> None:
    with environment_put_back():
        os.environ["LOCAL_WORLD_SIZE"] = os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
        raise RuntimeError


def test_what_an_engine_changes_for_itself_is_put_back_even_if_it_fails(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    with pytest.raises(RuntimeError):
        _build_that_fails()
    assert os.environ["LOCAL_WORLD_SIZE"] == "8"
    assert "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ


def test_other_variables_are_named_once(monkeypatch, caplog):
    monkeypatch.setenv("VLLM_RINGBUFFER_WARNING_INTERVAL", "9")
    monkeypatch.setenv("VLLM_NO_SUCH_THING", "on")
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    with caplog.at_level(logging.WARNING):
        settle_environment(ENVIRONMENT)
        settle_environment(ENVIRONMENT)
    (record,) = caplog.records
    assert "VLLM_API_KEY, VLLM_NO_SUCH_THING, VLLM_RINGBUFFER_WARNING_INTERVAL" in record.getMessage()
    assert "secret" not in record.getMessage()
    assert os.environ["VLLM_RINGBUFFER_WARNING_INTERVAL"] == "9"


def test_a_value_that_vllm_cannot_read_is_one_line(monkeypatch):
    monkeypatch.setenv("VLLM_RINGBUFFER_WARNING_INTERVAL", "often")
    with pytest.raises(UserError, match=r"WARNING_INTERVAL: vLLM cannot read .*\(ValueError\)"):
        settle_environment(ENVIRONMENT)


def test_what_vllm_cannot_read_is_known_before_a_run_and_nothing_changes(monkeypatch):
    """Kubernetes writes VLLM_PORT=tcp://... for a service that is called vllm."""
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "6")
    before = dict(os.environ)
    check_readable()
    monkeypatch.setenv("VLLM_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(UserError, match=r"VLLM_PORT: vLLM cannot read .*\(ValueError\)"):
        check_readable()
    assert dict(os.environ) == before | {"VLLM_PORT": "tcp://10.0.0.1:80"}
