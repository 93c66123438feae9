"""Reads a JSON object from a downloaded file, under a size limit.

Each kind of damage has its own one-line error.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from selfemo.common.errors import UserError

MAX_JSON_BYTES = 16 << 20
"""The index of the largest published models has a few megabytes."""


def read_json_object(path: Path, remedy: str = "download the file again") -> dict[str, Any]:
    """Read the object in a file.

    Args:
        remedy: for a damaged file, in an error's last words.

    Raises:
        FileNotFoundError: there is no such file; the caller knows the consequence.
        UserError: it is too large, cannot be read, or is no JSON object; names the file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JSON_BYTES + 1)
        if len(data) > MAX_JSON_BYTES:
            raise UserError(f"{path}: larger than {MAX_JSON_BYTES} bytes, which no such file is; {remedy}")
        value = json.loads(data.decode())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); check that it is a readable file"
        ) from None
    # ValueError: JSON's own, bytes that are not UTF-8, integers of thousands of digits
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); {remedy}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(value).__name__}; {remedy}")
    return value
