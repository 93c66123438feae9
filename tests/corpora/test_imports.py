"""Import corpora of other formats, in lines that are invented but laid out as published."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from selfemo.commands.corpus import app
from selfemo.common.errors import UserError
from selfemo.corpora.check import check_corpus
from selfemo.corpora.conversation import Corpus, Turn
from selfemo.corpora.importing import import_corpus, import_format, import_formats
from selfemo.corpora.imports.goemotions import EMOTIONS
from selfemo.corpora.label_map import read_label_map
from selfemo.corpora.registry import load_corpus
from selfemo.corpora.unlabelled import read_unlabelled

Write = Callable[[str, str | bytes], Path]
ED_HEADER = "conv_id,utterance_idx,context,prompt,speaker_idx,utterance,selfeval,tags\n"
GO_HEADER = (
    "text,id,author,subreddit,link_id,parent_id,created_utc,rater_id,example_very_unclear,"
    + ",".join(EMOTIONS)
)


def imported(name: str, source: Path, *more: str) -> Corpus:
    """Import through the command; the result must be a corpus without a problem."""
    output = source.parent / "imported"
    result = CliRunner().invoke(app, ["import", name, str(source), str(output), *more])
    assert result.exit_code == 0, (result.output, result.exception)
    assert check_corpus(str(output)).problems == ()
    return load_corpus("jsonl", output)


def rows(source: Path, split: str = "train") -> list[dict[str, Any]]:
    return [
        json.loads(line) for line in (source.parent / "imported" / f"{split}.jsonl").read_text().splitlines()
    ]


def test_dailydialog_pairs_lines_of_two_files(write: Write) -> None:
    for split in ("train", "validation", "test"):
        write(f"dd/{split}/dialogues_{split}.txt", "Hi there . __eou__ Not again ! __eou__\nBoo ! __eou__\n")
        write(f"dd/{split}/dialogues_emotion_{split}.txt", "0 1 \n6\n")
    source = write("dd/dialogues_text.txt", "all of them again __eou__\n").parent
    corpus = imported("dailydialog", source)
    assert [(c.split, len(c.turns)) for c in corpus.conversations] == [
        (split, count) for split in ("train", "dev", "test") for count in (2, 1)
    ]
    assert corpus.split("train")[0].turns == (
        Turn("A", "Hi there .", ("neutral",)),
        Turn("B", "Not again !", ("anger",)),
    )
    assert corpus.split("dev")[1].turns == (Turn("A", "Boo !", ("surprise",)),)
    assert rows(source)[1]["meta"] == {"source": "dialogues_train.txt", "line": 2}
    provenance = json.loads((source.parent / "imported" / "provenance.json").read_text())
    assert [file["file"] for file in provenance["files"]][:2] == [
        "train/dialogues_train.txt",
        "train/dialogues_emotion_train.txt",
    ]
    data = (source / "train" / "dialogues_train.txt").read_bytes()
    assert provenance["files"][0]["sha256"] == hashlib.sha256(data).hexdigest()
    assert "CC BY-NC-SA" in provenance["origin"]


def test_dailydialog_as_one_file_is_training_data(write: Write) -> None:
    write("dd/dialogues_emotion.txt", "4\n")
    source = write("dd/dialogues_text.txt", "Lovely ! __eou__\n").parent
    assert [(c.split, c.turns[0].labels) for c in imported("dailydialog", source).conversations] == [
        ("train", ("happiness",))
    ]


def test_empatheticdialogues_labels_the_turn_that_tells_the_situation(write: Write) -> None:
    source = write(
        "ed/train.csv",
        ED_HEADER
        + 'hit:0_conv:1,1,sentimental,I saw "fireworks"_comma_ long ago.,5,I saw them_comma_ with Ann.,5,\n'
        + "hit:0_conv:1,2,sentimental,I saw fireworks.,9,Was she a friend?,5|5|5_2|2|5,\n"
        + "hit:0_conv:1,3,sentimental,I saw fireworks.,5,Yes.,5|5|5_2|2|5,<TAG>\n"
        + "hit:1_conv:2,1,proud,I won.,9,I won!,5|5|5_2|2|5,a|b,c\n",
    ).parent
    write("ed/valid.csv", ED_HEADER + "hit:7_conv:3,1,afraid,Dark.,1,It is dark.,5|5|5_2|2|5,\n")
    corpus = imported("empatheticdialogues", source)
    assert [c.key for c in corpus.conversations] == [
        "jsonl/train/hit:0_conv:1",
        "jsonl/train/hit:1_conv:2",
        "jsonl/dev/hit:7_conv:3",
    ]
    assert corpus.split("train")[0].turns == (
        Turn("Speaker", "I saw them, with Ann.", ("sentimental",)),
        Turn("Listener", "Was she a friend?"),
        Turn("Speaker", "Yes."),
    )
    assert rows(source)[0]["meta"]["situation"] == 'I saw "fireworks", long ago.'
    assert len(corpus.labels) == 32


def emotion_lines(*lines: tuple[str, str, str]) -> str:
    keys = ("utterance", "emotion", "annotation")
    return json.dumps([[{"speaker": "Ana", **dict(zip(keys, line))} for line in lines]])


def test_emotionlines_keeps_votes_and_where_annotators_disagreed(write: Write) -> None:
    text = emotion_lines(
        ("My duties?", "surprise", "2000030"),
        ("Fine.", "neutral", "5000000"),
        ("Oh!", "non-neutral", "1110011"),
    )
    for split in ("train", "dev", "test"):
        source = write(f"el/friends_{split}.json", text).parent
    corpus = imported("emotionlines", source)
    assert [c.split for c in corpus.conversations] == ["train", "dev", "test"]
    assert corpus.split("test")[0].turns == (
        Turn("Ana", "My duties?", ("surprise",), (("surprise", 3), ("neutral", 2))),
        Turn("Ana", "Fine.", ("neutral",), (("neutral", 5),)),
        Turn("Ana", "Oh!"),
    )
    kept = rows(source, "test")[0]["meta"]["left_out"]["3"]
    assert kept["labels"] == ["non-neutral"]
    assert kept["votes"] == {"neutral": 1, "joy": 1, "sadness": 1, "surprise": 1, "disgust": 1}


def go_row(text: str, comment: str, *labels: str) -> str:
    return f'\n"{text}",{comment},ann,sub,l,p,1.0,3,{not labels},' + ",".join(
        str(int(e in labels)) for e in EMOTIONS
    )


def test_goemotions_adds_up_raters(write: Write) -> None:
    first = (
        go_row("Nice, [NAME]!", "e1", "joy", "love") + go_row("Well.", "e2") + go_row("Hm", "e3", "neutral")
    )
    write("go/goemotions_1.csv", GO_HEADER + first)
    second = (
        go_row("Nice, [NAME]!", "e1", "joy")
        + go_row("Hm", "e3", "confusion")
        + go_row("Hm", "e3", "confusion")
    )
    source = write("go/goemotions_2.csv", GO_HEADER + second).parent
    corpus = imported("goemotions", source)
    assert [c.turns for c in corpus.split("train")] == [
        (Turn("Writer", "Nice, [NAME]!", ("joy", "love"), (("joy", 2), ("love", 1))),),
        (Turn("Writer", "Well."),),
        (Turn("Writer", "Hm", ("confusion", "neutral"), (("confusion", 2), ("neutral", 1))),),
    ]


def test_goemotions_takes_splits_and_agreed_labels_from_the_filtered_files(write: Write) -> None:
    raw = go_row("Nice!", "e1", "joy", "love") + go_row("Nice!", "e1", "joy") + go_row("Hm", "e3", "neutral")
    raw += go_row("Raters disagreed", "e4", "fear")
    source = write("go/goemotions_1.csv", GO_HEADER + raw).parent
    write("go/dev.tsv", f"Nice!\t{EMOTIONS.index('joy')}\te1\n")
    write("go/train.tsv", f"Hm\t{EMOTIONS.index('neutral')},{EMOTIONS.index('fear')}\te3\n")
    corpus = imported("goemotions", source)
    assert [(c.split, c.dialogue_id) for c in corpus.conversations] == [("train", "e3"), ("dev", "e1")]
    assert corpus.split("dev")[0].turns == (Turn("Writer", "Nice!", ("joy",), (("joy", 2), ("love", 1))),)
    assert corpus.split("train")[0].turns[0].labels == ("neutral", "fear"), "most votes first"


def test_goemotions_as_the_repository_has_it(write: Write) -> None:
    """Its three .tsv files lie in git; the raters' rows are a download apart."""
    joy, fear = EMOTIONS.index("joy"), EMOTIONS.index("fear")
    write("go/train.tsv", f'He said "no\t{fear},{joy}\te3\nYes\t{joy}\te4\n')
    write("go/emotions.txt", "\n".join(EMOTIONS))
    source = write("go/test.tsv", f"Nice!\t{joy}\te1\n").parent
    corpus = imported("goemotions", source)
    assert [(c.split, c.dialogue_id, c.turns) for c in corpus.conversations] == [
        ("train", "e3", (Turn("Writer", 'He said "no', ("fear", "joy")),)),
        ("train", "e4", (Turn("Writer", "Yes", ("joy",)),)),
        ("test", "e1", (Turn("Writer", "Nice!", ("joy",)),)),
    ]
    one = import_corpus(import_format("goemotions"), source / "train.tsv", source.parent / "one")
    assert dict(one.dialogues) == {"train": 2}


