"""Rows of a file: every format gives the same rows, and every refusal names the file and the line."""

from __future__ import annotations

import csv
import json

import pytest

from offsite.data.examples import Question, read_examples, read_questions
from offsite.data.rows import Row, is_data_file, read_rows, read_utf8
from offsite.errors import UserError

ROWS = [
    {"prompt": "", "completion": 'größe, "x"\n2\u2028\x0b'},
    {"prompt": "p", "completion": "c", "note": "kept"},
    {"prompt": "p", "choices": ["a", "b"], "answer": 1},
    {"messages": [{"role": "user", "content": "hi"}]},
]


def _columns(path):
    return [row.columns for row in read_rows(path)]


def _jsonl(path, rows):
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", "utf-8")
    return path


def _csv(path, rows):
    names = ["prompt", "completion", "note", "choices", "answer", "messages"]
    as_text = lambda value: value if isinstance(value, str) else json.dumps(value)  # noqa: E731
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, names, delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows({name: as_text(value) for name, value in row.items()} for row in rows)
    return path


def test_every_format_gives_the_same_rows(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.Table.from_pylist(ROWS, _schema(pa)), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_text(json.dumps(ROWS), "utf-8")
    _jsonl(tmp_path / "a.JSONL", ROWS)
    assert _columns(tmp_path / "a.JSONL") == ROWS
    assert _columns(tmp_path / "a.json") == ROWS
    assert _columns(tmp_path / "a.parquet") == ROWS
    for name in ("a.csv", "a.tsv"):
        # an empty cell is no cell, save a prompt's: a row of another kind has an empty prompt there
        wanted = [{"prompt": ""} | row for row in ROWS]
        assert _columns(_csv(tmp_path / name, ROWS)) == wanted


def _schema(pa):
    turn = pa.struct([("role", pa.string()), ("content", pa.string())])
    kinds = {"choices": pa.list_(pa.string()), "answer": pa.int64(), "messages": pa.list_(turn)}
    names = ["prompt", "completion", "note", "choices", "answer", "messages"]
    return pa.schema([(name, kinds.get(name, pa.string())) for name in names])


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "x"}\r\n{"text": "y"}\r\n')
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext\r\nx\r\ny\r\n")
    assert _columns(tmp_path / "a.jsonl") == _columns(tmp_path / "a.csv") == [{"text": "x"}, {"text": "y"}]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": \r\n',
            r"line 2: .*one JSON object per line \(\D*, column 10\)\.$",
        ),
        ("a.jsonl", b'{"text": "x"}\n\n[1]\n', r"a\.jsonl, line 3: expected a JSON object, found a list"),
        ("a.jsonl", b'{"text": "x"}\n{"text": "\xff"}\n', r"a\.jsonl, line 2: not UTF-8"),
        ("a.jsonl", b"[" * 100_000, r"a\.jsonl, line 1: .*lists within lists"),
        ("a.jsonl", b'{"n": ' + b"1" * 5000 + b"}", r"a\.jsonl, line 1: .*digits"),
        ("a.jsonl", b"\n \n", r"a\.jsonl holds no rows"),
        ("a.jsonl", b"", r"a\.jsonl holds no rows"),
        ("a.json", b'{"text": "x"}', r"a\.json: expected a JSON list of objects, found an object"),
        ("a.json", b'[{"text": "x"}, 3]', r"a\.json, row 2: expected a JSON object, found a number"),
        ("a.json", b"[\n1,\n}", r"a\.json: .*line 3, column 1"),
        ("a.json", b"[}", r"a\.json: .*line 1, column 2"),
        ("a.csv", b"text\n", r"a\.csv holds no rows"),
        ("a.csv", b"prompt,completion\na,b\nc\n", r"a\.csv, line 3: expected as many cells"),
        ("a.csv", b'prompt,completion\n"a\nb",c\nd,e,f\n', r"a\.csv, line 4: expected as many cells"),
        ("a.csv", b'text\nx\n"y\n', r"a\.csv, line 3: not a well-formed CSV row"),
        ("a.csv", b"text,note,text\nx,y,z\n", r"a\.csv, line 1: the header has the column 'text' 2 times"),
        ("a.tsv", b"text\ttext\nx\ty\n", r"a\.tsv, line 1: the header has the column 'text' 2 times"),
        ("a.csv", b"text,\nx,y\n", r"a\.csv, line 1: a column of the header has no name"),
        ("a.tsv", b"prompt\tcompletion\na\tb\nc\n", r"a\.tsv, line 3: expected as many cells"),
        ("a.tsv", b'text\n"Tis cold\nand dark"\n', r"a\.tsv, line 2: .* one row or several; write .* JSONL"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": "y", "text": "z"}\n',
            r"line 2: an object has the key 'text' twice",
        ),
        (
            "a.jsonl",
            b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
            r"line 1: .*'content' twice",
        ),
        ("a.json", b'[{"text": "y", "text": "z"}]', r"a\.json: an object has the key 'text' twice"),
        ("a.csv", b'prompt,choices,answer\np,"[{""a"": 1, ""a"": 2}]",0\n', r"a\.csv, line 2: .*'a' twice"),
        ("a.csv", b"prompt,choices,answer\np,one,0\n", r'a\.csv, line 2: expected "choices" to hold JSON'),
        ("a.csv", b'answer\n"[1\n,"\n', r'a\.csv, line 2: expected "answer" to hold JSON \(\D*, column 5\)'),
        ("a.csv", b"text\n\xff\xfe\n", r"a\.csv: not UTF-8 text \(byte 6\)"),
        ("a.parquet", b"PAR1 not at all", r"a\.parquet is not a readable parquet file"),
        ("a.xlsx", b"", r"a\.xlsx is of no known format \('\.xlsx'\)"),
        ("notes.txt", b"", r"\('\.txt'\); give rows of data as \.jsonl, \.json, \.csv, \.tsv or \.parquet\.$"),
        ("data", b"", r"data is of no known format \('data'\)"),
    ],
)
def test_what_is_malformed_is_refused_in_one_sentence(tmp_path, name, content, said):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=said) as refused:
        list(read_rows(path))
    assert "\n" not in str(refused.value)


