"""Reads a text field as text, a number as a number, and a path as a person types it.

YAML reads `7`, `2026-11-29` and `on` as a number, a date and a truth value, and cuts `runs/exp #3` at the
blank. A field that holds text has none of these. Of numbers, YAML 1.1 takes `010` for 8 and `1:30` for 90,
and pydantic takes `on` for 1.
"""

from __future__ import annotations

import dataclasses
import os.path
import re
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic_core import PydanticCustomError

TEXT_TAG = "tag:yaml.org,2002:str"
NULL_TAG = "tag:yaml.org,2002:null"
BOOL_TAG = "tag:yaml.org,2002:bool"
INT_TAG = "tag:yaml.org,2002:int"
FLOAT_TAG = "tag:yaml.org,2002:float"
_LEADING_ZEROS = re.compile(r"([-+]?)0+([0-9]+)")


def is_text(hint: Any) -> bool:
    """Whether a field of this type holds text alone: a string, or one of several words."""
    return hint is str or (
        get_origin(hint) is Literal and all(isinstance(word, str) for word in get_args(hint))
    )


def _is_number(hint: Any) -> bool:
    kinds = set(get_args(hint) or (hint,)) - {type(None)}
    return bool(kinds) and kinds <= {int, float}


def hint_of(kind: type, name: str) -> Any:
    """Return the type of a field by its dotted name; None if there is no such field."""
    hint: Any = kind
    for part in name.split("."):
        hint = get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return hint


def keep_text(node: yaml.Node | None, hint: Any) -> None:
    """Have YAML's loader read every plain value of a text field, in a parsed document, as text, and of a
    number as it is written: what is none stays text, which pydantic refuses."""
    if isinstance(node, yaml.ScalarNode) and is_text(hint) and node.tag != NULL_TAG:
        node.tag = TEXT_TAG
    elif isinstance(node, yaml.ScalarNode) and _is_number(hint):
        if node.tag == BOOL_TAG or (node.tag in (INT_TAG, FLOAT_TAG) and ":" in node.value):
            node.tag = TEXT_TAG
        elif node.tag == INT_TAG and (written := _LEADING_ZEROS.fullmatch(node.value)):
            node.value = written[1] + written[2]
    elif isinstance(node, yaml.MappingNode) and dataclasses.is_dataclass(hint):
        hints: Mapping[str, Any] = get_type_hints(hint)
        for key, value in node.value:
            keep_text(value, hints.get(key.value) if isinstance(key, yaml.ScalarNode) else None)


def is_quoted(text: str) -> bool:
    """Whether a value on the command line is one quoted text, such as '"7"'."""
    return len(text) > 1 and text[0] in "'\"" and text[0] == text[-1]


def expand_path(path: str) -> str:
    """Replace a leading ~ or ~user by the home directory; for pydantic.

    Raises:
        PydanticCustomError: the user is unknown, or the path has a $, which only a shell replaces.
    """
    if "$" in path:
        raise PydanticCustomError("path", "expected a path without $: variables are not replaced here")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise PydanticCustomError("path", "expected the name of a user after ~: this one is not known")
    return expanded


def expand_paths(paths: str) -> str:
    """Do the same for every part of a list with commas."""
    return ",".join(expand_path(part.strip()) for part in paths.split(",")) if paths else paths
