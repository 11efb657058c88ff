"""`python -m tests.hostile.fuzz`: run cases on every core and count; exit code 1 where one is wrong."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from queue import Empty
from typing import Any


def main() -> int:
    """Run, count, print."""
    options = _options()
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false",
                   "RUST_BACKTRACE": "0", "PYTHONDONTWRITEBYTECODE": "1"}  # fmt: skip
    options.keep.mkdir(parents=True, exist_ok=True)
    from tests.hostile.fuzz import samples

    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        os.environ["OFFSITE_CACHE"] = str(Path(scratch) / "cache")  # no public text to read, whoever runs it
        world = Path(scratch) / "world"
        samples.write(world)
        (Path(scratch) / "found").symlink_to(options.keep.resolve())
        return _summary(_run(Path(scratch), options), options)


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.hostile.fuzz", description=__doc__)
    parser.add_argument("--cases", type=int, default=10**9, help="stop after so many")
    parser.add_argument("--seconds", type=float, default=60.0, help="stop after so long; 0: never")
    parser.add_argument(
        "--first", type=int, default=0, help="the number of the first case: the same number, the same case"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    parser.add_argument(
        "--keep", type=Path, default=Path("fuzz-failures"), help="where failing cases are written"
    )
    return parser.parse_args()


def _run(scratch: Path, options: argparse.Namespace) -> Any:
    """What each case came to, from all workers."""
    from tests.hostile.fuzz.worker import work

    spawn = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[Any] = spawn.Queue()
    workers = [
        spawn.Process(target=work, args=(scratch, number, options, results)) for number in range(options.jobs)
    ]
    for worker in workers:
        worker.start()
    ended = 0
    while ended < len(workers):
        try:
            line = results.get(timeout=5)
        except Empty:
            if any(worker.exitcode for worker in workers):
                sys.exit("A worker of the fuzzer failed.")
            continue
        ended += line is None
        if line is not None:
            yield line


def _summary(lines: Any, options: argparse.Namespace) -> int:
    start, codes, slowest, largest, found = time.monotonic(), Counter(), (0.0, 0), (0.0, 0), []
    alone = 0
    for line in lines:
        if "usual" in line:
            start = time.monotonic()
            continue
        codes[f"{line['command']} {line['code']}"] += 1
        alone += line["alone"]
        slowest = max(slowest, (line["seconds"], line["seed"]))
        largest = max(largest, (line["mb"], line["seed"]))
        if line["wrong"]:
            found.append(line)
            say(f"case {line['seed']}, {line['command']}, {' + '.join(line['mutations'])}: "
                  f"{'; '.join(line['wrong'])[:700]}")  # fmt: skip
    cases, seconds = sum(codes.values()), time.monotonic() - start
    rate = 60 * cases / seconds
    say(f"{cases} cases in {seconds:.0f} s ({rate:.0f} a minute), {alone} of them in a fork of their own")
    say(f"by command and exit code: {json.dumps(dict(sorted(codes.items())))}")
    say(f"slowest: {slowest[0]:.1f} s (case {slowest[1]}); largest: {largest[0]:.0f} MiB (case {largest[1]})")
    say(f"{len(found)} wrong" + (f", in {options.keep}" if found else ""))
    return 1 if found or not cases else 0


if __name__ == "__main__":
    sys.exit(main())