CHATS = [
    {
        "id": "x1",
        "conversations": [
            {"from": "system", "value": "Be kind."},
            {"from": "human", "value": "I lost my keys.", "emotion": "Sad"},
            {"from": "gpt", "value": "Oh no!"},
        ],
    },
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Found them!"}, {"type": "image_url"}]},
            {"role": "assistant", "content": None, "tool_calls": []},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": "{}"},
            {"role": "assistant", "content": "Good."},
        ]
    },
]


@pytest.mark.parametrize("name", ["sharegpt", "messages"])
@pytest.mark.parametrize("as_list", [False, True])
def test_chat_logs_become_bare_dialogues(write: Write, name: str, as_list: bool) -> None:
    text = json.dumps(CHATS) if as_list else "".join(json.dumps(chat) + "\n" for chat in CHATS)
    source = write("chats/log.jsonl", text)
    result = CliRunner().invoke(app, ["import", name, str(source), str(source.parent / "imported")])
    assert result.exit_code == 0, (result.output, result.exception)
    assert "1 turns have labels that the label map leaves out" in result.output
    assert not (source.parent / "imported" / "labels.json").exists()
    read = read_unlabelled(str(source.parent / "imported" / "train.jsonl"))
    assert [c.turns for c in read] == [
        (Turn("User", "I lost my keys."), Turn("Assistant", "Oh no!")),
        (Turn("User", "Found them!"), Turn("Assistant", "Good.")),
    ]


