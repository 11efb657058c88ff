"""CSV and TSV files as rows of cells, each with the line on which it begins."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from threading import Lock

from offsite.errors import UserError

_LIMIT = Lock()  # csv has one limit for the whole process
_QUOTED = re.compile(r'"((?:[^"]|"")*+)"(?=\t|\r?\n|\r|$)')
_WITHIN_LINE = re.compile(r'"((?:[^"\r\n]|"")*+)"(?=\t|\r?\n|\r|$)')
_PLAIN = re.compile(r"[^\t\r\n]*+")
_BREAK = re.compile(r"\r?\n|\r")

Line = tuple[int, list[str]]


def read_table(text: str, name: str, *, tabs: bool) -> Iterator[tuple[str, dict[str, str]]]:
    """Where each row of a CSV file's text (of a TSV file's, if `tabs`) begins, and its cells by column.

    Raises:
        UserError: quotes that are not closed, a row with more or fewer cells than the header, a header with a
            column that has no name or stands there twice.
    """
    lines = iter(_tsv(text, name) if tabs else _csv(text, name))
    _, header = next(lines, (1, []))
    _check_header(header, f"{name}, line 1")
    for number, cells in lines:
        where = f"{name}, line {number}"
        if len(cells) != len(header):
            raise UserError(f"{where}: expected as many cells as the header has.")
        yield where, dict(zip(header, cells, strict=True))


def _check_header(header: list[str], where: str) -> None:
    if header and not all(name.strip() for name in header):
        raise UserError(f"{where}: a column of the header has no name; name each of them.")
    name, times = Counter(header).most_common(1)[0] if header else ("", 0)
    if times > 1:
        raise UserError(f"{where}: the header has the column {name!r:.60} {times} times; keep one of them.")


def _csv(text: str, name: str) -> list[Line]:
    found: list[Line] = []
    with _LIMIT:
        before = csv.field_size_limit(max(len(text), 1))
        try:
            reader = csv.reader(io.StringIO(text, newline=""), strict=True)
            while True:
                number = reader.line_num + 1  # a row may span lines, so its first one is named
                try:
                    cells = next(reader)
                except StopIteration:
                    return found
                except csv.Error as error:
                    raise UserError(f"{name}, line {number}: not a well-formed CSV row ({error}).") from error
                if cells:
                    found.append((number, cells))
        finally:
            csv.field_size_limit(before)


def _tsv(text: str, name: str) -> Iterator[Line]:
    """Rows of a TSV file, in which a quotation mark is one, unless a whole cell stands in quotation marks.

    A cell in quotation marks may span lines. Where each of the lines could be a row, rows are meant; with one
    column that cannot be told, which is refused.
    """
    place, number, width = 0, 1, 0
    while place < len(text):
        cells, end = _row(text, place, _QUOTED)
        lines = _BREAK.split(text[place:end])
        if len(lines) > 1 and {line.count("\t") + 1 for line in lines} == {width}:
            if width == 1:
                raise UserError(
                    f"{name}, line {number}: a cell begins with a quotation mark that a later line closes, "
                    "so it may be one row or several; write such text as JSONL."
                )
            cells, end = _row(text, place, _WITHIN_LINE)
            lines = lines[:1]
        if cells != [""]:
            width = width or len(cells)
            yield number, cells
        number += len(lines)
        after = _BREAK.match(text, end)
        place = after.end() if after else end


def _row(text: str, place: int, quoted: re.Pattern[str]) -> tuple[list[str], int]:
    """The cells of the row at `place`, and where it ends."""
    cells = []
    while True:
        match = quoted.match(text, place) if text.startswith('"', place) else None
        if match:
            cells.append(match[1].replace('""', '"'))
        else:
            match = _PLAIN.match(text, place)
            assert match
            cells.append(match[0])
        place = match.end()
        if not text.startswith("\t", place):
            return cells, place
        place += 1