QUOTES = [
    ('"Tis cold', "yes"),
    ("plain", "no"),
    ('she said no"', 'and "left" '),
    ('"both"', "ends"),
    ('"a ""b"" c"', '"'),
    ("", '""x'),
]


def test_quotes_in_the_text_of_a_tsv_merge_no_rows(tmp_path):
    for end in ("\n", "\r\n"):
        text = end.join("\t".join(row) for row in [("prompt", "completion"), *QUOTES]) + end
        (tmp_path / "a.tsv").write_bytes(text.encode())
        found = [(row.columns["prompt"], row.columns["completion"]) for row in read_rows(tmp_path / "a.tsv")]
        assert found == [*QUOTES[:3], ("both", "ends"), ('a "b" c', '"'), QUOTES[5]]
        where = [row.where for row in read_rows(tmp_path / "a.tsv")]
        assert where == [f"a.tsv, line {number}" for number in range(2, 8)]


def test_the_lines_of_a_tsv_are_counted_through_cells_that_span_some(tmp_path):
    text = 'prompt\tcompletion\n\n"a\nb"\tc\n"d\te"\tf\ng\th"\ni\n'
    (tmp_path / "a.tsv").write_text(text)
    rows = read_rows(tmp_path / "a.tsv")
    assert [next(rows) for _ in range(3)] == [
        Row("a.tsv, line 3", {"prompt": "a\nb", "completion": "c"}),
        Row("a.tsv, line 5", {"prompt": "d\te", "completion": "f"}),
        Row("a.tsv, line 6", {"prompt": "g", "completion": 'h"'}),
    ]
    with pytest.raises(UserError, match=r"a\.tsv, line 7: expected as many cells"):
        next(rows)


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_long_cell_is_read_and_no_limit_of_the_process_is_left_changed(tmp_path, name):
    before = csv.field_size_limit()
    (tmp_path / name).write_text("text\n" + "x" * 150_000 + "\n")
    assert _columns(tmp_path / name) == [{"text": "x" * 150_000}]
    assert csv.field_size_limit() == before