@pytest.mark.parametrize("key", ["conversations", "conversation", "messages"])
@pytest.mark.parametrize(("who", "what"), [("from", "value"), ("role", "content")])
def test_chat_logs_name_their_lists_and_messages_in_many_ways(
    write: Write, key: str, who: str, what: str
) -> None:
    """LMSYS and WildChat write conversation with roles, many others conversations with roles."""
    chat = {key: [{who: "user", what: "I lost my keys."}, {who: "assistant", what: "Oh no!"}]}
    source = write("chats/log.json", json.dumps([chat])).parent
    import_corpus(import_format("sharegpt"), source, source.parent / "imported")
    read = read_unlabelled(str(source.parent / "imported" / "train.jsonl"))
    assert [c.turns for c in read] == [(Turn("User", "I lost my keys."), Turn("Assistant", "Oh no!"))]


def test_a_label_map_is_edited_and_used_again(write: Write) -> None:
    source = write(
        "el/friends_train.json",
        emotion_lines(("A!", "joy", "0311000"), ("B!", "fear", "0003200"), ("C!", "disgust", "0000005")),
    )
    imported("emotionlines", source)
    edited = json.loads((source.parent / "imported" / "label_map.json").read_text())
    edited |= {"sadness": "low", "fear": "low", "joy": "high spirits", "disgust": None}
    mapping = write("map.json", json.dumps(edited))
    output = source.parent / "again"
    import_corpus(import_format("emotionlines"), source, output, read_label_map(mapping))
    corpus = load_corpus("jsonl", output)
    assert corpus.labels == ("anger", "high spirits", "low", "neutral", "surprise")
    first, second, third = corpus.conversations[0].turns
    assert (first.labels, first.votes) == (("high spirits",), (("high spirits", 3), ("low", 2))), "added up"
    assert (second.labels, second.votes) == (("low",), (("low", 3), ("anger", 2)))
    assert (third.labels, third.votes) == ((), ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "expected an object such as"),
        ('{"joy": "Joy!"}', "'joy' maps to 'Joy!', expected a label in lower-case letters, or null"),
        ('{"joy": "joy", "fear": null}', "maps to fewer than two labels"),
    ],
)
def test_a_label_map_that_cannot_serve_is_one_line(write: Write, content: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_label_map(write("map.json", content))


def test_a_fault_means_that_nothing_is_written(write: Write) -> None:
    write("dd/dialogues_emotion.txt", "4 4\n1\n9\n")
    source = write("dd/dialogues_text.txt", "One . __eou__\nTwo . __eou__\nThree . __eou__\n").parent
    arguments = ["import", "dailydialog", str(source), str(source / "out")]
    result = CliRunner().invoke(app, arguments)
    assert isinstance(result.exception, UserError)
    assert "2 problems, listed above; nothing was written" in str(result.exception)
    told = result.output.splitlines()
    assert (
        f"{source / 'dialogues_text.txt'}:1: has 1 utterances, and line 1 of dialogues_emotion.txt 2"
        in told[1]
    )
    assert "dialogues_text.txt:3: turn 1: label '9' is not in the label map" in told[2]
    assert sorted(path.name for path in source.iterdir()) == ["dialogues_emotion.txt", "dialogues_text.txt"]
    kept = CliRunner().invoke(app, [*arguments, "--skip"])
    assert kept.exit_code == 0, kept.exception
    assert [c.dialogue_id for c in load_corpus("jsonl", source / "out").conversations] == ["dialogues_text-2"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "emotionlines",
            emotion_lines(("A", "joy", "5000000")),
            "annotation '5000000' is not the votes for 'joy'",
        ),
        ("emotionlines", emotion_lines(("A", "joy", "05")), "annotation '05' is not the votes for 'joy'"),
        ("emotionlines", emotion_lines(("A", "glee", "")), "label 'glee' is not in the label map"),
        ("emotionlines", '[[{"speaker": "A"}]]', "expected objects with speaker, utterance, emotion"),
        ("emotionlines", "{}", "expected a list of dialogues"),
        ("empatheticdialogues", ED_HEADER + "only,two\n", "expected conv_id,utterance_idx,context"),
        ("empatheticdialogues", ED_HEADER + 'h:0,1,proud,I won.,9,"Yes, I did",5,\n', "is written _comma_"),
        ("empatheticdialogues", ED_HEADER + 'h:0,1,proud,"I won, ha",9,Yes,5,\n', "is written _comma_"),
        (
            "empatheticdialogues",
            ED_HEADER + "h:0,2,proud,I won.,9,Yes,5,\nh:0,1,proud,I won.,8,I won,5,\n",
            "utterance 1 of h:0 stands after 2: sort the file",
        ),
        ("goemotions", GO_HEADER + go_row("A", "e", "joy").replace(",1", ",2"), "joy is not 0 or 1"),
        ("sharegpt", '{"text": "A"}', "expected an object with a list 'conversations' or 'messages'"),
        ("messages", '{"messages": [{"role": "system", "content": "A"}]}', "has no turn of a user"),
        ("messages", '{"messages": [{"role": "user", "content": ""}]}', "turn 1: text is empty"),
    ],
)
def test_a_faulty_file_names_its_line(write: Write, name: str, content: str, message: str) -> None:
    found = import_corpus(import_format(name), write("x.jsonl", content), write("d/x", "").parent / "out")
    assert len(found.problems) == 1, found.problems
    assert message in str(found.problems[0])
    assert ".jsonl" in str(found.problems[0])


