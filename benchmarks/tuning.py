"""Time `offsite.tune` against other ways to tune on the same examples, in the same order, batches and steps.

    python benchmarks/tuning.py [MODEL] [--method uniform --keep 0.7] [--against original original-bf16 lora]

`original`: as Offsite-Tuning's run_clm.py tunes an emulator: every example padded to the longest of the data
set (a multiple of 8), the model's own loss over all positions, a plain AdamW loop under accelerate; in float32,
or under the bfloat16 autocast of its scripts (`original-bf16`). The schedule of the learning rate and the
clipping are ours on both sides, so that the losses compare.
`lora`: a LoRA on every linear of the full model with peft and transformers' Trainer, padded batch by batch,
against ours on the adapter layers of the emulator.

Runs A B A B ...; ours counts all of `tune` (tokenising, checkpoints), theirs the loop alone. Prints each round,
the median ratio, the two curves' difference and the held-out loss. `--clock cpu` counts processor seconds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers

from offsite import METHODS, Emulator, Example, Split, TuneConfig, build, examples, load, tune
from offsite.data.encoding import IGNORED, encode
from offsite.data_owner.plan import Parted
from offsite.model.decoder import Decoder
from offsite.model.precision import bf16_pays
from offsite.training.batches import answer_loss, pad, schedule

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
Rows = list[dict[str, list[int]]]


@dataclass
class Run:
    """One tuning: how long it took, and what came of it."""

    seconds: float
    losses: dict[int, float]  # of the training, by step: each the mean since the one before
    heldout: float


@dataclass
class Bench:
    """What all runs have in common."""

    model: Any
    tokenizer: Any
    blueprint: Any
    config: TuneConfig
    train: Sequence[Example]
    heldout: Rows
    now: Any

    def emulator(self) -> Emulator:
        """A fresh one."""
        return build(self.model, Split(), self.blueprint, tokenizer=self.tokenizer)

    def rows(self) -> tuple[Rows, int]:
        """The examples of the whole run, in our order, and the length of the longest of all that there are."""
        encoded = encode(self.train, self.tokenizer, self.config.max_length)
        rows = Parted.of(encoded, None, self.config).train
        lengths = [len(row["input_ids"]) for row in rows]
        order = schedule(lengths, self.config.steps_for(len(rows)), self.config.batch_size, self.config.seed)
        return [rows[i] for i in order], max(lengths)

    def judged(self, model: Any) -> float:
        """Nats a token of the held-out answers, in float32."""
        collate, model = pad(self.tokenizer.pad_token_id or 0), model.eval()
        with torch.no_grad():
            losses = [float(answer_loss(model, collate([row]))) for row in self.heldout]
        tokens = [sum(label != IGNORED for label in row["labels"]) for row in self.heldout]
        return sum(loss * n for loss, n in zip(losses, tokens, strict=True)) / sum(tokens)


def ours(bench: Bench) -> Run:
    emulator = bench.emulator()
    start = bench.now()
    tuned = tune(emulator, bench.train, bench.config)
    seconds = bench.now() - start
    losses = {point.step: point.loss for point in tuned.curve if point.loss is not None}
    return Run(seconds, losses, bench.judged(emulator.model))


def original(bench: Bench, precision: str) -> Run:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # ours, of another precision
    emulator = bench.emulator()
    model, rows = emulator.model.train(), to_longest(*bench.rows(), bench.tokenizer.pad_token_id or 0)
    decoder = Decoder.of(model)
    for index in emulator.split.adapter(len(decoder)).values():
        decoder.layers[index].requires_grad_(True)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=precision)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=bench.config.lr, weight_decay=0.0)
    steps = bench.config.steps
    scheduler = transformers.get_cosine_schedule_with_warmup(optimizer, steps // 20, steps)
    loader: Any = torch.utils.data.DataLoader(
        rows, batch_size=bench.config.batch_size, collate_fn=transformers.default_data_collator
    )
    wrapped, optimizer, loader, scheduler = accelerator.prepare(model, optimizer, loader, scheduler)
    losses = []
    start = bench.now()
    for batch in loader:
        loss = wrapped(**batch).loss
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = bench.now() - start
    accelerator.free_memory()
    return Run(seconds, dict(enumerate(losses, 1)), bench.judged(accelerator.unwrap_model(wrapped, False)))


def to_longest(rows: Rows, longest: int, pad_id: int) -> Rows:
    longest = (longest // 8 + 1) * 8

    def padded(row: Mapping[str, list[int]]) -> dict[str, list[int]]:
        own = len(row["input_ids"])
        more = longest - own
        return {
            "input_ids": row["input_ids"] + [pad_id] * more,
            "attention_mask": [1] * own + [0] * more,
            "labels": row["labels"] + [IGNORED] * more,
        }

    return [padded(row) for row in rows]


def full_lora(bench: Bench) -> Run:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=bench.config.lora_rank or 8,
        lora_alpha=bench.config.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(bench.model, lora)
    with tempfile.TemporaryDirectory() as folder:
        trainer = transformers.Trainer(
            model=wrapped,
            args=transformers.TrainingArguments(
                folder,
                max_steps=bench.config.steps,
                per_device_train_batch_size=bench.config.batch_size,
                learning_rate=bench.config.lr,
                warmup_steps=bench.config.steps // 20,
                lr_scheduler_type="cosine",
                bf16=bf16_pays(),
                use_cpu=not torch.cuda.is_available(),
                train_sampling_strategy="sequential",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                dataloader_pin_memory=False,
                log_level="error",
            ),
            train_dataset=bench.rows()[0],
            data_collator=transformers.DataCollatorForSeq2Seq(bench.tokenizer),
        )
        trainer.remove_callback(transformers.PrinterCallback)
        start = bench.now()
        trainer.train()
        seconds = bench.now() - start
    losses = {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}
    heldout = bench.judged(wrapped)
    wrapped.unload()
    bench.model.requires_grad_(False)
    return Run(seconds, losses, heldout)


def predicted(bench: Bench) -> float:
    """Multiplications of the full model over the emulator's, per token: of the linears of all layers."""
    work = [
        sum(parameter.numel() for layer in Decoder.of(model).layers for parameter in layer.parameters())
        for model in (bench.model, bench.emulator().model)
    ]
    return work[0] / work[1]


