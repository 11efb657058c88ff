"""The rows of a data file, whatever its format; what is wrong with one is said with its file and line."""

from __future__ import annotations

import difflib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from offsite.data.tables import read_table
from offsite.errors import UserError

_JSON_CELLS = ("messages", "choices", "answer")  # a CSV cell is text; these columns hold JSON in it


@dataclass(frozen=True)
class Row:
    """One row of a data file: its columns (those that hold nothing left out) and where it stands."""

    where: str
    """The file's name and the line, as `private.jsonl, line 7`."""
    columns: dict[str, object]

    def refused(self, why: str) -> UserError:
        """The refusal of this row; `why` says what was expected, with the names of columns in double quotes."""
        return UserError(f"{self.where}: {why}{self._misspelt(why)}")

    def text(self, column: str, *, blank: bool = False) -> str:
        """The string in `column`; a UserError unless it is text that is not blank (or may be `blank`)."""
        return self.checked(self.columns.get(column), f'"{column}"', blank=blank)

    def checked(self, value: object, what: str, *, blank: bool = False) -> str:
        """`value` as text; a UserError that names it `what` otherwise."""
        if not isinstance(value, str):
            raise self.refused(f"expected {what} to be a string, found {_kind(value)}")
        if not blank and not value.strip():
            raise self.refused(f"{what} is blank")
        if any("\ud800" <= letter <= "\udfff" for letter in value):
            raise self.refused(f"{what} holds half of a surrogate pair, which is no text")
        return value

    def _misspelt(self, why: str) -> str:
        """The end of a refusal: which column may be meant by one that is there under a similar name."""
        missing = [name for name in re.findall(r'"(\w+)"', why) if name not in self.columns]
        for found in self.columns:
            near = difflib.get_close_matches(found, missing, n=1, cutoff=0.75)
            if near:
                return f'; by "{found}", did you mean "{near[0]}"?'
        return "."


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a `.jsonl`, `.json` (a list), `.csv`, `.tsv` or `.parquet` file, one at a time.

    Raises:
        UserError: no such file, an unknown suffix, no rows, text that is not UTF-8, or a malformed row.
    """
    reader = _reader(path)
    row = None
    for row in reader(path):
        yield row
    if row is None:
        raise UserError(f"{path.name} holds no rows; give it at least one.")


def is_data_file(word: str) -> bool:
    """Whether `word` can only mean a file: by its suffix, by its slashes, or because it is there."""
    path = Path(word)
    return path.suffix.lower() in _READERS or path.name != word or path.exists()


def read_utf8(path: Path) -> str:
    """The whole text of a file; UserErrors as of `read_rows`."""
    check_file(path)
    return _decoded(path.read_bytes(), path.name)


def check_file(path: Path) -> None:
    """A UserError unless a file stands at `path`."""
    if path.is_dir():
        raise UserError(f"{str(path)!r} is a folder where a data file is wanted; name a file in it.")
    if not path.exists():
        raise UserError(f"There is no such file: {str(path)!r}.")


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    check_file(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        wrong, (*most, last) = path.suffix or path.name, _READERS
        raise UserError(
            f"{path.name} is of no known format ({wrong!r}); give rows of data as {', '.join(most)} or {last}."
        )
    return reader


def _jsonl(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            where = f"{path.name}, line {number}"
            text = _decoded(line, where)
            if text.strip():
                yield _row(where, _parsed(text.rstrip("\r\n"), where, "one JSON object per line"))


def _json_list(path: Path) -> Iterator[Row]:
    rows = _parsed(read_utf8(path), path.name, "a JSON list of objects", lines=True)
    if not isinstance(rows, list):
        raise UserError(f"{path.name}: expected a JSON list of objects, found {_kind(rows)}.")
    for number, row in enumerate(rows, 1):
        yield _row(f"{path.name}, row {number}", row)


def _csv(path: Path) -> Iterator[Row]:
    tabs = path.suffix.lower() == ".tsv"
    for where, cells in read_table(read_utf8(path), path.name, tabs=tabs):
        yield _row(where, _cells(cells, where))


def _cells(cells: dict[str, str], where: str) -> dict[str, object]:
    filled = {name: cell for name, cell in cells.items() if cell or name == "prompt"}
    return {
        name: _parsed(cell, where, f'"{name}" to hold JSON') if name in _JSON_CELLS else cell
        for name, cell in filled.items()
    }


def _parquet(path: Path) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path.name} needs pyarrow; pip install 'offsite[data]'.") from error
    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            _check_names(file.schema_arrow.names, path.name)
            for batch in file.iter_batches():
                for columns in batch.to_pylist():
                    number += 1
                    yield _row(f"{path.name}, row {number}", columns)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path.name} is not a readable parquet file; write it anew.") from error


def _check_names(names: Sequence[str], where: str) -> None:
    name, times = Counter(names).most_common(1)[0] if names else ("", 0)
    if times > 1:
        raise UserError(f"{where} has the column {name!r:.60} {times} times; keep one of them.")


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl,
    ".json": _json_list,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}


_KIND_NAMES: dict[type, str] = {
    type(None): "nothing",
    bool: "true or false",
    int: "a number",
    float: "a number",
    str: "a string",
    list: "a list",
    dict: "an object",
}


def _row(where: str, columns: object) -> Row:
    if not isinstance(columns, dict):
        raise UserError(f"{where}: expected a JSON object, found {_kind(columns)}.")
    return Row(where, {name: value for name, value in columns.items() if value is not None})


def _decoded(raw: bytes, where: str) -> str:
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 text (byte {error.start + 1}); save it as UTF-8.") from error


def _parsed(text: str, where: str, expected: str, *, lines: bool = False) -> object:
    """The JSON value of `text`; a refusal names the column, and the line where `where` does not (`lines`)."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except _TwiceError as error:
        raise UserError(f"{where}: an object has the key {error} twice; keep one of them.") from error
    except RecursionError as error:
        raise UserError(f"{where}: expected {expected}, found lists within lists without end.") from error
    except json.JSONDecodeError as error:
        spot = f"line {error.lineno}, column {error.colno}" if lines else f"column {error.pos + 1}"
        raise UserError(f"{where}: expected {expected} ({error.msg}, {spot}).") from error
    except ValueError as error:
        raise UserError(f"{where}: holds a number of more digits than can be read.") from error


class _TwiceError(Exception):
    """A key that an object of JSON has twice, of which Python would take the last."""


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _TwiceError(repr(next(name for name, times in Counter(k for k, _ in pairs).items() if times > 1)))
    return found


def _kind(value: object) -> str:
    return _KIND_NAMES.get(type(value), type(value).__name__)