def test_emotions_of_more_dialogues_than_there_are_name_the_line(write: Write) -> None:
    write("dd/dialogues_emotion.txt", "4\n0 0\n")
    source = write("dd/dialogues_text.txt", "Lovely ! __eou__\n").parent
    found = import_corpus(import_format("dailydialog"), source, source / "out")
    (problem,) = map(str, found.problems)
    assert problem.startswith(
        f"{source}/dialogues_emotion.txt:2: has emotions, and dialogues_text.txt has no"
    )


def test_a_dialogue_with_a_faulty_row_is_left_out_whole(write: Write) -> None:
    lines = (
        "h:0,1,proud,I won.,9,Yes,5,\nh:0,two,proud,I won.,8,No,5,\n"
        "h:1,2,proud,I won.,9,Yes,5,\nh:1,1,proud,I won.,8,No,5,\nh:2,1,proud,I won.,9,Yes,5,\n"
    )
    source = write("ed/train.csv", ED_HEADER + lines).parent
    found = import_corpus(import_format("empatheticdialogues"), source, source / "out", skip=True)
    assert len(found.problems) == 2
    assert [c.dialogue_id for c in load_corpus("jsonl", source / "out").conversations] == ["h:2"]


def test_a_macs_hidden_companions_are_not_read(write: Write) -> None:
    write("ed/._train.csv", b"\x00\x05\x16\x07\xa3")
    source = write("ed/train.csv", ED_HEADER + "h:0,1,proud,I won.,9,Yes,5,\n").parent
    assert [c.dialogue_id for c in imported("empatheticdialogues", source).conversations] == ["h:0"]


def test_what_cannot_be_imported_is_one_line(write: Write) -> None:
    source = write("dd/dialogues_text.txt", "One . __eou__\n").parent
    daily = import_format("dailydialog")
    with pytest.raises(
        UserError, match=r"corpus import dailydialogue: expected one of .*did you mean 'dailydialog'"
    ):
        import_format("dailydialogue")
    with pytest.raises(UserError, match=r"expected a directory with train/dialogues_train.txt"):
        import_corpus(daily, source / "absent", source / "out")
    with pytest.raises(UserError, match="exists already; expected a new directory"):
        import_corpus(daily, source, source)
    with pytest.raises(UserError, match="holds no dialogue that can be used"):
        import_corpus(daily, source, source / "out", skip=True)
    assert not (source / "out").exists()


def test_every_format_is_found_and_says_what_it_needs() -> None:
    assert [*import_formats()] == [
        "dailydialog",
        "emotionlines",
        "empatheticdialogues",
        "goemotions",
        "messages",
        "sharegpt",
    ]
    for fmt in import_formats().values():
        assert fmt.what
        assert fmt.origin
