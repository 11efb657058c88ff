"""What leaves tells nothing of the machine, its user, the data, or the model's way of life."""

from __future__ import annotations

import base64
import json
import os
from urllib.parse import quote

import pytest

from tests.privacy.tell import INPUTS, KEPT, MARKS, SENT, SHOWN, SILENT


def spellings(mark):
    """The bytes that `mark` may stand as: in its own letters, escaped, wide, in hex or base64."""
    texts = {mark, mark.lower(), mark.upper(), json.dumps(mark)[1:-1], quote(mark), mark[::-1]}
    found = {
        text.encode(coding) for text in texts for coding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le")
    }
    found |= {each.hex().encode() for each in list(found)}
    for plain in [mark.encode(), mark.encode("utf-16-le")]:
        for shift in range(
            3
        ):  # base64 looks otherwise at each of three places; its ends depend on what is around
            code = base64.b64encode(bytes(shift) + plain)[4:-4]
            found |= {code, code.replace(b"+", b"-").replace(b"/", b"_")}
    return found


NEEDLES = {spelling: what for what, mark in MARKS.items() for spelling in spellings(mark)}


def told(data):
    """Which of the marks stand in the bytes."""
    return {what for spelling, what in NEEDLES.items() if spelling in data}


def files(path):
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


@pytest.mark.long
@pytest.mark.parametrize("name", [*SENT, *SHOWN])
def test_what_is_sent_tells_nothing(story, name):
    for file in files(story.home / name):
        assert told(file.read_bytes()) == set(), file.name


@pytest.mark.long
def test_what_is_printed_for_others_tells_nothing(story):
    shown = {" ".join(each["line"]): each["said"] for each in story.told if each["said"]}
    assert {line.split()[0] for line in shown} == {"inspect", "doctor", "methods"}
    for line, said in shown.items():
        assert told(said.encode()) == set(), line


@pytest.mark.long
@pytest.mark.parametrize("name", KEPT)
def test_the_same_search_finds_what_is_in_the_makers_own_records(story, name):
    """How a result came about is told by its call, and that by its paths."""
    mark = MARKS["a folder above everything"]
    assert any(
        spelling in file.read_bytes()
        for file in files(story.home / name)
        for spelling in (mark.encode(), json.dumps(mark)[1:-1].encode())
    )


@pytest.mark.long
def test_everything_that_was_made_is_one_or_the_other(story):
    """A new output is first to be said to be for others or not."""
    known = [story.home / name for name in (*SENT, *SHOWN, *KEPT, *SILENT, *INPUTS)]
    strays = [file for file in files(story.home) if not any(file.is_relative_to(path) for path in known)]
    strays = [file for file in strays if file.name not in ("model.sig",)]
    assert strays == []


@pytest.mark.long
def test_no_file_that_is_sent_remembers_a_user_or_can_be_run(story):
    """What a copy keeps of a file besides its bytes: who may read it. (Its date is that of its making.)"""
    for name in SENT:
        for file in files(story.home / name):
            assert file.stat().st_mode & 0o111 == 0
            assert not os.listxattr(file)


def test_what_only_looks_like_a_path_stays():
    from offsite.model.checkpoint import _without_traces

    told = {"eos": "/", "think": "/no_think", "template": "{{ a }}/b/c", "act": "silu",
            "added_tokens_decoder": {"5": {"content": "/usr/bin/"}}, "rope": {"type": "yarn"},
            "chat_template": [{"name": "a", "template": "say /think or /no_think"}], "stop_strings": [" /end/"],
            "sep": "</s></s>", "mark": "[/INST] [/SYS]", "license": "https://example.com/a/b.txt", "hub": "a/b",
            "layers": ["full", "sliding"], "ratio": "1:/2", "fim": "<|fim@1|>", "some": [[1, 2.5], None],
            "dots": "... / ..", "tags": "<a></a></b>", "hubs": ["https://example.com/a/b/c", "hf://a/b/c"],
             "text": "and/or, either / or"}  # fmt: skip
    assert _without_traces(told) == told


PATHS = [
    "/mnt/x/y", "~/x", "C:\\x", "file:///x", "\\\\server\\x", "/a folder/x", "merged from /home/zoe/run",
    "../zoe/run", "./zoe", "zoe@host:/data/x", "zoe@host:data", "from ~zoe/run", "--from=/mnt/x/y",
    "see 'D:/x'", "a\n/mnt/x/y", "</home/alice/ckpt>", "\u201c/home/alice/x\u201d", "\u00ab/home/alice/x\u00bb",
    "|/home/alice/x", "*/home/alice/x", "-/home/alice/x", "\u2192/home/alice/x", "\u200b/home/alice/x",
    "//nas/alice/x", "from //nas/alice/x", "FILE:///home/alice", "file://nas/x", "file:/home/alice/x",
    "|C:\\Users\\alice", "<D:/alice>", "\\\\?\\C:\\alice", "|\\\\nas\\alice", "~\\alice", "..\\alice", "<~/x>",
    "|zoe@host:data",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_path_goes_wherever_it_stands(path):
    from offsite.model.checkpoint import _without_traces

    assert _without_traces({"a": path, "b": [1, path], "c": [[path]], path: 1, "d": 2}) == {"d": 2}
    assert _without_traces({"a": {"b": path, "c": 1}, "d": [{"e": path}, [{"f": path, "g": 1}]]}) == {
        "a": {"c": 1}, "d": [{}, [{"g": 1}]],
    }  # fmt: skip


@pytest.mark.parametrize("what", MARKS)
def test_a_mark_is_found_however_it_is_written(what):
    mark = MARKS[what]
    around = "before /" + mark + "/ after"
    for text in (around, around.upper(), json.dumps(around)):
        assert what in told(text.encode())
        assert what in told(text.encode("utf-16"))
    for start in range(3):
        assert what in told(base64.b64encode(b"x" * start + around.encode()))
    assert what in told(around.encode().hex().encode())
