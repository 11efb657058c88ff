"""Public text in blocks: sources in turn, rows whole, chats as the tokenizer's template writes them."""

from __future__ import annotations

import pytest

from offsite.data.blocks import Mixed, Rows, Running, blocks
from offsite.data.examples import Example, Piece
from offsite.errors import UserError
from tests.data.test_examples import CHATML, _tokenizer
from tests.families import tiny_tokenizer

EOS = 2


def row(first, words):
    """`words` words, of which the first marks the row: a prompt of one word, and the answer."""
    return Example((Piece(f"w{first}", False), Piece(" w5" * (words - 1), True)), closed=False)


def starts(block):
    """The marks of the rows that begin in a block."""
    return [int(token) for token in block if token > 9]


def test_sources_have_equal_shares_whatever_their_sizes():
    long = Running("long", tuple(["w10 " * 30] * 40))
    short = Running("short", ("w11 " * 33,))
    rows = Rows("rows", [row(12, 9)] * 9)
    found = blocks(Mixed("all", (long, short, rows)), tiny_tokenizer(), 10, 24)
    assert [{10: "long", 11: "short", 12: "rows"}[starts(block)[0]] for block in found] == [
        "long", "short", "rows",
    ] * 8  # fmt: skip
    assert len(blocks(short, tiny_tokenizer(), 10, None)) == 3  # it began again
    both = blocks(Mixed("all", (long, long, short)), tiny_tokenizer(), 10, 24)
    assert sum(starts(block)[0] == 10 for block in both) == 16


def test_all_of_several_sources_ends_with_the_longest():
    long, short = Running("long", ("w10 " * 99,)), Running("short", ("w11 " * 19,))
    found = blocks(Mixed("all", (short, long)), tiny_tokenizer(), 10, None)
    assert [starts(block)[0] for block in found] == [11, 10] * 10 + [11]
    with pytest.raises(UserError, match="makes 21 blocks of 10 tokens where 99 are wanted"):
        blocks(Mixed("all", (short, long)), tiny_tokenizer(), 10, 99)
    assert len(blocks(Mixed("all", (short, long)), tiny_tokenizer(), 10, 99, fewer=True)) == 21


def test_a_source_without_a_block_of_its_own_is_named():
    empty = Rows("tiny.jsonl", [row(12, 3)])
    with pytest.raises(UserError, match=r"tiny\.jsonl makes no block of 10 tokens by itself; give more of it"):
        blocks(Mixed("all", (Running("long", ("w10 " * 99,)), empty)), tiny_tokenizer(), 10, 4)


def test_rows_are_whole_and_come_once():
    sizes = [3, 5, 8, 2, 6, 4, 7, 3, 5, 9, 4, 1] * 3
    rows = [row(10 + number, size) for number, size in enumerate(sizes)]
    found = blocks(Rows("rows", rows), tiny_tokenizer(), 16, None)
    whole = []
    for block in found.tolist():
        assert block[-1] == EOS, "no row is cut"
        while block:
            end = block.index(EOS)
            whole.append(block[:end])
            block = block[end + 1 :]
    assert len({part[0] for part in whole}) == len(whole)
    assert all(len(part) == sizes[part[0] - 10] for part in whole)
    assert whole[0][0] == 10, "the first that waits comes first"
    assert len(whole) > 0.8 * len(rows)


def test_where_no_rows_fill_a_block_the_beginning_of_one_does_and_it_still_comes():
    rows = [row(10 + number, 6) for number in range(20)]  # 7 tokens each
    found = blocks(Rows("rows", rows), tiny_tokenizer(), 10, 9)
    assert [starts(block) for block in found][:3] == [[10, 11], [11, 12], [12, 13]]


def test_of_a_row_that_is_longer_than_a_block_the_answer_stays():
    asked = Example((Piece("w10 " * 30, False), Piece(" w20", True)), closed=False)
    (first,) = blocks(Rows("rows", [asked]), tiny_tokenizer(), 8, 1)
    assert first.tolist() == [10] * 6 + [20, EOS]
    plain = Example((Piece("w10 " * 17, True),))
    assert blocks(Rows("rows", [plain] * 2), tiny_tokenizer(), 9, None).shape == (4, 9)


def test_the_last_blocks_are_none_of_the_first():
    rows = Rows("rows", [row(10 + number, 7) for number in range(80)])
    text = Running("text", tuple(f"w{100 + number % 20} w{10 + number}" for number in range(80)))
    mixed = Mixed("both", (rows, text))
    first, last = (blocks(mixed, tiny_tokenizer(), 8, 20, last=end) for end in (False, True))
    assert not {tuple(block) for block in first.tolist()} & {tuple(block) for block in last.tolist()}
    assert starts(blocks(rows, tiny_tokenizer(), 8, 2, last=True)[-1]) == [89]


CHAT = Example((Piece("Hi there", False, "user"), Piece("Hello", True, "assistant")))


@pytest.mark.parametrize(
    ("template", "written"),
    [
        (CHATML, None),
        (None, "User: Hi there\nAssistant: Hello</s>"),
        ("{{ raise_exception('no chats') }}", "User: Hi there\nAssistant: Hello</s>"),
    ],
)
def test_chats_are_written_by_the_template_or_in_a_plain_form(template, written):
    tokenizer = _tokenizer(template=template)
    turns = [{"role": piece.role, "content": piece.text} for piece in CHAT.pieces]
    written = written or tokenizer.apply_chat_template(turns, tokenize=False)
    length = len(tokenizer(written)["input_ids"])
    (block,) = blocks(Rows("chats", [CHAT]), tokenizer, length, 1)
    assert tokenizer.decode(block) == written
