"""Find a model by its name on the Hugging Face hub: Qwen/Qwen3-8B, or Qwen/Qwen3-8B@REVISION.

huggingface_hub fetches it into its cache and honours HF_HOME, HF_HUB_OFFLINE, HF_ENDPOINT and tokens. A run
pins a name to the commit that it stands for, records that, and goes on with it when the branch has moved. An
existing directory is always a directory, and a path below one is never a name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from selfemo.common.errors import UserError
from selfemo.models.architecture import CONFIG_NAME

NAME = re.compile(r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(?:@(\w[\w./-]{0,199}))?", re.ASCII)
"""Longer ones are on no hub, and no file system has such names either."""
ADDRESS = re.compile(
    r"(?:https?:/{1,2}(?:www\.)?(?:huggingface|hf)\.co/|hf:/{1,2})(.+?)(?:/(?:tree|blob)/([^/]+).*)?"
)
"""A page of the hub as a browser shows it; a path has one of its two slashes left."""
COMMIT = re.compile(r"[0-9a-f]{40}")
NO_OWNERS = ("models", "datasets", "spaces", "runs")
"""First parts that are no owner on the hub: usual names of directories, which may not exist yet."""
FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt")
"""Files of a model's top directory that are fetched."""
NOT_FETCHED = ("*/*", "consolidated*")


@dataclass(frozen=True)
class HubName:
    """A repository on the hub, with the revision that was asked for."""

    repository: str
    revision: str
    """Branch, tag or commit; empty for the default branch."""

    @property
    def is_pinned(self) -> bool:
        return COMMIT.fullmatch(self.revision) is not None


def hub_name(path: str) -> HubName | None:
    """Read a path as a name on the hub, or as the address of its page; None if it is a path."""
    path = path.rstrip("/")
    if page := ADDRESS.fullmatch(path):
        found = NAME.fullmatch(page[1])
        return HubName(found[1], page[2] or found[2] or "") if found else None
    found = NAME.fullmatch(path)
    owner = Path(path).parts[0] if found else ""
    if found is None or owner in NO_OWNERS or Path(owner).exists():
        return None
    return HubName(found[1], found[2] or "")


def published_name(path: str) -> str:
    """Return the last part of a path or name, without its revision."""
    name = hub_name(path)
    return Path(name.repository if name else path.partition("@")[0]).name


def pinned(path: str, recorded: str = "") -> str:
    """Return a hub name with the commit it stands for; another path as it is.

    Args:
        recorded: the pinned name that a run has already; it stays if no revision is asked for.

    Raises:
        UserError: the hub does not know the name, or cannot be reached and the cache does not have it.
    """
    name, before = hub_name(path), hub_name(recorded)
    if name is None or name.is_pinned:
        return path
    if before is not None and before.repository == name.repository and not name.revision:
        return recorded
    return f"{name.repository}@{_commit(name)}"


def fetch(path: str) -> Path:
    """Return the directory of a model, fetched into the cache first if `path` is a name on the hub.

    Raises:
        UserError: as `pinned`; or the disk is full.
    """
    name = hub_name(path)
    if name is None:
        return Path(path)
    from huggingface_hub import snapshot_download

    with _told(name):
        return Path(
            snapshot_download(
                name.repository,
                revision=name.revision or None,
                allow_patterns=list(FILES),
                ignore_patterns=list(NOT_FETCHED),
            )
        )


def local_directory(path: str) -> Path:
    """Return the directory of a model without asking the hub.

    A name that the cache does not have gives a path that does not exist.
    """
    name = hub_name(path)
    found = _cached(name) if name is not None else None
    return found or Path(path)


def _commit(name: HubName) -> str:
    """Return the commit that a revision stands for: the hub's, else the cache's."""
    from huggingface_hub import hf_hub_download

    with _told(name):  # also records the revision in the cache, for a later look-up without the hub
        return Path(hf_hub_download(name.repository, CONFIG_NAME, revision=name.revision or None)).parent.name


def _cached(name: HubName) -> Path | None:
    """Return the snapshot in the cache; None if there is none."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(name.repository, CONFIG_NAME, revision=name.revision or None)
    except (OSError, ValueError):  # a name that the hub forbids, or a damaged cache
        return None
    return Path(found).parent if isinstance(found, str) else None


@contextmanager
def _told(name: HubName) -> Iterator[None]:
    """Turn the errors of huggingface_hub, which are of many types, into one line."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.utils import logging

    logging.set_verbosity_error()  # it tells every retry
    asked = f"{name.repository}@{name.revision}" if name.revision else name.repository
    try:
        yield
    except GatedRepoError:
        problem = "the hub asks to accept its licence first, with the account of HF_TOKEN"
    except RepositoryNotFoundError:
        problem = "the hub knows no such model, or shows it to the account of another HF_TOKEN only"
    except RevisionNotFoundError:
        problem = f"the hub has no revision {name.revision} of it"
    except Exception as error:  # noqa: BLE001 - connections, proxies, disks: raised below as one line
        cause = error.__cause__ or error
        reason = " ".join(f"{type(cause).__name__}: {cause}".split())[:160]
        problem = f"the hub cannot be asked for it, or the cache does not have it whole ({reason})"
    else:
        return
    raise UserError(
        f"{asked}: no such directory here, and {problem}; correct the name, or fetch the model where there "
        f"is a network (`hf download {name.repository} --local-dir DIRECTORY`) and name the directory"
    )
