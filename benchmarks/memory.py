"""Memory that `compress` takes over the loaded model: peak resident size against the emulator's size.

    python benchmarks/memory.py [MODEL] [KEEP]

Prints one JSON line. The target is a ratio of at most 1.1 (the emulator's size plus a tenth).
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import psutil

from offsite import METHODS, Split, build, load


class Peak(threading.Thread):
    """The greatest resident size of this process, looked at every two milliseconds."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.process, self.peak, self.on = psutil.Process(), 0, True

    def run(self) -> None:  # noqa: D102
        while self.on:
            self.peak = max(self.peak, self.process.memory_info().rss)
            time.sleep(0.002)


def main(word: str = "smollm2-135m", keep: float = 0.7) -> None:
    model, tokenizer = load(word)
    for parameter in model.parameters():
        parameter.sum()  # touch every page: weights read lazily from a file are not resident before
    before = psutil.Process().memory_info().rss
    watch = Peak()
    watch.start()
    with tempfile.TemporaryDirectory() as folder:
        method = METHODS["uniform"]()
        blueprint = method.plan(method.profile(model, Split()), keep)
        emulator = build(model, Split(), blueprint, method="uniform", tokenizer=tokenizer)
        emulator.save(Path(folder) / "emulator")
        size = sum(file.stat().st_size for file in (Path(folder) / "emulator").iterdir())
    watch.on = False
    watch.join()
    over = watch.peak - before
    figures = {"model": word, "keep": keep, "before_mb": before / 1e6, "emulator_mb": size / 1e6}
    print(json.dumps(figures | {"over_mb": over / 1e6, "ratio": round(over / size, 3)}))


if __name__ == "__main__":
    main(*sys.argv[1:2], *map(float, sys.argv[2:3]))
