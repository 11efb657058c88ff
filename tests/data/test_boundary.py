"""The token at the boundary of prompt and answer belongs to the answer, in training as in scoring."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from offsite.data.encoding import IGNORED, encode, prepare
from offsite.data.examples import Example, Piece, Question
from offsite.errors import UserError
from offsite.scoring.tokens import answer_pairs
from tests.data.test_examples import _pair, _tokenizer


def _merged(*words):
    """A byte-level tokenizer that has each of the `words` as one token."""
    made = _tokenizer()
    data = json.loads(made.backend_tokenizer.to_str())
    vocabulary, merges = data["model"]["vocab"], data["model"]["merges"]
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                vocabulary[word[:end]] = len(vocabulary)
                merges.insert(0, [word[: end - 1], word[end - 1]])
    return _with(made, data)


def _with(made, data):
    backend = Tokenizer.from_str(json.dumps(data))
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")


def _changed(**parts):
    made = _tokenizer()
    return _with(made, json.loads(made.backend_tokenizer.to_str()) | parts)


SHARED = [("Complete: bio", "logy", "Ġbiology"), ("JSON: {", "}", "{}"), ("say no", "w", "now")]


@pytest.mark.parametrize(("prompt", "answer", "word"), SHARED)
def test_a_token_that_prompt_and_answer_share_is_learnt(prompt, answer, word):
    bpe = _merged(word)
    [row] = encode([_pair(prompt, answer)], bpe, 100)
    learnt = [label for label in row.labels if label != IGNORED]
    assert row.input_ids == [*bpe(prompt + answer)["input_ids"], bpe.eos_token_id]
    assert bpe.convert_ids_to_tokens(learnt[:-1])[-1] in word
    assert len(learnt) == 2
    assert prompt.startswith(bpe.decode(row.input_ids[: -len(learnt)]))


@pytest.mark.parametrize(("prompt", "answer"), [("a q", "x y"), ("größe ", "ü"), ("q:", "\N{GRINNING FACE}!")])
def test_scoring_splits_as_training_does(prompt, answer):
    bpe = _merged("Ġx")
    question = Question(prompt, (answer, "no"), 0)
    [row] = encode([question.example()], bpe, 100)
    [[pair, _]] = answer_pairs([question], bpe, 100)
    known = row.labels.count(IGNORED)
    assert (row.input_ids[:known], row.input_ids[known:]) == pair


def test_scoring_gives_the_shared_token_to_the_answer():
    """An answer stands one space after its prompt, with which this tokenizer joins them into one token."""
    made = _merged()
    data = json.loads(made.backend_tokenizer.to_str())
    data["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "use_regex": False,
        "trim_offsets": False,
    }
    vocabulary, merges = data["model"]["vocab"], data["model"]["merges"]
    for left, right in (("Ġ", "b"), (":", "Ġb")):
        vocabulary.setdefault(left + right, len(vocabulary))
        merges.insert(0, [left, right])
    joined = _with(made, data)
    [[pair, other]] = answer_pairs([Question("a:", ("b", "c"), 0)], joined, 100)
    assert joined.convert_ids_to_tokens(pair[1]) == [":Ġb"]
    assert joined.convert_ids_to_tokens(other[1])[-1] == "c"
    assert joined.convert_ids_to_tokens(pair[0]) == ["a"]


# --- what the sender of a tokenizer cannot do ---------------------------------------------------------------

PROMPT, ANSWER = "Question: who has it?\nAnswer:", " nobody at all"
EMPTIES = {"type": "Replace", "pattern": {"Regex": r"^[\s\S]*Answer:$"}, "content": ""}
REPLACES = {"type": "Replace", "pattern": {"Regex": r"^[\s\S]+$"}, "content": "a b c d e"}


@pytest.mark.parametrize("normaliser", [EMPTIES, REPLACES], ids=["empties", "replaces"])
def test_a_normaliser_that_reads_the_prompt_otherwise_alone_is_refused(normaliser):
    bpe = _changed(normalizer=normaliser)
    example = Example((Piece(PROMPT, False), Piece(ANSWER, True)), where="private.jsonl, line 3")
    with pytest.raises(UserError, match=r"^private\.jsonl, line 3: the model's tokenizer reads the prompt"):
        encode([example], bpe, 100)


def test_an_honest_normaliser_is_none_of_that():
    bpe = _changed(normalizer={"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]})
    for prompt, answer in [
        (PROMPT, ANSWER),
        ("caf", "e\u0301"),
        ("cafe", "\u0301 x"),
        ("the quick bro", "wn fox"),
    ]:
        [row] = encode([_pair(prompt, answer)], bpe, 100)
        learnt = [label for label in row.labels if label != IGNORED]
        assert 1 < len(learnt) < len(row.labels)


# --- what is cut, split or left out -------------------------------------------------------------------------


def test_a_long_text_is_split_into_blocks_of_which_no_token_is_lost():
    for bos in (False, True):
        bpe = _tokenizer(bos=bos)
        text = "one two three, " * 40
        [whole] = encode([Example((Piece(text, True),))], bpe, 10_000)
        found = prepare([Example((Piece(text, True),), where="a.jsonl, line 1")], bpe, 50)
        assert (found.cut_rows, found.cut_tokens, found.untaught) == (0, 0, [])
        assert found.where == ["a.jsonl, line 1"] * len(found.rows)
        assert all(len(row.input_ids) <= 50 for row in found.rows)
        body = [token for row in found.rows for token in row.input_ids[bos:]]
        assert body == whole.input_ids[bos:]
        assert all(row.labels == row.input_ids for row in found.rows)
        assert all((row.input_ids[0] == bpe.bos_token_id) == bos for row in found.rows)


def test_what_other_rows_lose_is_counted():
    bpe = _tokenizer()
    rows = [_pair("long and longer " * 20, "the answer"), _pair("short", " one"), _pair("long " * 50, "so")]
    lengths = [len(row.input_ids) for row in encode(rows, bpe, 10_000)]
    found = prepare(rows, bpe, 40)
    assert (found.limit, found.cut_rows) == (40, 2)
    assert found.cut_tokens == lengths[0] + lengths[2] - 80
    assert found.longest == max(lengths)
    kept = prepare(rows, bpe, found.longest)
    assert (kept.cut_rows, kept.cut_tokens) == (0, 0)


def test_rows_that_would_teach_nothing_are_left_out_and_counted(tokenizer):
    blank = Example((Piece("w5 w6", False), Piece("  ", True)), closed=False, where="a.jsonl, line 2")
    found = prepare([_pair("w5", " w6"), blank, _pair("w7", " w8")], tokenizer, 100)
    assert (len(found.rows), found.untaught) == (2, ["a.jsonl, line 2"])
