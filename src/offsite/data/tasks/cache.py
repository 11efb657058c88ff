"""The rows of tasks and texts once read, kept in the cache: one JSON head, then a JSON row on each line."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from offsite.data.tasks.definition import Split, TaskDefinition
from offsite.download.wheels import cache_dir
from offsite.files.atomic import write_text

_FORMAT = 1


class Head(BaseModel):
    """The first line of a cached file: where its rows came from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = _FORMAT
    digest: str
    """Of the definition that read them."""
    source: str
    note: str = ""
    rows: int


def put(
    definition: TaskDefinition, split: Split, source: str, note: str, rows: Iterable[dict[str, object]]
) -> None:
    """Keep the rows of a split, whole or not at all."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    head = Head(digest=definition.digest, source=source, note=note, rows=len(lines))
    write_text(_file(definition, split), "\n".join([head.model_dump_json(), *lines, ""]))


def take(definition: TaskDefinition, split: Split) -> tuple[Head, list[dict[str, object]]] | None:
    """What is kept of a split; None where there is nothing, or nothing whole that this definition read."""
    file = _file(definition, split)
    if not file.exists():
        return None
    try:
        first, *lines = file.read_text(encoding="utf-8").split("\n")[:-1]
        head, rows = Head.model_validate_json(first), [json.loads(line) for line in lines]
    except (ValueError, ValidationError):  # cut short or altered: a cache is read anew, not repaired
        return None
    ours = head.format == _FORMAT and head.digest == definition.digest and head.rows == len(rows)
    return (head, rows) if ours else None


def _file(definition: TaskDefinition, split: Split) -> Path:
    if definition.scoring is None:
        name = definition.name if split == "train" else f"{definition.name}-{split}"
        return cache_dir() / "texts" / f"{name}.jsonl"
    return cache_dir() / "tasks" / f"{definition.name}-{split}.jsonl"
