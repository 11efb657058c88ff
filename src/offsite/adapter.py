"""The adapter: the layers at both ends of the stack, tuned, or a LoRA on them, as a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedModel

from offsite import bundle
from offsite.decoder import Decoder
from offsite.errors import UserError
from offsite.split import Split

_WEIGHTS = "adapter.safetensors"
LORA_PARTS = ("lora_A.weight", "lora_B.weight")  # peft's names for (rank, in) and (out, rank)


class Lora(BaseModel):
    """How a low-rank update is to be read: delta = alpha / rank * B A (arXiv 2106.09685)."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    rank: int = Field(ge=1, le=4096)
    alpha: int = Field(ge=1, le=1_000_000)


class AdapterCard(bundle.Card):
    """The card of an adapter; of the data it says nothing."""

    kind: ClassVar[str] = "offsite-adapter/1"
    emulator: str = Field(pattern=r"^([0-9a-f]{64})?$")
    lora: Lora | None


@dataclass
class Adapter:
    """Tuned tensors by place and name in the layer, as `bottom.0.self_attn.q_proj.weight`."""

    tensors: Mapping[str, Tensor]
    origin: bundle.Origin
    emulator: str = ""
    """Digest of the emulator bundle that it was tuned on; empty for one that was never a bundle."""
    lora: Lora | None = None
    digest: str = field(default="", compare=False)

    @property
    def split(self) -> Split:
        """Where the stacks that it fits are cut."""
        return self.origin.split

    @classmethod
    def of(cls, model: PreTrainedModel, origin: bundle.Origin) -> Adapter:
        """A copy of the adapter layers that stand in `model` now."""
        copies = {
            name: tensor.detach().clone() for name, tensor in adapter_tensors(model, origin.split).items()
        }
        return cls(copies, origin)

    def save(self, path: Path | str) -> str:
        """Write the bundle and return its digest."""
        card = AdapterCard(
            format=AdapterCard.kind,
            origin=self.origin,
            emulator=self.emulator,
            lora=self.lora,
            versions=bundle.versions(),
        )
        self.digest = bundle.write(
            Path(path), card, lambda folder: bundle.save_tensors(self.tensors, folder / _WEIGHTS)
        )
        return self.digest

    @classmethod
    def load(cls, path: Path | str) -> Adapter:
        """Open the bundle at `path`; whether it fits a model is `swap`'s to say."""
        path = Path(path)
        card, digest = bundle.read(path, AdapterCard)
        if set(card.files) != {_WEIGHTS}:
            raise UserError(f"{path}: an adapter holds {_WEIGHTS} and nothing else.")
        bundle.shapes(path / _WEIGHTS)
        return cls(bundle.load_tensors(path / _WEIGHTS), card.origin, card.emulator, card.lora, digest)


def adapter_tensors(model: PreTrainedModel, split: Split) -> dict[str, Tensor]:
    """The adapter layers' tensors as they stand in `model`, by place and name."""
    decoder = Decoder.of(model)
    places = split.adapter(len(decoder))
    return {f"{p}.{name}": t for p, index in places.items() for name, t in decoder.tensors(index).items()}


def adapter_linears(model: PreTrainedModel, split: Split) -> dict[str, bool]:
    """The adapter layers' linear modules by place and name, and whether each keeps its weight (in, out)."""
    decoder = Decoder.of(model)
    places = split.adapter(len(decoder))
    return {f"{p}.{name}": turned for p, i in places.items() for name, turned in decoder.linears(i).items()}


def swap(model: PreTrainedModel, adapter: Adapter) -> Adapter:
    """Put `adapter` into `model` (full, or an emulator) and return the layers that it displaced.

    Swapping what was displaced back restores the model bit for bit. Raises UserError, with the model
    untouched, where names or shapes do not fit.
    """
    own = adapter_tensors(model, adapter.split)
    new = adapter.tensors if adapter.lora is None else _merged(model, adapter, own)
    bundle.check_names("the adapter", new, own if adapter.lora is None else new)
    for name, tensor in new.items():
        if tensor.shape != own[name].shape:
            raise UserError(
                f"The adapter's {name!r} has the shape {tuple(tensor.shape)} where the model's has "
                f"{tuple(own[name].shape)}: it belongs to another model."
            )
    displaced = Adapter.of(model, adapter.origin)
    with torch.no_grad():
        for name, tensor in new.items():
            own[name].copy_(tensor)
    return displaced


def _merged(model: PreTrainedModel, adapter: Adapter, own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a LoRA update changes, changed: float32 sums, rounded once to the model's type."""
    assert adapter.lora is not None
    transposed = adapter_linears(model, adapter.split)
    sites = sorted({name.rsplit(".lora_", 1)[0] for name in adapter.tensors})
    expected = [f"{site}.{part}" for site in sites for part in LORA_PARTS]
    bundle.check_names("the adapter", adapter.tensors, expected)
    new = {}
    for site in sites:
        down, up = (adapter.tensors[f"{site}.{part}"].float() for part in LORA_PARTS)
        if site not in transposed or down.shape[:1] != up.shape[1:] or down.shape[0] != adapter.lora.rank:
            raise UserError(f"The adapter's {site!r} does not fit the model: it belongs to another model.")
        old = own[f"{site}.weight"]
        delta = adapter.lora.alpha / adapter.lora.rank * (up @ down)
        delta = delta.T if transposed[site] else delta
        if delta.shape != old.shape:
            raise UserError(f"The adapter's {site!r} does not fit the model: it belongs to another model.")
        new[f"{site}.weight"] = (old.float() + delta).to(old.dtype)
    return new
