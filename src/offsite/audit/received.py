"""The data owner's look at an emulator before tuning: parameters, loss on one's own text, what is odd."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from offsite.audit.priming import Start, start
from offsite.audit.weights import Oddity, odd
from offsite.bundles.contents import Parameters, parameters
from offsite.bundles.emulator import Emulator
from offsite.data.examples import Example
from offsite.errors import UserError

_SAMPLE = 32


@dataclass(frozen=True)
class EmulatorAudit:
    """What the data owner sees before tuning; it tells of the data, and stays with them."""

    parameters: Parameters
    start: Start
    odd: tuple[Oddity, ...]
    """Weights far off the others'."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """One sentence for each sign that something is not as an honest sender's would be; none is proof."""
        found = [self.start.primed] if self.start.primed else []
        if self.start.refused:
            found.append(f"The emulator could not be checked for priming: {self.start.refused}")
        if self.odd:
            more = f" ({len(self.odd) - 1} more)" if len(self.odd) > 1 else ""
            found.append(f"The emulator's weights are odd in {self.odd[0]}{more}; ask its sender why.")
        return tuple(found)


def emulator(
    emulator: Emulator,
    examples: Sequence[Example],
    *,
    max_length: int = 512,
    sample: int = _SAMPLE,
    seed: int = 0,
) -> EmulatorAudit:
    """Audit an untuned `emulator` on at most `sample` of the `examples`, drawn by the `seed`.

    It takes up to three forward passes for each of them, and one pass over the weights. The emulator is not
    changed. An honest emulator of a model that knows data of this kind well can look primed too; priming that
    is slight, on other text, or made to pass this check is not seen. Raises UserError for an emulator without
    a tokenizer, and where there are no examples.
    """
    if emulator.tokenizer is None:
        raise UserError("This emulator came without a tokenizer, so no loss on text can be measured.")
    if not examples:
        raise UserError("There are no examples to measure the emulator on.")
    teaching = [one for one in examples if any(piece.learnt for piece in one.pieces)] or list(examples)
    drawn = random.Random(seed).sample(teaching, min(sample, len(teaching)))
    return EmulatorAudit(parameters(emulator), start(emulator, drawn, max_length), odd(emulator))
