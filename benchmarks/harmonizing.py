"""What ScaleOT's knobs are worth: a training for each variant, and how true its emulators are.

    python benchmarks/harmonizing.py smollm2-135m "" grouping=contiguous alone=0 rank=256,lr=3e-3 seed=1,text=2

A variant is a list of knobs of `scaleot`; none is the default with the --steps given. Three words are the
benchmark's own: `text=2` trains on another stretch of the text, and `order=influence` and `order=gradient`
learn no scores: layers are ranked by block influence (or by the norm of their gradient), mixed stacks are drawn
by that, and the time that judging would have taken goes into more steps.

For each variant, with a quarter and half of the layers replaced and attention whole: the loss on held-out
text, the cosine and relative error of the adapter's gradient; and the rank correlation of its scores with the
first variant's. Each row is written to the output as it comes; run again, only what lacks is made.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import Tensor, tensor
from transformers import PreTrainedModel

from importance import block_influence, gradient_norm, likeness  # the benchmark beside this one
from offsite.data import tasks
from offsite.data.blocks import blocks
from offsite.files.atomic import write_text
from offsite.model import loading
from offsite.model.decoder import Decoder
from offsite.model.split import Split
from offsite.owner.build import build
from offsite.owner.fidelity import fidelity, held_out
from offsite.owner.harmonize import _Training
from offsite.owner.importance import Importance
from offsite.owner.methods import method_named
from offsite.owner.methods.scaleot import ScaleOT
from offsite.owner.profile import Profile
from offsite.provenance import record

SHARES = (0.25, 0.5)
HELD = 16  # blocks of held-out text
JUDGING = 0.45  # the share of a step's time that judging takes (docs/LOG.md)
RANKERS = {"influence": block_influence, "gradient": gradient_norm}

Row = dict[str, Any]


@contextmanager
def fixed(order: Tensor | None) -> Iterator[None]:
    """Within, scores are these ranks from -4 to 4 and never learn; with no order, all is as it is."""
    if order is None:
        yield
        return
    ranks = order.argsort().argsort().float()
    scores = 8 * ranks / (len(ranks) - 1) - 4

    def start(self: Importance, _: Tensor) -> None:
        self.scores.copy_(scores)

    with patch.object(Importance, "start", start), patch.object(_Training, "_judge", lambda *_: 0.0):
        yield


def variant(word: str, steps: int) -> tuple[ScaleOT, str, int]:
    """The method, the order if it is a fixed one, and which stretch of the text."""
    knobs = dict(knob.split("=", 1) for knob in word.split(",") if knob)
    order, text = knobs.pop("order", ""), int(knobs.pop("text", 1))
    knobs = {"steps": str(steps), "norm": "plain"} | knobs
    if order:
        knobs["steps"] = str(round(int(knobs["steps"]) / (1 - JUDGING)))
        knobs["alone"] = "1"
    method = method_named("scaleot", [f"{name}={value}" for name, value in knobs.items()])
    assert isinstance(method, ScaleOT)
    return method, order, text


def measured(model: PreTrainedModel, profile: Profile, held: Tensor) -> Row:
    """How true the emulators of a profile are."""
    row: Row = {"scores": profile.tensors["harmonizers/scores"].tolist()}
    for share in SHARES:
        blueprint = replace(ScaleOT(beta=1.0), alpha=share).plan(profile, 1.0)
        found = fidelity(build(model, profile.split, blueprint), model, held)
        row[f"{share:g}"] = {
            "loss": found.loss,
            "cosine": found.cosine,
            "relative_error": found.relative_error,
        }
    return row


def trained(word: str, model: PreTrainedModel, tokens: Tensor, args: Any) -> tuple[Profile, float]:
    """A profile of the variant, and the seconds that it took."""
    method, order, text = variant(word, args.steps)
    read = tokens[(text - 1) * args.blocks : text * args.blocks]
    start = time.monotonic()
    ranks = RANKERS[order](model, read[:HELD], Split().middle(len(Decoder.of(model)))) if order else None
    with fixed(ranks):
        found = method.profile(model, Split(), read, args.work / (word or "default"))
    return found, time.monotonic() - start


def run(args: argparse.Namespace) -> None:
    rows: list[Row] = json.loads(args.output.read_text("utf-8"))["rows"] if args.output.exists() else []
    model, tokenizer = loading.load(args.model)
    texts = tasks.texts(args.text)
    held = held_out(texts, tokenizer, args.length, HELD)
    stretches = max(variant(word, args.steps)[2] for word in args.variants)
    tokens = blocks(texts, tokenizer, args.length, stretches * args.blocks)
    for word in args.variants:
        if any((row["variant"], row["steps"]) == (word, args.steps) for row in rows):
            continue
        profile, seconds = trained(word, model, tokens, args)
        row = {"variant": word, "steps": args.steps, "seconds": round(seconds)} | measured(model, profile, held)
        rows.append(row | {"record": record(0)})
        write_text(args.output, json.dumps({"rows": rows}, indent=1) + "\n")
        print(line(row, rows[0]), flush=True)


def line(row: Row, first: Row) -> str:
    """A line of a Markdown table."""
    alike = likeness(tensor(row["scores"]), tensor(first["scores"]))
    cells = [f"{row[key]['loss']:.3f}, {row[key]['cosine']:.3f}" for key in (f"{share:g}" for share in SHARES)]
    return f"| {row['variant'] or 'default'} | {row['seconds']} | {alike:.2f} | {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("variants", nargs="+", help="as rank=256,lr=3e-3")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--text", default="wikipedia")
    parser.add_argument("--blocks", type=int, default=2048, help="in a stretch of the text")
    parser.add_argument("--length", type=int, default=128, help="tokens in a block")
    parser.add_argument(
        "--work", type=Path, default=Path("harmonizing"), help="where interrupted trainings go on"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/harmonizing.json"))
    run(parser.parse_args())
