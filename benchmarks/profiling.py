"""What a GradOT profile costs in time and memory, against the same pass without it.

    python benchmarks/profiling.py MODEL [--blocks 256 --length 64 --repeats 3]
    python benchmarks/profiling.py --wide

Times, turn by turn: (a) the bare forward-backward pass over the same batches, with the gradients of the states
and of the weights that the profile watches; (b) the factorisations and scores alone; (c) the whole profile. The
target is a median c / (a + b) of at most 1.3. Memory is the peak resident size over that of the loaded model.
With `--wide`, only memory, of random llamas of 3 and 4 layers (one adapter layer at each end), 4096 wide with
11008 channels; the target is 24 GiB. Use a quiet machine.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from memory import Peak  # beside this file
from offsite import Split, load
from offsite.data import tasks
from offsite.data.blocks import blocks
from offsite.model.decoder import Decoder
from offsite.model.precision import autocast
from offsite.owner import curvature
from offsite.owner.factors import groups
from offsite.owner.methods.gradot import GradOT
from offsite.owner.methods.gradot_paper import GradOTPaper

GIB = 1 << 30
WIDE = {
    "vocab_size": 1000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
Figures = dict[str, Any]


def bare(model: PreTrainedModel, split: Split, tokens: Tensor, method: GradOT | GradOTPaper) -> None:
    """Forward and backward over the batches of the profile; the weights' gradients are summed, as there."""
    decoder = Decoder.of(model)
    model.requires_grad_(False)
    weights = [
        decoder.layers[index].get_submodule(name).get_parameter("weight").requires_grad_(True)
        for index in split.middle(len(decoder))
        for name in method.linears(decoder, index)
    ]
    for batch in curvature.batches(tokens):
        with autocast(model):
            logits = model(batch.to(model.device), use_cache=False).logits[:, :-1].flatten(0, 1)
        labels = batch[:, 1:].flatten().to(model.device)
        cross_entropy(logits.float(), labels, reduction="sum").backward()
    for weight in weights:
        weight.grad = None
    model.requires_grad_(False)


def seen_of(
    model: PreTrainedModel, split: Split, tokens: Tensor, method: GradOT | GradOTPaper
) -> dict[int, Any]:
    """What the pass tells of every layer of the middle, all in memory."""
    decoder = Decoder.of(model)
    middle = split.middle(len(decoder))
    found: dict[int, Any] = {}
    for group in groups(decoder, {i: method.linears(decoder, i) for i in middle}):
        found |= curvature.curvature(model, group, tokens)
    return found


def profile(model: PreTrainedModel, split: Split, tokens: Tensor, method: GradOT | GradOTPaper) -> None:
    """Profile as the command does, with its parts in a folder."""
    with tempfile.TemporaryDirectory() as folder:
        method.profile(model, split, tokens, Path(folder) / "work")


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def peak_of(model: PreTrainedModel, work: Callable[[], object]) -> Figures:
    """The greatest resident size during `work`, and how much of it is over the loaded model."""
    for parameter in model.parameters():
        parameter.sum()  # touch every page: weights read lazily from a file are not resident before
    before = psutil.Process().memory_info().rss
    watch = Peak()
    watch.start()
    work()
    watch.on = False
    watch.join()
    return {"peak_gib": watch.peak / GIB, "over_model_gib": (watch.peak - before) / GIB}


def compare(asked: argparse.Namespace) -> Figures:
    model, tokenizer = load(asked.model)
    split, method = (
        Split(asked.bottom, asked.top),
        {"gradot": GradOT, "gradot-paper": GradOTPaper}[asked.method](),
    )
    tokens = blocks(tasks.texts(asked.text), tokenizer, asked.length, asked.blocks)
    memory = peak_of(model, lambda: profile(model, split, tokens, method))  # and a warm-up
    decoder, seen = Decoder.of(model), seen_of(model, split, tokens, method)
    rounds = []
    for number in range(asked.repeats):
        took = {
            "bare": seconds(lambda: bare(model, split, tokens, method)),
            "factorisations": seconds(lambda: [method.scores(decoder, i, seen[i]) for i in seen]),
            "profile": seconds(lambda: profile(model, split, tokens, method)),
        }
        took["ratio"] = took["profile"] / (took["bare"] + took["factorisations"])
        rounds.append(took)
        print(f"round {number + 1}: " + ", ".join(f"{name} {value:.2f}" for name, value in took.items()))
    medians = {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}
    passes = len(groups(decoder, {i: method.linears(decoder, i) for i in split.middle(len(decoder))}))
    about = {"model": asked.model, "method": asked.method, "blocks": asked.blocks, "length": asked.length}
    return about | {"passes": passes, "rounds": rounds, "median": medians} | memory


def wide(layers: int) -> Figures:
    """The memory of a profile of a random model as wide as a 7B one."""
    model = AutoModelForCausalLM.from_config(LlamaConfig(**WIDE, num_hidden_layers=layers)).eval()
    tokens = torch.randint(3, 1000, (8, 256), generator=torch.Generator().manual_seed(0))
    took: list[float] = []
    memory = peak_of(model, lambda: took.append(seconds(lambda: profile(model, Split(1, 1), tokens, GradOT()))))
    size = sum(p.numel() * p.element_size() for p in model.parameters()) / GIB
    return {"layers": layers, "middle": layers - 2, "model_gib": size, "seconds": took[0]} | memory


def table(rows: list[Figures]) -> None:
    for name in rows[0]:
        cells = [row[name] for row in rows]
        print(f"{name:16}" + "".join(f"{c:>14.2f}" if isinstance(c, float) else f"{c:>14}" for c in cells))


def main(asked: argparse.Namespace) -> None:
    if asked.wide:
        # a process for each: what one gave back to the allocator is not counted in the other
        with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
            found: Any = pool.map(wide, (3, 4), chunksize=1)
        table(found)
    else:
        found = compare(asked)
        table([found["median"] | {name: found[name] for name in ("passes", "peak_gib", "over_model_gib")}])
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m", help="a folder or a named model")
    parser.add_argument("--blocks", type=int, default=256)
    parser.add_argument("--length", type=int, default=64, help="tokens in a block")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--text", default="wikipedia", help="wikipedia, wikitext2 or a file")
    parser.add_argument("--method", default="gradot", choices=["gradot", "gradot-paper"])
    parser.add_argument("--bottom", type=int, default=Split.bottom, help="adapter layers at the bottom")
    parser.add_argument("--top", type=int, default=Split.top, help="and at the top")
    parser.add_argument("--wide", action="store_true", help="the memory of wide random models instead")
    parser.add_argument("--json", type=Path, help="a file to write the figures to")
    main(parser.parse_args())
