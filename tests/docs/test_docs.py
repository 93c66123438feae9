"""Test the documentation against the program.

Commands exist and parse, quoted messages stand in the source, links lead to something, and examples
run.
"""

from __future__ import annotations

import ast
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

import selfemo.corpora.readers as readers
import selfemo.models.families as family_files
from selfemo.commands import main as cli
from selfemo.config.load import load_config
from selfemo.corpora.check import check_corpus
from selfemo.corpora.registry import formats
from selfemo.models.family import families
from tests.helpers.guide import example

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GPU_ONLY = "GPU-only"
ELSEWHERE = ("sbatch", "kubectl", "pip", "docker", "nvidia-smi", "vllm", "wandb", "tensorboard")
"""Programs of other projects; the tests do not check their arguments."""
KNOWN = tuple(f"{name} " for name in ("selfemo", "torchrun", "make", "bash", "python", *ELSEWHERE))
ASSIGNMENT = re.compile(r"[A-Z_]+=\S*")


def commands(page: Path) -> Iterator[tuple[str, str]]:
    """Find every command as (where, command).

    It stands in an indented or fenced block, or in backticks, and begins with the name of a
    program.
    """
    paragraph = ""
    fenced = False
    for number, line in enumerate(page.read_text(encoding="utf-8").split("\n"), start=1):
        if line.startswith("```"):
            fenced = not fenced
            continue
        where = f"{page.relative_to(ROOT)}:{number}"
        if fenced or line.startswith("    "):
            text = line.strip().removeprefix("$ ")
            paragraph += line + "\n"
            bare = re.sub(r"^([A-Z_]+=\S*\s+)+", "", text)
            if bare.startswith(KNOWN) and GPU_ONLY not in paragraph.rsplit("\n\n", 1)[-1]:
                yield where, text.split("   #")[0].split(" # ")[0].strip()
        else:
            paragraph = "" if line.strip() else paragraph
            for text in re.findall(r"`([^`]+)`", line):
                bare = re.sub(r"^([A-Z_]+=\S*\s+)+", "", text)
                if bare.startswith(KNOWN) and "…" not in text and "..." not in text:
                    yield where, text


ALL = [found for page in PAGES for found in commands(page)]


@pytest.mark.parametrize(("where", "command"), ALL, ids=[where for where, _ in ALL])
def test_a_command_exists_and_its_options_parse(where: str, command: str) -> None:
    words = shlex.split(command, comments=True)
    while words and ASSIGNMENT.fullmatch(words[0]):
        words = words[1:]
    check(words)


def check(words: list[str]) -> None:
    """Check one command line without running it."""
    program, *rest = words
    if program == "torchrun":
        while rest and rest[0].startswith("-") and rest[0] != "-m":
            rest = rest[1:] if rest[0] in ("--no-python", "--standalone") or "=" in rest[0] else rest[2:]
        check(rest if rest[0] == "selfemo" else ["python" if rest[0] == "-m" else "bash", *rest])
    elif program == "selfemo":
        parse(typer.main.get_command(cli.app), rest)
    elif program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets)
    elif program in ("bash", "python"):
        script = rest[0]
        if script == "-m":
            module, *rest = rest[1].replace(".", "/"), *rest[2:]
            script = f"{module}.py" if (ROOT / f"{module}.py").is_file() else f"{module}/__main__.py"
            rest = [script, *rest]
        assert (ROOT / script).is_file(), script
        if script.startswith("tools/"):
            options = {word.split("=")[0] for word in rest[1:] if word.startswith("--")}
            source = (ROOT / script).read_text(encoding="utf-8")
            unknown = {
                option
                for option in options
                if not re.search(rf"[\"']{option}[\"'/]|\b{option[2:].replace('-', '_')}: ", source)
            }
            assert not unknown, f"{script} takes no {', '.join(unknown)}"
    else:
        assert program in ELSEWHERE


def parse(command: Any, words: list[str]) -> None:
    """Parse options and subcommands as click does, and overrides as the configuration does.

    Paths need not exist.
    """
    if hasattr(command, "commands"):  # a group; isinstance fails, since typer brings its own click
        if not words or words[0] == "--help":
            return
        assert words[0] in command.commands, f"no command {words[0]}"
        parse(command.commands[words[0]], words[1:])
        return
    if set(words) & {"[section.field=value", "FILE"} or not words:
        words = [word for word in words if not word.startswith(("[", "...")) and word != "...]"]
    context = command.make_context(
        command.name, ["1" if w in ("ID", "N") else w for w in words], resilient_parsing=True
    )
    overrides = [word for word in context.params.get("overrides") or () if re.match(r"[a-z_.]+=", word)]
    known = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    names = {option for parameter in known for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= names | {"--help"}
    load_config(None, ["rollout.kv_cache_bytes=4000000000", *overrides])


def templates() -> list[str]:
    """Find every text in the source, with … for each value that is filled in."""
    found = []
    for room in ("selfemo", "tools", "kernels"):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    found.append(
                        "".join(
                            str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values
                        )
                    )
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    script = (ROOT / "examples" / "launch.sh").read_text(encoding="utf-8")
    told = [*re.findall(r'echo "(selfemo: .*)"', script), *re.findall(r"printf '(selfemo: .*)\\n'", script)]
    return [*found, *(re.sub(r"\$\w+|%[sq]", "…", line) for line in told)]


def test_messages_in_troubleshooting_stand_in_the_source() -> None:
    page = (
        (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8").split("## Not an error message")[0]
    )
    messages = re.findall(r"^\| `([^`]+)` \|", page, re.MULTILINE)
    assert len(messages) > 40
    source = "\x00".join(templates())
    for message in messages:
        pattern = "[^\x00]*?".join(map(re.escape, message.split("…")))
        assert re.search(pattern, source), message


def test_links_between_pages_lead_somewhere() -> None:
    missing = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            if "://" not in target and not (page.parent / target).exists():
                missing.append(f"{page.name}: {target}")
    assert missing == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    assert [
        page.name for page in PAGES[1:] if f"({page.name})" not in index and page.name != "README.md"
    ] == []


def test_the_corpus_of_the_guide_is_found_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tabbed.py").write_text(example("selfemo/corpora/readers/tabbed.py"))
    data = tmp_path / "my.tsv"
    data.write_text("Ana\tHello!\tjoy\nBen\tGo away.\tanger\n\nAna\tFine\tjoi\nBen\tone field\n")
    monkeypatch.setattr(readers, "__path__", [*readers.__path__, str(tmp_path)])
    formats.cache_clear()
    try:
        report = check_corpus(str(data))
        assert (report.name, report.splits[0].dialogues, report.splits[0].turns) == ("tabbed", 1, 2)
        assert [problem.line for problem in report.problems] == [4, 5]
    finally:
        formats.cache_clear()
        sys.modules.pop(f"{readers.__name__}.tabbed", None)


def test_the_family_of_the_guide_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mistral.py").write_text(example("selfemo/models/families/mistral.py"))
    monkeypatch.setattr(family_files, "__path__", [*family_files.__path__, str(tmp_path)])
    families.cache_clear()
    try:
        assert families()["mistral"].hf_architecture == "MistralForCausalLM"
    finally:
        families.cache_clear()
        sys.modules.pop(f"{family_files.__name__}.mistral", None)
