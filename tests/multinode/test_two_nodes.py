"""Two nodes of one process, the launch script started both ways: a whole tiny run. Larger worlds and a lost node are in cases.py."""

from __future__ import annotations

from pathlib import Path

from tests.multinode.checks import check_run
from tests.multinode.nodes import settings, two_nodes


def test_two_nodes_of_one_process_run_the_whole_job(tmp_path: Path) -> None:
    """Tensor parallel over the nodes, so that every layer and every weight sync crosses between them."""
    overrides = settings(tmp_path / "run", parallel__tensor=2, parallel__distributed_optimizer=False)
    with two_nodes(1, overrides, tmp_path) as (nodes, _):
        codes = [node.wait() for node in nodes]
    assert codes == [0, 0], "".join(node.output[-3000:] for node in nodes)
    check_run(tmp_path / "run", 1)
