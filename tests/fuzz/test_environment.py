"""Fuzz what a shell, an operator and a keyboard hand over: variables, options, and lines of a chat."""

from __future__ import annotations

import functools
import os
import random
import subprocess
from itertools import islice
from pathlib import Path

from selfemo.commands.chat import parse_target
from selfemo.commands.doctor import default_interface
from selfemo.commands.train import place_in_world
from selfemo.common.errors import UserError
from selfemo.config.dtype import automatic, gpus_here
from selfemo.process.admission import Place
from selfemo.selfplay.prompts import MAX_SPEAKER_CHARS, clean_line, clean_speaker
from selfemo.selfplay.views import parse_views, view_names
from tests.fuzz.conftest import Tally
from tests.helpers.damage import damaged, fuzz, of_tokens

ROOT = Path(__file__).resolve().parents[2]
LABELS = ("anger", "joy", "neutral", "surprise")
NUMBERS = [
    b"0",
    b"1",
    b"8",
    b"007",
    b"-1",
    b"+2",
    b" ",
    "\u0663".encode(),
    "\u00b2".encode(),
    b"1e3",
    b"9" * 12,
]
GPUS = [b"h100:8(S:0-1)", b"a100:2(S:0),h100:2(S:1)", b"8"]
NODES = [b"node[01-04,7],gpu3", b"rack[1-2]n[03,05]", b"a,b"]
SLURM = [b"h100:", b"(S:0)", b"08", b"+", b"$((1))", b"`id`", b"-n", b"[", b"]", b"&", b"\\1", b"/"]
ASKED = """
. examples/launch.sh
while IFS= read -r -d '' gpus && IFS= read -r -d '' nodes; do
    printf '%s\\0' "$(slurm_gpus "$gpus" 2>&1)" "$(first_slurm_host "$nodes" 2>&1 >/dev/null)"
    printf '%s\\0' "$(refuse_unless_number GPUS_PER_NODE "$(slurm_gpus "$gpus")" 2>&1)"
done
"""
"""Answers three texts for two: the number of GPUs, what sed says of the nodes, the refusal of the GPUs."""


@fuzz
def test_torchrun_variables(seed: int, tally: Tally) -> None:
    for rng in tally.batch(seed):
        given = {
            name: _number(rng).decode("utf-8", "surrogateescape")
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")
            if rng.random() < 0.8
        }
        found = tally.try_input(functools.partial(place_in_world, given), given)
        assert isinstance(found, UserError) or (isinstance(found, Place) and found.rank < found.world_size)


@fuzz
def test_launch_variables(seed: int, tally: Tally) -> None:
    """Ask the launch script, in one shell, for a tenth of the other targets' number of inputs."""
    asked = []
    for rng in islice(tally.batch(seed), 10):
        for sound in (GPUS, NODES):
            made = damaged(rng, sound, SLURM) if rng.random() < 0.9 else of_tokens(rng, SLURM)
            asked.append(made.replace(b"\0", b""))
    answered = subprocess.run(
        ["bash", "-c", ASKED],
        cwd=ROOT,
        env=os.environ | {"LC_ALL": "C"},  # else `read` takes the end of a text into a broken character
        input=b"".join(text + b"\0" for text in asked),
        capture_output=True,
        timeout=100,
        check=True,
    )
    assert answered.stderr.replace(b"\n", b"") == b""
    answers = answered.stdout.split(b"\0")[:-1]
    assert len(answers) == 3 * len(asked) // 2
    for number in range(len(asked) // 2):
        count, said, fault = answers[3 * number : 3 * number + 3]

        def settle(count: bytes = count, said: bytes = said, fault: bytes = fault) -> int:
            assert said == b""
            if fault:
                assert fault.startswith(b"selfemo: GPUS_PER_NODE=")
                assert not any(byte < 32 for byte in fault), "one line without control characters"
                raise UserError(fault.decode(errors="replace"))
            return int(count)

        tally.try_input(settle, asked[2 * number : 2 * number + 2])


@fuzz
def test_typed_text(seed: int, tally: Tally) -> None:
    """Read a line of a chat, two names, target emotions and views, as they are typed."""
    sound = [b"joy, surprise", b"neutral", b"2", b"plain,short", b"I lost my keys.", b"/emotion joy"]
    tokens = [b"joy", b", ", b"surprise", b"2", b"plain", b"0000000030", *(n.encode() for n in view_names())]
    for rng in tally.batch(seed):
        content = damaged(rng, sound, tokens, most=2) if rng.random() < 0.7 else of_tokens(rng, tokens, 3)
        text = content.decode(errors="replace")
        line, name = clean_line(text), clean_speaker(text)
        assert not set(map(chr, range(32))) & set(line + name), "one line without control characters"
        assert 0 < len(name) <= MAX_SPEAKER_CHARS
        assert ":" not in name
        if rng.random() < 0.5:
            target = tally.try_input(functools.partial(parse_target, text, LABELS, "--emotion"), content)
            assert isinstance(target, UserError) or set(target) <= set(LABELS)  # type: ignore[call-overload]
        else:
            views = tally.try_input(functools.partial(parse_views, text, "--views"), content)
            assert isinstance(views, UserError) or set(views) <= set(view_names())  # type: ignore[call-overload]


@fuzz
def test_machine_texts(seed: int, tally: Tally, scratch: Path) -> None:
    """Read what the kernel and the shell say of the machine: processor, routes, GPUs that are shown."""
    sound = [
        b"processor\t: 0\nflags\t\t: fpu avx512_bf16\n\nprocessor\t: 1\n",
        b"Iface\tDestination\tGateway\neth0\t00000000\t0101A8C0\nlo\t0000007F\t0\n",
        b"0,1,MIG-4f,GPU-1",
    ]
    (scratch / "nvidia0").touch()
    for rng in tally.batch(seed):
        text = damaged(rng, sound, [b"flags", b"\n", b"\t", b"00000000", b",", b"-1"]).decode(
            errors="replace"
        )

        def read(text: str = text) -> str:
            assert gpus_here({"CUDA_VISIBLE_DEVICES": text}, scratch) >= 0
            return automatic(text, has_gpu=False).dtype + default_interface(text)

        assert not isinstance(tally.try_input(read, text), UserError)


def _number(rng: random.Random) -> bytes:
    """Make a number, sound in half of the cases."""
    sound = rng.choice([b"0", b"1", b"2", b"8", b"16"])
    return sound if rng.random() < 0.5 else damaged(rng, [sound], NUMBERS, most=2)
