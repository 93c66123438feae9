"""Reads a text field as text, and a path as a person types it.

YAML reads `7`, `2026-11-29` and `on` as a number, a date and a truth value, and cuts `runs/exp #3` at the
blank. A field that holds text has none of these.
"""

from __future__ import annotations

import dataclasses
import os.path
from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml
from pydantic_core import PydanticCustomError

TEXT_TAG = "tag:yaml.org,2002:str"
NULL_TAG = "tag:yaml.org,2002:null"


def is_text(hint: Any) -> bool:
    """Whether a field of this type holds text alone: a string, or one of several words."""
    return hint is str or (
        get_origin(hint) is Literal and all(isinstance(word, str) for word in get_args(hint))
    )


def hint_of(kind: type, name: str) -> Any:
    """Return the type of a field by its dotted name; None if there is no such field."""
    hint: Any = kind
    for part in name.split("."):
        hint = get_type_hints(hint).get(part) if dataclasses.is_dataclass(hint) else None
    return hint


def keep_text(node: yaml.Node | None, hint: Any) -> None:
    """Have YAML's loader read every plain value of a text field, in a parsed document, as text."""
    if isinstance(node, yaml.ScalarNode) and is_text(hint) and node.tag != NULL_TAG:
        node.tag = TEXT_TAG
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
