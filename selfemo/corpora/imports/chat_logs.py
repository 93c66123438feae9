"""Read chat logs as tools for fine-tuning have them: ShareGPT's `conversations`, or `messages` with roles.

A line (or an item of one JSON list) is {"conversations": [{"from", "value"}]} or {"messages": [{"role",
"content"}]}; some have the one list with the other keys, or call it "conversation". Prompts of the system
and calls of tools are no turns of a dialogue and are left out. A turn may hold "emotion", a label or a list;
it is read if a label map is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from selfemo.common.printable import quote
from selfemo.corpora.files import parse_json, read_lines, read_text
from selfemo.corpora.imports.raw import Files, ImportFormat, RawDialogue, RawTurn, find_files
from selfemo.corpora.problems import Problem, ProblemSink

_NAMES = {
    "human": "User",
    "user": "User",
    "gpt": "Assistant",
    "chatgpt": "Assistant",
    "assistant": "Assistant",
}
_NO_TURNS = ("system", "developer", "tool", "function", "function_call", "observation")
_CALLS = ("tool_calls", "function_call")
_LISTS = ("conversations", "messages", "conversation")
_TEXT_OF = {"from": "value", "role": "content"}
"""Key of a message's text, by that of its speaker."""


def _read(files: Files, report: ProblemSink) -> Iterator[RawDialogue]:
    for split, path in files:
        for number, (line, value) in enumerate(_values(path, report), start=1):
            key = next((key for key in _LISTS if isinstance(value, dict) and key in value), "")
            messages = value[key] if key else None
            if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
                told = f"holds {quote(value)}, expected an object with a list 'conversations' or 'messages'"
                report(Problem(path, line, told))
                continue
            said = ((*_parts(message), message) for message in messages)
            turns = [
                RawTurn(_name(who), _text(text), _labels(message.get("emotion")))
                for who, text, message in said
                if not (isinstance(who, str) and who.lower() in _NO_TURNS) and not _is_call(text, message)
            ]
            if turns:
                kept = value.get("id")
                meta = {"id": kept} if isinstance(kept, str | int) else {}
                yield RawDialogue(split, f"{path.stem}-{number}", path, line, tuple(turns), meta)
            else:
                report(Problem(path, line, "has no turn of a user or an assistant: leave it out"))


def _values(path: Any, report: ProblemSink) -> Iterator[tuple[int, Any]]:
    text = read_text(path, report)
    if text is not None and text.lstrip().startswith("["):
        for value in parse_json(path, text, report) or ():
            yield getattr(value, "line", 0), value
    elif text is not None:
        for line, row in read_lines(path, report):
            value = parse_json(path, row, report, first_line=line)
            if value is not None:
                yield line, value


def _parts(message: dict[str, Any]) -> tuple[object, object]:
    """Return who speaks and what is said."""
    who = next((key for key in _TEXT_OF if key in message), "from")
    return message.get(who), message.get(_TEXT_OF[who])


def _is_call(text: object, message: dict[str, Any]) -> bool:
    """Tell whether a message has no text, since its speaker called a tool."""
    return text is None or (text == "" and any(message.get(key) for key in _CALLS))


def _name(role: object) -> object:
    return _NAMES.get(role.lower(), role) if isinstance(role, str) else role


def _text(content: object) -> object:
    """Join the text parts of a list, as vision models' messages have them; other values stay."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    parts = [text for text in texts if isinstance(text, str)]
    return "\n".join(parts) if parts and len(parts) == len(texts) else content


def _labels(value: object) -> tuple[object, ...]:
    return (
        tuple(value)
        if isinstance(value, Sequence) and not isinstance(value, str)
        else (value,)
        if value
        else ()
    )


FORMATS = tuple(
    ImportFormat(
        name=name,
        origin="chat logs of yours; mind whose text it is",
        what=f"a .jsonl or .json file, or a directory of such files, with a list {key!r} in every dialogue",
        find=lambda source: find_files(source, "*.jsonl") or find_files(source, "*.json"),
        read=_read,
        labels={},
    )
    for name, key in (("sharegpt", "conversations"), ("messages", "messages"))
)
