"""Finished stages of experiments, kept in a folder under what decides them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from offsite.files.atomic import write_text

Key = Mapping[str, Any]
"""What decides a value, as JSON; its `stage` names the kind of value."""


class Cache:
    """Finished stages in a folder, found again by what decides them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def once(self, key: Key, make: Callable[[], Any]) -> Any:
        """The JSON value of `key`, made now unless an earlier call, or an earlier run, did."""
        return self.timed(key, make)[0]

    def timed(self, key: Key, make: Callable[[], Any]) -> tuple[Any, float]:
        """The value as of `once`, and how many seconds it took to make, whenever that was."""
        file = self.place(key, ".json")
        if not file.is_file():
            start = time.monotonic()
            value = make()
            stored = {"key": key, "value": value, "seconds": time.monotonic() - start}
            write_text(file, json.dumps(stored))
        stored = json.loads(file.read_text(encoding="utf-8"))
        return stored["value"], stored["seconds"]

    def has(self, key: Key) -> bool:
        """Whether `once` would find the value there."""
        return self.place(key, ".json").is_file()

    def forget(self, key: Key) -> None:
        """Let the value be made anew."""
        self.place(key, ".json").unlink(missing_ok=True)

    def place(self, key: Key, ending: str) -> Path:
        """Where something that belongs to `key` lies."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{key['stage']}-{digest[:32]}{ending}"
