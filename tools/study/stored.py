"""Reads the JSON files that a study keeps beside its runs."""

from __future__ import annotations

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from selfemo.common.errors import UserError
from selfemo.common.json_file import read_json_object


def read_stored[T](path: Path, kind: type[T], remedy: str) -> T:
    """Read an object of a type that pydantic can check.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it is damaged, or of another version of this program; ends with the remedy.
    """
    stored = read_json_object(path, remedy)
    try:
        return TypeAdapter(kind).validate_python(stored)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(f"{path}: {'.'.join(map(str, first['loc']))}: {first['msg']}; {remedy}") from None
