"""Checks that the runs of a draw continue the start that it has now: they differ in nothing before it.

Their settings do not tell. A start that is trained again, for more steps, lies at the same path.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from selfemo.common.errors import UserError
from selfemo.records.content import model_digests
from selfemo.records.inputs import read_inputs
from tools.study.runs import StudyRun


def check_continued(runs: Sequence[StudyRun]) -> None:
    """Compare the model that every complete run began with to its start's model.

    Args:
        runs: continuations whose starts are complete. A run without a record of its inputs is let pass, and
            one that came with its start's records (tools/study/records.py), which was compared before.

    Raises:
        UserError: some began with another model; names those of one draw. Or one is not complete, and its
            start's model is not here.
    """
    held = cache(model_digests)
    others: dict[str, list[str]] = {}
    for run in runs:
        if not run.start_model.is_dir():
            if not run.is_complete:
                raise UserError(
                    f"{run.start_model}: not here, only its run's records, but {run.variant} continues it: "
                    f"remove {run.directory.parent}, and the whole draw is trained again; or name the other "
                    "draws with --seed"
                )
            continue
        inputs = read_inputs(run.directory) if run.is_complete else None
        if inputs is not None and inputs["model"] != held(run.start_model):
            others.setdefault(str(run.start_model), []).append(run.directory.name)
    for start, names in others.items():
        raise UserError(
            f"{start}: other weights than {', '.join(names)} of this draw began with: remove the directories "
            "of these runs, and they are trained again"
        )
