"""Batches: which examples are in them, how they are padded, and the loss of their answers."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from offsite.model.decoder import output_at

_POOL = 50  # batches among which examples are sorted by length

Batch = dict[str, Tensor]


def answer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of the learnt tokens; the head is computed only at columns that have one.

    `batch`: input_ids, attention_mask, labels, each (rows, length); labels are -100 where only read.
    """
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    targets = batch["labels"][:, 1:]
    columns = (targets != -100).any(dim=0).nonzero().squeeze(1)  # the union over rows, ascending
    logits = output_at(model, columns, **inputs).logits
    return cross_entropy(logits.float().flatten(0, 1), targets[:, columns].flatten(), ignore_index=-100)


def learnt(batch: Batch) -> int:
    """How many tokens of a batch are learnt: those with a label, or all where there are no labels."""
    if "labels" not in batch:
        return batch["input_ids"].numel()
    return int((batch["labels"][:, 1:] != -100).sum())


def pad(pad_id: int) -> Callable[[list[Any]], Batch]:
    """Return a collator of rows of `input_ids` and `labels`, padding on the right to the longest."""

    def collate(rows: list[Any]) -> Batch:
        length = max(len(row["input_ids"]) for row in rows)

        def padded(key: str, fill: int) -> Tensor:
            return torch.tensor([[*row[key], *[fill] * (length - len(row[key]))] for row in rows])

        lengths = torch.tensor([len(row["input_ids"]) for row in rows])
        mask = (torch.arange(length) < lengths[:, None]).long()
        return {
            "input_ids": padded("input_ids", pad_id),
            "labels": padded("labels", -100),
            "attention_mask": mask,
        }

    return collate


def schedule(lengths: Sequence[int], steps: int, batch_size: int, seed: int) -> list[int]:
    """Order the examples for a whole run: epoch by epoch, batches of similar length in random order.

    The seed alone decides, so that a resumed run sees what an undisturbed one would (docs/decisions.md).
    """
    chance = random.Random(seed)
    wanted = steps * batch_size
    order: list[int] = []
    while len(order) < wanted:
        epoch = chance.sample(range(len(lengths)), len(lengths))
        pools = [epoch[i : i + _POOL * batch_size] for i in range(0, len(epoch), _POOL * batch_size)]
        ranked = [i for pool in pools for i in sorted(pool, key=lengths.__getitem__)]
        batches = [ranked[i : i + batch_size] for i in range(0, len(ranked), batch_size)]
        full = [batch for batch in batches if len(batch) == batch_size] or batches
        order += [i for batch in chance.sample(full, len(full)) for i in batch]
    return order[:wanted]


def batches(rows: Sequence[Any], size: int) -> list[list[Any]]:
    """Cut `rows` into batches of this size; the last may be smaller."""
    return [list(rows[i : i + size]) for i in range(0, len(rows), size)]
