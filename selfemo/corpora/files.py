"""Read files into text, CSV rows and JSON values, each with its line number, under fixed limits.

Every way in which a file can be unreadable (absent, huge, not UTF-8, an unclosed quote, bad JSON)
is reported here, once, so that a format's reader only interprets values. Functions return None, or
skip a row, after reporting.
"""

from __future__ import annotations

import csv
import io
import json
import re
import stat
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from selfemo.common.printable import quote as shown
from selfemo.corpora.problems import Problem, ProblemSink

MAX_FILE_BYTES = 128 << 20
"""Size in bytes above which a file is refused; the public corpora have a few megabytes. In memory,
turns of a few characters take up to forty times their bytes."""
MAX_DOCUMENT_CHARS = 16 << 20
"""Longest text that is parsed as one JSON value, in characters. In memory, empty lists and objects
take up to fifty times their bytes."""
MAX_LINE_CHARS = 1 << 20
"""Longest line of a line-based format, in characters."""


def read_text(path: Path, report: ProblemSink) -> str | None:
    """Read a whole file as text without its byte-order mark, line ends unchanged; None after a
    reported problem."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # reading a pipe would wait for ever, a device would never end
            report(Problem(path, 0, "is not a regular file, expected a corpus file: check the path"))
            return None
        if status.st_size > MAX_FILE_BYTES:
            report(
                Problem(
                    path,
                    0,
                    f"is {status.st_size} bytes, expected at most {MAX_FILE_BYTES}: "
                    "split it into smaller files",
                )
            )
            return None
        data = path.read_bytes()
    except FileNotFoundError:
        report(Problem(path, 0, "does not exist, expected a corpus file: check the path"))
        return None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        report(
            Problem(
                path,
                0,
                f"cannot be read ({getattr(error, 'strerror', None) or error}): "
                "check that it is a readable file",
            )
        )
        return None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        report(Problem(path, line, f"byte 0x{data[error.start]:02x} is not UTF-8: save the file as UTF-8"))
        return None


def read_lines(path: Path, report: ProblemSink) -> Iterator[tuple[int, str]]:
    """Yield (1-based line, text without its line end) of every line that is not blank.

    Overlong lines are reported and skipped. Only line feeds end a line: JSON strings may hold
    U+2028 and other characters that str.splitlines would split at.
    """
    text = read_text(path, report)
    if text is None:
        return
    if not text.strip():
        report(Problem(path, 0, "is empty: restore or remove it"))
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > MAX_LINE_CHARS:
            report(
                Problem(
                    path,
                    number,
                    f"has {len(line)} characters, expected at most {MAX_LINE_CHARS}: split the dialogue",
                )
            )
        elif line.strip():
            yield number, line.rstrip("\r")


def read_csv(
    path: Path, required: tuple[str, ...], report: ProblemSink
) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (1-based first line of the row, values by column) of every complete row.

    A header without the `required` columns is reported.
    """
    text = read_text(path, report)
    if text is None:
        return
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    line = 1
    try:
        for row in reader:
            first_line, line = line, reader.line_num + 1
            if not header:
                header = [column.strip() for column in row]
                missing = [column for column in required if header.count(column) != 1]
                if missing:
                    report(
                        Problem(
                            path,
                            first_line,
                            f"header {shown(','.join(header))} needs the column {missing[0]!r} exactly once",
                        )
                    )
                    return
            elif len(row) != len(header):
                if row:
                    report(
                        Problem(
                            path,
                            first_line,
                            f"has {len(row)} fields, expected {len(header)}: quote fields that hold commas",
                        )
                    )
            else:
                yield first_line, dict(zip(header, row))
    except csv.Error as error:
        report(
            Problem(
                path, line, f"is not valid CSV ({error}): look for a quote that is not closed or not doubled"
            )
        )
        return
    if not header:
        report(Problem(path, 0, f"is empty, expected a header with {', '.join(required)}: restore the file"))


class LocatedDict(dict[str, Any]):
    """A JSON object with the line at which it opens."""

    __slots__ = ("line",)  # a file may hold millions of objects

    line: int


def parse_json(path: Path, text: str, report: ProblemSink, first_line: int = 1) -> Any:
    """Parse the JSON value in `text`, with LocatedDict for objects; None after a reported problem
    (or for null).

    Time is linear in the text, whatever its content. A repeated key is reported: json would
    silently keep the last one.

    Args:
        first_line: line of the file at which `text` begins.
    """
    if len(text) > MAX_DOCUMENT_CHARS:
        report(
            Problem(
                path,
                first_line,
                f"has {len(text)} characters of JSON, expected at most {MAX_DOCUMENT_CHARS}: split it",
            )
        )
        return None
    object_lines = iter(_lines_of_objects(text, first_line))

    def locate(pairs: list[tuple[str, Any]]) -> LocatedDict:
        located = LocatedDict(pairs)
        located.line = next(object_lines, first_line)
        if len(located) != len(pairs):
            twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
            report(Problem(path, located.line, f"key {shown(twice)} appears twice in one object: remove one"))
        return located

    try:
        return json.loads(text, object_pairs_hook=locate)
    except json.JSONDecodeError as error:
        where = first_line + error.lineno - 1
        report(
            Problem(
                path, where, f"is not valid JSON ({error.msg} at column {error.colno}): correct or remove it"
            )
        )
    except (
        ValueError,
        RecursionError,
    ) as error:  # integers of thousands of digits; nesting deeper than the interpreter's stack
        report(
            Problem(
                path,
                first_line,
                f"is not usable JSON ({type(error).__name__}): expected plain objects, lists and texts",
            )
        )
    return None


_STRING_OR_BRACE = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\Z)|[{}]', re.DOTALL)
"""A string or a brace. It never backtracks: an unclosed string runs to the end of the text, because
otherwise each of its quotes would be tried as the start of another."""


def _lines_of_objects(text: str, first_line: int) -> list[int]:
    """List the opening line of each object in the order in which objects close, as json calls its
    pairs hook."""
    breaks = [match.start() for match in re.finditer("\n", text)]
    opened: list[int] = []
    lines: list[int] = []
    for match in _STRING_OR_BRACE.finditer(text):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            lines.append(first_line + bisect_right(breaks, opened.pop()))
    return lines
