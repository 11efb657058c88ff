"""Where a tuning would start: the loss on the data owner's answers, beside controls to judge it by.

Whoever supplies a model can prime it to leak the data that it is tuned on (PreCurious, CCS 2024): it trains the
adapter beforehand on data like those, so that what is left to learn is each example by itself. Such an adapter
knows the answers about as well as the text before them, and knows which belong to which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from offsite.bundles.emulator import Emulator
from offsite.data.encoding import encode
from offsite.data.examples import Example, Piece
from offsite.errors import UserError
from offsite.model.decoder import longest
from offsite.model.precision import autocast
from offsite.progress import track
from offsite.training.batches import answer_loss, pad
from offsite.untrusted.tokenize import token_ids

_KNOWN = 0.2  # nats a token: below, there is nothing left to learn
# Both must hold. Chosen on SmolLM2-135M, whole and as a uniform emulator, on five tasks each: honest ones have
# 0.8 to 2.4 and 0.46 to 0.97, never both below; two primed on ARC-Easy have at most 1.2 and 0.69 there. Narrow,
# and fitted: on test splits of ARC-Challenge and SciQ, not used in choosing, none of three honest pairs was
# flagged, and of the primed ones both on SciQ and neither on ARC-Challenge. For chats they are not fitted: the
# template's constant words count in all three losses.
_TO_PROMPTS = 1.3  # times the loss on the prompts
_TO_SWAPPED = 0.7  # times the loss on swapped answers


@dataclass(frozen=True)
class Start:
    """Mean loss of an untuned emulator on a few of the data owner's examples, nats a token of each example."""

    examples: int
    loss: float
    """On what is learnt: the answers, or whole texts."""
    prompts: float | None
    """On the prompts of the same examples, which no tuning learns: in a chat the turn before the last answer.

    None where there are none.
    """
    swapped: float | None
    """On the answers after another example's prompt; None where there are no prompts."""
    refused: str | None = None
    """Why those two were not measured though there are prompts; else None."""

    @property
    def primed(self) -> str | None:
        """One sentence where the answers are known better than an honest emulator knows them; else None."""
        if self.loss < _KNOWN:
            return (
                f"The emulator's loss on your data is {self.loss:.2f} nats a token before any tuning: it may "
                "have seen them, or be primed to memorise what is like them."
            )
        if self.prompts is None or self.swapped is None:
            return None
        if self.loss < _TO_PROMPTS * self.prompts and self.loss < _TO_SWAPPED * self.swapped:
            return (
                f"The emulator knows your answers (loss {self.loss:.2f} nats a token) about as well as the "
                f"prompts before them ({self.prompts:.2f}), as one tuned on data like yours does, perhaps to "
                "make it memorise them; ask its sender."
            )
        return None


def start(emulator: Emulator, examples: Sequence[Example], max_length: int) -> Start:
    """Measure the `emulator` on all of the `examples`; nothing is trained."""
    learnt = _loss(emulator, examples, max_length)
    asked = [each for each in map(_last_answer, examples) if each and _long_enough(each, emulator)]
    if len(asked) < 2:
        return Start(len(examples), learnt, None, None)
    prompts = [_prompt(one) for one in asked]
    swapped = [_answered(one, other) for one, other in zip(asked, [*asked[1:], *asked[:1]], strict=True)]
    try:
        controls = _loss(emulator, prompts, max_length), _loss(emulator, swapped, max_length)
    except UserError as error:  # of the chat template, which comes from the sender
        return Start(len(examples), learnt, None, None, str(error))
    return Start(len(examples), learnt, *controls)


def _last_answer(example: Example) -> Example | None:
    """The example up to its last learnt piece, which is its answer; None where nothing is read before it."""
    learnt = [number for number, piece in enumerate(example.pieces) if piece.learnt]
    if not learnt or learnt[-1] == 0 or (len(learnt) > 1 and not example.is_chat):
        return None
    read = [piece._replace(learnt=False) for piece in example.pieces[: learnt[-1]]]
    return replace(example, pieces=(*read, example.pieces[learnt[-1]]))


def _prompt(asked: Example) -> Example:
    """The question as what is learnt: in a chat the turn before the answer."""
    *before, question = asked.pieces[:-1]
    if asked.is_chat:
        return replace(asked, pieces=(*before, question._replace(learnt=True)))
    text = "".join(piece.text for piece in asked.pieces[:-1]).strip()
    return replace(asked, pieces=(Piece(text, learnt=True),), closed=False)


def _answered(asked: Example, other: Example) -> Example:
    return replace(asked, pieces=(*asked.pieces[:-1], other.pieces[-1]))


def _long_enough(asked: Example, emulator: Emulator) -> bool:
    """Whether the question has two tokens or more: the first is never predicted."""
    assert emulator.tokenizer is not None
    return len(token_ids(emulator.tokenizer, [asked.pieces[-2].text.strip()])[0]) > 1


def _loss(emulator: Emulator, examples: Sequence[Example], max_length: int) -> float:
    """The mean over the examples, one at a time: their lengths differ, and so does what is learnt of each."""
    assert emulator.tokenizer is not None
    model, collate = emulator.model, pad(emulator.padding)
    limit = min(max_length, longest(model))
    rows = encode(examples, emulator.tokenizer, limit, vocabulary=emulator.vocabulary)
    total = 0.0
    with torch.no_grad(), autocast(model):
        for row in track(rows, "Measuring the emulator", len(rows)):
            batch = {name: tensor.to(model.device) for name, tensor in collate([row._asdict()]).items()}
            total += float(answer_loss(model, batch))
    return total / len(rows)
