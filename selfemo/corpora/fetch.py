"""Fetch a corpus from its public repositories into the data directory: the files that were counted, or none.

Every file is compared with its SHA-256 before the first one is written, so a directory never holds a part
of a corpus, or one that has changed since.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

from selfemo.common.errors import UserError, nearest
from selfemo.common.files import new_file
from selfemo.corpora.registry import DATA_VARIABLE, default_data_root, named_data_root
from selfemo.corpora.sources import SOURCES, Source, SourceFile

HOST = "https://raw.githubusercontent.com"
TIMEOUT_S = 30


def source_of(name: str) -> Source:
    """Return the source of a corpus; UserError if none is known."""
    if name not in SOURCES:
        raise UserError(
            f"corpus fetch {name}: expected one of {', '.join(SOURCES)}{nearest(name, SOURCES)}; "
            "docs/corpora.md says where the others are"
        )
    return SOURCES[name]


def target_directory(name: str) -> Path:
    """Return the directory that a corpus is read from: under $SELFEMO_DATA, which need not exist yet.

    Raises:
        UserError: no data directory is named.
    """
    root = named_data_root() or default_data_root()
    if root is None:
        raise UserError(
            f"corpus fetch {name}: no data directory is named: set ${DATA_VARIABLE}, "
            f"as in `export {DATA_VARIABLE}=$HOME/selfemo-data`"
        )
    return root / name


def fetch_corpus(
    name: str, directory: Path, host: str = HOST, tell: Callable[[str], None] = lambda line: None
) -> list[Path]:
    """Fetch the files of a corpus that `directory` lacks; returns those written.

    Args:
        host: address that raw files of GitHub's repositories lie under.

    Raises:
        UserError: a file there is another one, cannot be fetched or written, or has changed at its source.
    """
    missing = [file for file in source_of(name).files if not _is_there(file, directory, name)]
    contents = {}
    for file in missing:
        tell(f"fetching {file.name} ({file.size_bytes:,} bytes)")
        contents[file.name] = _download(file, host, name, directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot be made ({error.strerror}): set ${DATA_VARIABLE}") from None
    for file_name, data in contents.items():
        with new_file(directory / file_name) as temporary:
            temporary.write_bytes(data)
    return [directory / file_name for file_name in contents]


def _is_there(file: SourceFile, directory: Path, name: str) -> bool:
    path = directory / file.name
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return False
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}): correct or move it") from None
    if file.digest(data) != file.sha256:
        raise UserError(
            f"{path}: is not the file that {name}'s repository has: move it away to fetch that one"
        )
    return True


def _download(file: SourceFile, host: str, name: str, directory: Path) -> bytes:
    url = f"{host.rstrip('/')}/{file.address}"
    if not url.startswith(("https://", "http://")):
        raise UserError(f"--from {host}: expected an address that begins with https://: correct it")
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
            data: bytes = answer.read((2 if file.as_json else 1) * file.size_bytes + 1)
    except (OSError, HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(
            f"{url}: cannot be fetched ({reason}): copy the files of {name} into {directory} from a machine "
            "with a network, name a mirror with --from, or use the bundled corpus (corpus.name=everyday)"
        ) from None
    found = file.digest(data)
    if found != file.sha256:
        raise UserError(
            f"{url}: has changed (SHA-256 {found[:16]}, expected {file.sha256[:16]}): nothing was written; "
            "take the file from another source"
        )
    return data
