"""One row of each task as the hub and as the wheel give it, and the question that both must make."""

from __future__ import annotations

import gzip
import io
import json
import zipfile

import pyarrow

from offsite.data.examples import Question
from offsite.data.tasks import fetch

_ARC = {
    "id": "Mercury_1",
    "question": "Which factor will cause a fever?",
    "choices": {"text": ["a leg <muscle> & 'more'", "bacteria", "carbohydrates"], "label": ["1", "2", "3"]},
    "answerKey": "2",
}
_ARC_QUESTION = Question(
    "Question: Which factor will cause a fever?\nAnswer:",
    ("a leg <muscle> & 'more'", "bacteria", "carbohydrates"),
    1,
)
_PIQA = {"goal": "When boiling {{ butter }} ", "sol1": "Pour it onto a plate", "sol2": " a jar", "label": 1}
_SCIQ = {
    "question": "Who proposed it?",
    "distractor3": "Scopes",
    "distractor1": "Linnaeus",
    "distractor2": "shaw",
    "correct_answer": "darwin",
    "support": "\n It was proposed. ",
}
MMLU = {"question": " Which of these", "subject": "virology", "choices": ["a", "b c", "d"], "answer": 1}

HUB = {
    "mmlu_medicine": MMLU,
    "mmlu_finance": MMLU | {"subject": "marketing"},
    "arc_easy": _ARC,
    "arc_challenge": _ARC,
    "openbookqa": {
        "question_stem": "The sun is responsible for",
        "choices": {"text": ["puppies", "plants sprouting"], "label": ["A", "B"]},
        "answerKey": " B",
    },
    "piqa": _PIQA,
    "hellaswag": {
        "activity_label": "Removing ice",
        "ctx_a": " [header] How to [title] Then  a man",
        "ctx_b": "the MAN",
        "endings": ["[substeps] waxes it. [title] More", " cuts  it "],
        "label": "1",
    },
    "sciq": _SCIQ,
    "webqs": {"question": "who is?", "answers": ["Zed", "Jamaican English", "Jamaican", "b", "Jam"]},
    "race": {
        "article": "Long {{ago}}.\nThere was.",
        "problems": repr(
            [
                {"question": "It was  _  .", "options": ["a", "b", "c", "d"], "answer": "B"},
                {"question": "What was?", "options": ["e", "f", "g", "h"], "answer": "D"},
                {"question": "Was it\n'so'?", "options": ["i", "j", "k", "l"], "answer": "C"},
            ]
        ),
    },
}
WHEEL = {
    "mmlu_medicine": MMLU,
    "mmlu_finance": MMLU,
    "arc_easy": {
        "id": "Mercury_1",
        "query": _ARC_QUESTION.prompt,
        "choices": _ARC["choices"]["text"],
        "gold": 1,
    },
    "arc_challenge": {"query": _ARC_QUESTION.prompt, "choices": _ARC["choices"]["text"], "gold": 1},
    "openbookqa": {
        "query": "Question: The sun is responsible for\nAnswer:",
        "choices": ["puppies", "plants sprouting"],
        "gold": 1,
    },
    "piqa": _PIQA | {"query": "Goal: ...", "choices": ["A", "B"], "gold": 1},
    "hellaswag": {
        "query": "Removing ice:  How to. Then a man The man",
        "choices": [" waxes it.. More", "cuts it"],
        "gold": 1,
    },
    "sciq": _SCIQ | {"query": "Who proposed it?", "gold": 3},
}
QUESTIONS = {
    "mmlu_medicine": Question("Question: Which of these\nAnswer:", ("a", "b c", "d"), 1),
    "mmlu_finance": Question("Question: Which of these\nAnswer:", ("a", "b c", "d"), 1),
    "arc_easy": _ARC_QUESTION,
    "arc_challenge": _ARC_QUESTION,
    "openbookqa": Question("The sun is responsible for", ("puppies", "plants sprouting"), 1),
    "piqa": Question("Question: When boiling {{ butter }} \nAnswer:", ("Pour it onto a plate", " a jar"), 1),
    "sciq": Question(
        "It was proposed. \nQuestion: Who proposed it?\nAnswer:", ("Linnaeus", "shaw", "Scopes", "darwin"), 3
    ),
    "webqs": Question("Question: who is?\nAnswer:", ("Jam", "Zed", "b"), 0),
    "race": Question(
        "Article: Long {{ago}}.\nThere was.\n\nIt was b\nQuestion: What was?\nAnswer: h\nWas it\n'so'?",
        ("i", "j", "k", "l"),
        2,
    ),
}


def small_wheel(path, rows_each=3):
    """A zip laid out as the wheel is: every row once per choice, with and without its prompt."""
    with zipfile.ZipFile(path, "w") as archive:
        for definition, origin, split in fetch._in_wheel():
            if origin.table:
                _tables(archive, origin, split)
                continue
            (member,) = fetch._members(origin, split)
            if member in archive.namelist():  # a folder whose rows are shared out
                continue
            count = 1000 if definition.name == "sciq" else rows_each
            docs = [_numbered(definition.name, split, number) for number in range(count)]
            archive.writestr(member, gzip.compress("".join(_requests(docs)).encode()))
    return path


def _tables(archive, origin, split):
    """As many rows for each subject as make some test rows."""
    for member, subject in zip(fetch._members(origin, split), origin.subjects, strict=True):
        if member in archive.namelist():
            continue
        numbered = [MMLU | {"subject": subject, "question": f"{MMLU['question']} {n}?"} for n in range(140)]
        table = pyarrow.Table.from_pylist(numbered)
        packed = io.BytesIO()
        with pyarrow.ipc.new_stream(packed, table.schema) as writer:
            writer.write_table(table)
        archive.writestr(member, packed.getvalue())


def _numbered(name, split, number):
    if name == "wikipedia":
        passage = f"Persia -- passage {number // 2}\nQuestion: inside"  # two questions on each
        return {
            "query": f"{passage}\nQuestion: is it {number}?\nAnswer:",
            "choices": ["yes", "no"],
            "gold": 0,
        }
    doc = dict(WHEEL[name])
    asked = next(column for column in ("goal", "question", "query") if column in doc)
    doc[asked] = doc[asked].replace("Question: ", f"Question: {split}{number} ")
    if doc[asked] == WHEEL[name][asked]:
        doc[asked] = f"{split}{number} {doc[asked]}"
    return doc


def _requests(docs):
    for offset in (0, fetch._UNCONDITIONAL):
        for number, doc in enumerate(docs):
            for _ in range(2):
                request = {"request_type": "loglikelihood", "doc": doc, "request": {"context": "..."}}
                yield json.dumps(request | {"doc_id": offset + number}) + "\n"
