"""Run two nodes on one machine, the launch script started both ways: whole tiny runs, and a lost node."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.helpers.node_checks import check_run
from tests.helpers.nodes import events, settings, two_nodes, until


@pytest.mark.multinode
def test_two_nodes_of_one_process_run_the_whole_job(tmp_path: Path) -> None:
    """Split tensors over the nodes, so that every layer and every weight sync crosses between them."""
    overrides = settings(tmp_path / "run", parallel__tensor=2, parallel__distributed_optimizer=False)
    with two_nodes(1, overrides, tmp_path) as (nodes, _):
        codes = [node.wait() for node in nodes]
    assert codes == [0, 0], "".join(node.output[-3000:] for node in nodes)
    check_run(tmp_path / "run", 1)


@pytest.mark.multinode
def test_two_nodes_of_two_processes(tmp_path: Path) -> None:
    """Use the layout of the examples: tensor parallel within a node, data parallel and optimizer
    shards across.
    """
    overrides = settings(tmp_path / "run", parallel__tensor=2, parallel__distributed_optimizer=True)
    with two_nodes(2, overrides, tmp_path) as (nodes, _):
        codes = [node.wait() for node in nodes]
    assert codes == [0, 0], "".join(node.output[-3000:] for node in nodes)
    check_run(tmp_path / "run", 2)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finish the same run without a fault."""
    directory = tmp_path_factory.mktemp("undisturbed")
    with two_nodes(
        1, settings(directory / "run", parallel__tensor=1, parallel__distributed_optimizer=True), directory
    ) as (nodes, _):
        codes = [node.wait() for node in nodes]
    assert codes == [0, 0], "".join(node.output[-3000:] for node in nodes)
    return directory / "run"


@pytest.mark.multinode
def test_a_node_that_is_killed_and_rejoins_changes_no_bit(undisturbed: Path, tmp_path: Path) -> None:
    """Kill a node: the other's agent restarts its worker and waits until the node is back.

    Both then go on from the newest checkpoint.
    """
    run = tmp_path / "run"
    with two_nodes(
        1, settings(run, parallel__tensor=1, parallel__distributed_optimizer=True), tmp_path, restarts=3
    ) as (nodes, rejoin):
        first, second = nodes
        until(lambda: len(events(run, "iteration")) >= 1, nodes, "a first iteration")
        second.kill()
        back = rejoin()
        assert (first.wait(), back.wait()) == (0, 0), first.output[-3000:] + back.output[-3000:]
    check_run(run, 1)
    assert _weights(run) == _weights(undisturbed)
    assert (run / "samples.jsonl").read_text() == (undisturbed / "samples.jsonl").read_text()


def _weights(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()
