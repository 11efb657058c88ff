"""The memory that an emulator needs, computed from its card, config and shapes before a tensor is read.

Places that share a layer, and factors of low rank, are small in the file and large in use: each
place holds activations of its own, and `export` writes each in full.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel

from offsite.errors import UserError
from offsite.model.decoder import Decoder
from offsite.model.split import Split

_TOKENS = 8 * 512  # of a step of `tune` by default
_FLOAT = 4  # bytes; activations, gradients and the optimiser's two states are float32
_FREE = 1 << 30  # bytes that every bundle may need
_TIMES = 24  # and so many times what is stored: an honest small model in bfloat16 needs up to 20


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    stored: int
    """Tensors as they are stored, and as they are in memory once loaded."""
    dense: int
    """Tensors as `export` writes them, each place in full."""
    tuning: int
    """A step of `tune` with its defaults: the tensors, the adapter's training state, and activations."""

    @property
    def allowed(self) -> int:
        """What may be needed without --allow-large."""
        return _FREE + _TIMES * self.stored

    @property
    def is_large(self) -> bool:
        """Whether more is needed than what is stored accounts for."""
        return max(self.dense, self.tuning) > self.allowed

    def check(self, path: Path) -> None:
        """Refuse a bundle that needs far more memory than is stored in it."""
        if self.is_large:
            raise UserError(
                f"{path} stores {size(self.stored)} but needs about {size(self.tuning)} to be tuned and "
                f"{size(self.dense)} to be exported, far more than honest ones do; if its sender can say why, "
                "give --allow-large."
            )


def memory(bare: PreTrainedModel, split: Split, stored: int) -> Memory:
    """Compute the memory for an emulator of whose tensors `stored` bytes are in its file.

    `bare` is what its config alone builds, on no device, with every place in full size.
    """
    decoder = Decoder.of(bare)
    tensors = {id(tensor): tensor for tensor in bare.state_dict(keep_vars=True).values()}
    adapter = decoder.stored(list(split.adapter(len(decoder)).values()))
    outputs = sum(
        decoder.matrix(index, name).shape[0] for index in range(len(decoder)) for name in decoder.linears(index)
    )
    return Memory(
        stored=stored,
        dense=sum(tensor.nbytes for tensor in tensors.values()),
        tuning=stored + 3 * _FLOAT * adapter + _TOKENS * _FLOAT * outputs,
    )


def size(count: int) -> str:
    """Write a number of bytes as people read it: `812 B`, `3.4 kB`, `1.2 GB`."""
    number, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while number >= 999.5 and len(units) > 1:
        number /= 1000
        units.pop(0)
    return f"{number:.0f} {units[0]}" if number >= 99.95 or units[0] == "B" else f"{number:.1f} {units[0]}"
