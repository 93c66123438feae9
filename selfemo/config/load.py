"""Read a YAML file and dotted overrides into a RunConfig; report everything wrong in one line.

Every problem is found before anything is built: unknown keys with the nearest valid one, values of
a wrong type or out of bounds, and combinations of fields that cannot work. Checks that need the
model or the world (heads, layers, ranks) are made by selfemo.config.checks, where those are known.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from pydantic import TypeAdapter, ValidationError

from selfemo.common.errors import UserError, nearest
from selfemo.common.printable import quote
from selfemo.config.checks import violations
from selfemo.config.corpus_name import with_corpus
from selfemo.config.dtype import this_machine, with_dtypes
from selfemo.config.schema import RunConfig
from selfemo.config.text import hint_of, is_quoted, is_text, keep_text

MAX_CONFIG_BYTES = 100_000
MAX_INTEGER = 2**63 - 1
"""Largest value of a whole number. No setting is meaningful beyond 64 bits."""
UNKNOWN_KEY = "unexpected_keyword_argument"
"""pydantic's name for a key that a dataclass has no field for."""


def load_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read `path` (None for all defaults), apply overrides such as "train.learning_rate=1e-4", and
    validate the whole.

    A dtype or corpus of "auto" becomes what it stands for on this machine.

    Raises:
        UserError: names the file or override, the field, and the expected value.
    """
    config = with_corpus(with_dtypes(read_config(path, overrides), this_machine()))
    problems = list(violations(config))
    if problems:
        raise UserError(f"{path or 'configuration'}: " + "; ".join(problems))
    return config


def read_config(path: str | Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Read as `load_config` does, but check each field only by itself: for a caller that reports
    more than `violations`.

    Raises:
        UserError: every unknown key and every value of a wrong type or out of bounds.
    """
    tree = read_tree(Path(path)) if path else {}
    for override in overrides:
        _apply_override(tree, override)
    problems = list(_unknown_keys(tree, RunConfig))
    try:
        config = TypeAdapter(RunConfig).validate_python(tree)
    except ValidationError as error:
        # unknown keys are reported above, with the nearest valid key
        wrong = (e for e in error.errors() if e["type"] != UNKNOWN_KEY)
        problems += [
            f"{'.'.join(map(str, e['loc']))}={quote(e['input'])}: {e['msg'][0].lower()}{e['msg'][1:]}"
            for e in wrong
        ]
        raise UserError(f"{path or 'configuration'}: " + "; ".join(problems)) from None
    unusable = list(_unusable(dataclasses.asdict(config)))
    if unusable:
        raise UserError(f"{path or 'configuration'}: " + "; ".join(unusable))
    return config


def as_yaml(config: RunConfig) -> str:
    """Write the whole configuration as YAML, field order kept. `load_config` of it gives the same
    configuration."""
    return yaml.safe_dump(dataclasses.asdict(config), sort_keys=False, allow_unicode=True)


def read_tree(path: Path) -> dict[str, Any]:
    """Read a YAML file of plain values as a mapping, unchecked.

    Raises:
        UserError: no such file, not YAML, or no mapping.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise UserError(
                f"{path}: larger than {MAX_CONFIG_BYTES} bytes, which no configuration is: "
                "name the right file"
            )
        tree = _parse_yaml(data.decode(), RunConfig)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; examples/configs has ready ones") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    except _NotYaml as error:
        place = f"{path}:{error.line}" if error.line else str(path)
        raise UserError(
            f"{place}: not valid YAML ({error}); expected `section:` and `key: value` lines"
        ) from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: expected a mapping of sections, found {type(tree).__name__}")
    return tree


class _NotYaml(Exception):
    """Raised for text that is not YAML, or that holds more than plain values."""

    def __init__(self, reason: str, line: int) -> None:
        super().__init__(reason)
        self.line = line
        """1-based; 0 if it is not known."""


class _PlainLoader(yaml.SafeLoader):
    """Loads YAML without aliases, which no configuration of ours needs (a few lines of them expand
    to a value of any size), and without repeated keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(
                None, None, "an alias (*name) is not read here: write the value out", mark
            )
        return super().compose_node(parent, index)

    def compose_mapping_node(self, anchor: Any) -> Any:
        """Refuse a key that stands twice: the first value, often a whole section, would be lost."""
        node = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {quote(key.value)} stands twice: keep one"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return node


def _parse_yaml(text: str, hint: Any = None) -> Any:
    """Parse YAML. `hint` is the type that it is to be read into, as far as it is known."""
    try:
        loader = _PlainLoader(text)
        node = loader.get_single_node()
        keep_text(node, hint)
        return None if node is None else loader.construct_document(node)
    except (yaml.YAMLError, RecursionError, ValueError, LookupError, AttributeError, TypeError) as error:
        # PyYAML also lets through the errors of int(), float() and date(), on values such as 2026-99-99
        line = getattr(getattr(error, "problem_mark", None), "line", -1)
        raise _NotYaml(str(getattr(error, "problem", None) or error), line + 1) from None


def _unusable(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Find values of the right type that no setting can use, such as unprintable text."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _unusable(value, f"{name}.")
        elif isinstance(value, str) and not value.isprintable():
            yield f"{prefix}{name}={quote(value)}: expected printable characters"
        elif isinstance(value, int) and abs(value) > MAX_INTEGER:
            yield f"{prefix}{name}={quote(value)}: expected at most {MAX_INTEGER}"


def _apply_override(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(
            f"override {override!r}: expected section.field=value, such as train.learning_rate=1e-4"
        )
    hint = hint_of(RunConfig, name)
    if dataclasses.is_dataclass(hint):
        first = dataclasses.fields(hint)[0].name
        raise UserError(
            f"override {override!r}: {name} is a section, and its other fields would be lost: set single "
            f"fields, such as {name}.{first}=..."
        )
    try:
        value = text.strip() if is_text(hint) and not is_quoted(text) else _parse_yaml(text, hint)
    except _NotYaml:
        value = text
    *sections, leaf = name.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise UserError(f"override {override!r}: {section} is a value, not a section")
    tree[leaf] = value if text.strip() else ""


def _unknown_keys(tree: Mapping[Any, Any], kind: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(kind)
    for key, value in tree.items():
        if key not in hints:
            yield f"unknown key {prefix}{key}{nearest(str(key), hints)}"
        elif dataclasses.is_dataclass(hints[key]) and isinstance(value, dict):
            yield from _unknown_keys(value, _as_type(hints[key]), f"{prefix}{key}.")


def _as_type(hint: object) -> type:
    return hint if isinstance(hint, type) and not isinstance(hint, types.GenericAlias) else type(hint)
