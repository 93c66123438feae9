"""Find and load corpora by name, as in `load_corpus("meld")`.

Every module of `selfemo.corpora.readers` is searched for formats, so a new corpus is one new file
there. Licences keep the data out of the repository: it lies under $SELFEMO_DATA, or in
`shared/data` beside the checkout if that exists.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from selfemo.common.errors import UserError, nearest
from selfemo.common.modules import modules_of
from selfemo.corpora import readers
from selfemo.corpora.conversation import Corpus
from selfemo.corpora.dev_split import draw_dev
from selfemo.corpora.formats import CorpusFormat
from selfemo.corpora.overlap import hold_out
from selfemo.corpora.problems import ProblemSink, raise_first
from selfemo.corpora.sources import SOURCES

DATA_VARIABLE = "SELFEMO_DATA"
AUTO = "auto"
_DEFAULT_ROOT = Path(__file__).resolve().parents[2].parent / "shared" / "data"


class CorpusAbsent(UserError):
    """Raised if a known corpus is not at its usual place, though the configuration is correct."""


@functools.cache
def formats() -> dict[str, CorpusFormat]:
    """Return every known format by name, in alphabetical order."""
    found = {fmt.name: fmt for module in modules_of(readers) for fmt in getattr(module, "FORMATS", ())}
    return dict(sorted(found.items()))


def corpus_names() -> list[str]:
    """List the values that corpus.name may have."""
    return [AUTO, *formats()]


def default_data_root() -> Path | None:
    """Return $SELFEMO_DATA, else `shared/data` beside the checkout if it exists, else None.

    Raises:
        UserError: $SELFEMO_DATA names no directory.
    """
    named = named_data_root()
    if named is None:
        return _DEFAULT_ROOT if _DEFAULT_ROOT.is_dir() else None
    if not named.is_dir():
        raise UserError(
            f"${DATA_VARIABLE} is {str(named)!r}, expected a directory that holds corpora: correct or unset "
            "it (`selfemo corpus fetch meld` would make it)"
        )
    return named


def named_data_root() -> Path | None:
    """Return the path in $SELFEMO_DATA, which need not exist; None if it is not set.

    ~ is the home directory: a manifest or an .env file has no shell that replaces it.

    Raises:
        UserError: it holds a variable, which only a shell replaces.
    """
    named = os.environ.get(DATA_VARIABLE, "")
    if "$" in named:
        raise UserError(f"${DATA_VARIABLE} is {named!r}, expected a path without $: write the path out")
    return Path(os.path.expanduser(named)) if named else None


def resolve_corpus(
    name: str, path: str | Path = "", data_root: str | Path | None = None
) -> tuple[CorpusFormat, Path]:
    """Find the format and the place that `load_corpus` reads.

    Args:
        name: a format's name, or "auto": the format that `path` looks like, or without a path MELD
            if the data root holds it and the bundled `everyday` otherwise.
        path: the corpus's directory or file; empty for its usual place.
        data_root: directory of corpora; None for `default_data_root()`.

    Raises:
        UserError: the name is unknown, the path absent or not recognised; CorpusAbsent: the corpus
            is not at its usual place.
    """
    known = formats()
    if name != AUTO and name not in known:
        valid = corpus_names()
        raise UserError(
            f"corpus {name!r} is unknown, expected one of {', '.join(valid)}{nearest(name, valid)}"
        )
    if path:
        place = Path(path)
        if not place.exists():
            raise UserError(
                f"{place}: does not exist, expected {known[name].what if name != AUTO else 'a corpus'}: "
                "check the path"
            )
        return (known[name] if name != AUTO else _recognise(place)), place
    root = Path(data_root) if data_root is not None else default_data_root()
    if name == AUTO:
        name = "meld" if root is not None and known["meld"].recognises(root / "meld") else "everyday"
    usual = known[name].default_path(root)
    if usual is None or not usual.exists():
        place_text = f"{usual}: does not exist" if usual else "no place is known for it"
        raise CorpusAbsent(
            f"corpus {name}: {place_text}, expected {known[name].what}: "
            + (f"fetch it (`selfemo corpus fetch {name}`), " if name in SOURCES else "")
            + f"set corpus.path, or ${DATA_VARIABLE} to the directory above it"
        )
    return known[name], usual


def load_corpus(
    name: str, path: str | Path = "", data_root: str | Path | None = None, report: ProblemSink = raise_first
) -> Corpus:
    """Read a corpus; the other arguments are those of `resolve_corpus`.

    Args:
        report: sink for faults; the default stops at the first.

    Raises:
        UserError: as `resolve_corpus`; a file is absent or malformed ("file:line: found, expected,
            remedy").
    """
    fmt, place = resolve_corpus(name, path, data_root)
    return fmt.read(place, report)


def load_training_corpus(
    name: str,
    path: str = "",
    held_out: str = "",
    report: ProblemSink = raise_first,
    dev_share: float = 0.0,
    seed: int = 0,
) -> Corpus:
    """Read the corpus that a run trains on, without the dialogues it shares with dev and test of others.

    Args:
        held_out: names or paths of those others, separated by commas.
        dev_share: of the training dialogues, drawn first for a dev split; `seed` draws them.
        report: sink for the first one's faults.

    Raises:
        UserError: as `load_corpus`, for any of them; nothing is left to train on.
    """
    corpus = draw_dev(load_corpus(name, path, report=report), dev_share, seed)
    named = [part.strip() for part in held_out.split(",") if part.strip()]
    if not named:
        return corpus
    left = hold_out(corpus, [fmt.read(place, raise_first) for fmt, place in map(locate_corpus, named)])
    if not left.split("train"):
        raise UserError(
            f"corpus.hold_out={held_out}: every training dialogue of {corpus.name} "
            "holds a dev or test text of one of them: name fewer corpora"
        )
    return left


def locate_corpus(corpus: str, name: str = AUTO) -> tuple[CorpusFormat, Path]:
    """Find the corpus that a command line names: by name or "auto" (its usual place), else by a
    path of format `name`.

    Raises:
        UserError: as `resolve_corpus`.
    """
    if corpus == AUTO or (corpus in formats() and not Path(corpus).exists()):
        if name not in (AUTO, corpus):
            raise UserError(
                f"--format {name}: {corpus} is read in its own form: leave the option out, or name a path"
            )
        return resolve_corpus(corpus)
    if not Path(corpus).exists() and name == AUTO:
        valid = list(formats())
        raise UserError(
            f"{corpus!r} is neither a path nor a corpus, expected one of {', '.join(valid)} "
            f"or a path{nearest(corpus, valid)}"
        )
    return resolve_corpus(name, corpus)


def _recognise(place: Path) -> CorpusFormat:
    found = [fmt for fmt in formats().values() if fmt.recognises(place)]
    if len(found) > 1:
        raise UserError(
            f"{place}: holds the files of {' and of '.join(fmt.name for fmt in found)}, expected one corpus: "
            "name the format with corpus.name (--format of `selfemo corpus`), or move the others away"
        )
    if found:
        return found[0]
    kinds = "; ".join(f"{fmt.name}: {fmt.what}" for fmt in formats().values())
    raise UserError(f"{place}: is no corpus this project knows ({kinds}): name the format with corpus.name")
