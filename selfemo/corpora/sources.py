"""Name the public files of corpora: repository, commit, size and SHA-256, as docs/corpora.md counts them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass


@dataclass(frozen=True)
class SourceFile:
    """One file of a GitHub repository at a commit."""

    repository: str
    commit: str
    path: str
    size_bytes: int
    sha256: str
    as_json: bool = False
    """The digest is that of the JSON value, written again by json.dumps, and not of the bytes."""

    def digest(self, data: bytes) -> str:
        """Compute what `sha256` is compared with."""
        if self.as_json:
            try:
                data = json.dumps(json.loads(data)).encode()
            except (ValueError, RecursionError):
                return "no JSON"
        return hashlib.sha256(data).hexdigest()

    @property
    def name(self) -> str:
        """Name of the file in the corpus's directory."""
        return self.path.rpartition("/")[2]

    @property
    def address(self) -> str:
        """Address below a host of raw files."""
        return f"{self.repository}/{self.commit}/{self.path}"


@dataclass(frozen=True)
class Source:
    """What `selfemo corpus fetch` shows and takes."""

    licence: str
    paper: str
    files: tuple[SourceFile, ...]


_MELD = ("declare-lab/MELD", "2d2011b409d3ca2d7e94460cd007d434b1d0a102")
_EMORYNLP = ("emorynlp/emotion-detection", "289b967a34556f0d86b52ea36571c2a0c90740ae")
_COG_BART = ("whatissimondoing/CoG-BART", "0efa636e3034e6aba1e5caa578ae67e660ad126c")

SOURCES = {
    "meld": Source(
        "GPL-3.0 (the repository's); the lines are a television series', whose copyright others hold: for "
        "research",
        "Poria et al., ACL 2019, arXiv 1810.02508",
        (
            SourceFile(
                *_MELD,
                "data/MELD/train_sent_emo.csv",
                1_119_290,
                "d2fa2d6529cf03cac2989efec05c9b27d8fd2f4c8fc5974c7ae88aa537fa02db",
            ),
            SourceFile(
                *_MELD,
                "data/MELD/dev_sent_emo.csv",
                121_640,
                "2e89c6f8aa182d6f62f8c6331aece905ac7273ca4999660bfb5213e1d0370c1c",
            ),
            SourceFile(
                *_MELD,
                "data/MELD/test_sent_emo.csv",
                294_526,
                "8d37103938f7067600839fe29d5a114a6cd1bcdafb75bec101e06464c5006888",
            ),
        ),
    ),
    "emorynlp": Source(
        "Apache-2.0 (Emory University)",
        "Zahiri and Choi, 2018, arXiv 1708.04299",
        (
            # The official training file's checksum is not known here; this is the same text in another form,
            # of which only the scenes were at hand, not the bytes.
            SourceFile(
                *_COG_BART,
                "data/EmoryNLP/train_data.json",
                1_133_835,
                "8e52f4e00797074c1348c027b44ed40b375e8fb27792aaa76797a6ac8985354b",
                as_json=True,
            ),
            SourceFile(
                *_EMORYNLP,
                "json/emotion-detection-dev.json",
                563_109,
                "177f0b8ae5442045ea60e6f7940e14b1a8c15c704201f01da1ba74943f99086e",
            ),
            SourceFile(
                *_EMORYNLP,
                "json/emotion-detection-tst.json",
                556_256,
                "2da84b0bffbc9da2f3b9de8016c2d3ae5478e6ccb26d473313368373b427dedc",
            ),
        ),
    ),
}
"""Corpora that can be fetched, by name."""