def test_letters_that_are_no_line_ends_and_zeros_are_text(tmp_path):
    text = "a\x00b\x85c\x0bd"
    for name in ("a.csv", "a.tsv"):
        (tmp_path / name).write_bytes(f"text\n{text}\n".encode())
        assert _columns(tmp_path / name) == [{"text": text}]


def test_a_table_of_old_macs_has_rows(tmp_path):
    for name, between in (("a.csv", ","), ("a.tsv", "\t")):
        (tmp_path / name).write_bytes(f"prompt{between}completion\ra{between}b\rc{between}d\r".encode())
        assert [row["completion"] for row in _columns(tmp_path / name)] == ["b", "d"]


def test_a_parquet_file_with_a_column_twice_is_refused(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = pa.Table.from_arrays([pa.array(["x"]), pa.array(["y"])], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a\.parquet has the column 'text' 2 times"):
        list(read_rows(tmp_path / "a.parquet"))


@pytest.mark.parametrize("answer", ["1", "1.0", "1e0"])
def test_the_number_of_an_answer_may_be_written_as_a_fraction(tmp_path, answer):
    row = f'{{"prompt": "p", "choices": ["a", "b"], "answer": {answer}}}'
    (tmp_path / "a.jsonl").write_text(row)
    (tmp_path / "a.csv").write_text(f'prompt,choices,answer\np,"[""a"", ""b""]",{answer}\n')
    for name in ("a.jsonl", "a.csv"):
        assert read_questions(tmp_path / name) == [Question("p", ("a", "b"), 1)]


@pytest.mark.parametrize("answer", ["0.5", "NaN", "Infinity", "2.0", "true"])
def test_other_numbers_are_no_answers(tmp_path, answer):
    (tmp_path / "a.jsonl").write_text(f'{{"prompt": "p", "choices": ["a", "b"], "answer": {answer}}}')
    with pytest.raises(UserError, match=r'line 1: expected "answer" to be a number from 0 to 1'):
        read_questions(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
    ("columns", "ends"),
    [
        ({"promt": "p", "completion": "c"}, 'found nothing; by "promt", did you mean "prompt"?'),
        (
            {"prompt": "p", "completoin": "c"},
            'found "prompt", "completoin"; by "completoin", did you mean "completion"?',
        ),
        ({"note": "n", "Text": "t"}, 'found "note", "Text"; by "Text", did you mean "text"?'),
        (
            {"prompt": "p", "choices": ["a", "b"], "anwser": 0},
            'found None; by "anwser", did you mean "answer"?',
        ),
        ({"messages": "hi", "message": "hi"}, 'to be a list of {"role", "content"}.'),
        ({"prompt": 5, "completion": "c", "promt": "p"}, "found a number."),
        ({"note": "n"}, 'found "note".'),
    ],
)
def test_a_column_of_nearly_a_known_name_is_asked_about(tmp_path, columns, ends):
    _jsonl(tmp_path / "a.jsonl", [columns])
    with pytest.raises(UserError) as refused:
        read_examples(tmp_path / "a.jsonl")
    assert str(refused.value).endswith(ends)


def test_no_file_and_a_folder_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"no such file: .*gone\.jsonl"):
        list(read_rows(tmp_path / "gone.jsonl"))
    with pytest.raises(UserError, match="is a folder"):
        list(read_rows(tmp_path))
    with pytest.raises(UserError, match="no such file"):
        read_utf8(tmp_path / "gone.txt")


def test_a_word_is_a_file_by_suffix_slash_or_presence(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_data_file("gone.jsonl")
    assert is_data_file("some/where")
    assert not is_data_file("arc_easy")
    (tmp_path / "arc_easy").touch()
    assert is_data_file("arc_easy")
