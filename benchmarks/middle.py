"""How the middle shrinks with `keep`: its parameters, and the seconds of a tuning step through the emulator.

    python benchmarks/middle.py MODEL PROFILE [--steps 12]

A step is the forward and backward pass of the loss that `tune` minimises, on a batch of 8 examples of ARC-Easy;
every keep takes it in turn on the same batch. Prints medians as ratios to the first keep. Use a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path

from offsite import METHODS, Emulator, Profile, TuneConfig, build, load
from offsite.data import tasks
from offsite.data.encoding import encode
from offsite.data_owner.trainable import adapter_trainable
from offsite.model.decoder import Decoder
from offsite.model.precision import attention_for, autocast
from offsite.training.batches import Batch, answer_loss, pad


def step(emulator: Emulator, batch: Batch) -> float:
    """Seconds of a forward and a backward pass."""
    placed = {name: tensor.to(emulator.model.device) for name, tensor in batch.items()}
    start = time.perf_counter()
    with autocast(emulator.model):
        loss = answer_loss(emulator.model, placed)
    loss.backward()  # type: ignore[no-untyped-call]
    loss.item()
    took = time.perf_counter() - start
    emulator.model.zero_grad(set_to_none=True)
    return took


def measure(asked: argparse.Namespace) -> list[dict[str, float]]:
    model, tokenizer = load(asked.model)
    profile = Profile.load(asked.profile)
    profile.check_model(model)
    method = METHODS[profile.method](**profile.knobs)
    emulators = [
        build(model, profile.split, method.plan(profile, keep), method=method.name, tokenizer=tokenizer)
        for keep in asked.keeps
    ]
    rows = encode(tasks.examples(asked.data)[: asked.batch_size * asked.steps], tokenizer, 512)
    longest = max(len(row.input_ids) for row in rows)
    collate = pad(tokenizer.pad_token_id or 0)
    starts = range(0, len(rows), asked.batch_size)
    batches = [collate([row._asdict() for row in rows[i : i + asked.batch_size]]) for i in starts]
    times: list[list[float]] = [[] for _ in emulators]
    with ExitStack() as stack:
        for emulator in emulators:
            stack.enter_context(adapter_trainable(emulator, TuneConfig()))
            stack.enter_context(attention_for(emulator.model, longest))
            step(emulator, batches[0])  # warm up
        for batch in batches:
            for emulator, taken in zip(emulators, times, strict=True):
                taken.append(step(emulator, batch))
    decoders = [Decoder.of(emulator.model) for emulator in emulators]
    sizes = [decoder.stored(profile.split.middle(len(decoder))) for decoder in decoders]
    return [
        {
            "keep": keep,
            "parameters": size,
            "parameters_ratio": size / sizes[0],
            "seconds": statistics.median(taken),
            # of the same batch, pair by pair
            "seconds_ratio": statistics.median(a / b for a, b in zip(taken, times[0], strict=True)),
        }
        for keep, size, taken in zip(asked.keeps, sizes, times, strict=True)
    ]


def main(asked: argparse.Namespace) -> None:
    points = measure(asked)
    print(f"{'keep':>6}{'parameters':>14}{'ratio':>8}{'s a step':>10}{'ratio':>8}")
    for p in points:
        print(
            f"{p['keep']:6.2f}{p['parameters']:14,}{p['parameters_ratio']:8.3f}"
            f"{p['seconds']:10.3f}{p['seconds_ratio']:8.3f}"
        )
    if asked.json:
        asked.json.write_text(json.dumps(points, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", help="a folder or a named model")
    parser.add_argument("profile", type=Path, help="a profile of it")
    parser.add_argument("--keeps", nargs="+", type=float, default=[1.0, 0.8, 0.7, 0.6, 0.5, 0.4])
    parser.add_argument("--data", default="arc_easy", help="a task or a data file")
    parser.add_argument("--steps", type=int, default=12, help="batches")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    main(parser.parse_args())