def rounds(bench: Bench, against: str, number: int) -> Iterator[tuple[Run, Run]]:
    for _ in range(number):
        if against == "lora":
            yield ours(bench), full_lora(bench)
        else:
            yield ours(bench), original(bench, "bf16" if against.endswith("bf16") else "no")


def report(bench: Bench, against: str, number: int) -> None:
    ratios, count = [], bench.config.steps * bench.config.batch_size
    for mine, other in rounds(bench, against, number):
        ratios.append(other.seconds / mine.seconds)
        print(
            f"{against}: {count / mine.seconds:.2f} examples a second against {count / other.seconds:.2f}, "
            f"ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"{against}: median ratio {statistics.median(ratios):.2f}", end="")
    print(f"; the removed layers predict {predicted(bench):.2f}" if against == "lora" else "")
    print(f"  {compared(mine, other)}", flush=True)


def compared(mine: Run, other: Run) -> str:
    """How far the two losses are apart; where ours is a mean over steps, so is the other's."""
    apart, begin = [], 0
    for step, loss in mine.losses.items():
        theirs = statistics.fmean(other.losses[i] for i in range(begin + 1, step + 1))
        apart.append(loss - theirs)
        begin = step
    worst = max(map(abs, apart))
    return (
        f"last loss {loss:.3f} against {theirs:.3f}, curves apart by {worst:.3f} at most, "
        f"{statistics.fmean(apart):+.4f} on average; held out {mine.heldout:.4f} against {other.heldout:.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2-135m")
    parser.add_argument("--method", default="uniform", help="one that needs no text to profile")
    parser.add_argument("--keep", type=float, default=0.7)
    parser.add_argument("--data", default="arc_easy", help="a task, or a data file")
    parser.add_argument("--against", nargs="+", default=["original", "original-bf16", "lora"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--heldout", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="wall or processor seconds")
    asked = parser.parse_args()
    model, tokenizer = load(asked.model)
    model.requires_grad_(False)
    method = METHODS[asked.method]()
    blueprint = method.plan(method.profile(model, Split()), asked.keep)
    every = examples(asked.data)
    heldout = [row._asdict() for row in encode(every[: asked.heldout], tokenizer, 512)]
    for against in asked.against:
        config = TuneConfig(
            steps=asked.steps, lr=2e-4, batch_size=asked.batch_size, seed=asked.seed, heldout=0,
            lora_rank=8 if against == "lora" else None,
        )  # fmt: skip
        bench = Bench(model, tokenizer, blueprint, config, every[asked.heldout :], heldout, CLOCKS[asked.clock])
        report(bench, against, asked.rounds)


if __name__ == "__main__":
    main()
