"""The adapter: the layers at both ends of the stack, tuned, or a LoRA on them, as a bundle."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from transformers import PreTrainedModel

from offsite.bundles import bundle
from offsite.errors import UserError
from offsite.model.decoder import Decoder
from offsite.model.split import Split

_WEIGHTS = "adapter.safetensors"
LORA_PARTS = ("lora_A.weight", "lora_B.weight")  # peft's names for (rank, in) and (out, rank)
_PLACE = re.compile(r"(bottom|top)\.(0|[1-9][0-9]{0,5})\.")


class Lora(BaseModel):
    """The scale of a low-rank update: delta = alpha / rank * B A (arXiv 2106.09685)."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    rank: int = Field(ge=1, le=4096)
    alpha: int = Field(ge=1, le=1_000_000)


class AdapterCard(bundle.Card):
    """The card of an adapter; it holds nothing about the data."""

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
        """Copy the adapter layers of `model` as they are now."""
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
        """Open the bundle at `path`; `swap` checks whether it fits a model."""
        path = Path(path)
        card, digest = bundle.read(path, AdapterCard)
        check_files(path, card)
        declared = bundle.headers(path / _WEIGHTS)
        _check_places(path / _WEIGHTS, declared, card.origin.split)
        if card.lora is not None:
            _sites({name: shape for name, (_, shape) in declared.items()}, card.lora.rank)
        tensors = bundle.load_tensors(path / _WEIGHTS)
        return cls(tensors, card.origin, card.emulator, card.lora, digest)


def check_files(path: Path, card: AdapterCard) -> None:
    """Refuse an adapter of any other files than its weights."""
    if set(card.files) != {_WEIGHTS}:
        raise UserError(f"{path}: an adapter holds {_WEIGHTS} and nothing else.")


def adapter_tensors(model: PreTrainedModel, split: Split) -> dict[str, Tensor]:
    """Return the adapter layers' tensors in `model`, by place and name."""
    decoder = Decoder.of(model)
    places = split.adapter(len(decoder))
    return {f"{p}.{name}": t for p, index in places.items() for name, t in decoder.tensors(index).items()}


def adapter_linears(model: PreTrainedModel, split: Split) -> dict[str, bool]:
    """Map the adapter's linear modules, by place and name, to whether each stores its weight as (in, out)."""
    decoder = Decoder.of(model)
    places = split.adapter(len(decoder))
    return {f"{p}.{name}": turned for p, i in places.items() for name, turned in decoder.linears(i).items()}


def swap(model: PreTrainedModel, adapter: Adapter) -> Adapter:
    """Put `adapter` into `model` (full, or an emulator) and return the layers that it displaced.

    Swapping what was displaced back restores the model bit for bit. Raises UserError, with the model
    untouched, where names or shapes do not fit.
    """
    present = adapter_tensors(model, adapter.split)
    new = adapter.tensors if adapter.lora is None else _merged(model, adapter, present)
    bundle.check_names("the adapter", new, present if adapter.lora is None else new)
    for name, tensor in new.items():
        if (tensor.dtype, tensor.shape) != (present[name].dtype, present[name].shape):
            raise UserError(
                f"The adapter's {name!r} is {tensor.dtype} {tuple(tensor.shape)} where the model's is "
                f"{present[name].dtype} {tuple(present[name].shape)}: it belongs to another model."
            )
    displaced = Adapter.of(model, adapter.origin)
    with torch.no_grad():
        for name, tensor in new.items():
            present[name].copy_(tensor)
    return displaced


def _check_places(file: Path, names: Iterable[str], split: Split) -> None:
    """Refuse a tensor that stands in none of the places of `split`, and a place that none stands in."""
    seen = set()
    for name in names:
        place = _PLACE.match(name)
        if place is None or int(place[2]) >= (split.bottom if place[1] == "bottom" else split.top):
            raise UserError(
                f"{file}: the tensor {name!r:.80} does not belong into an adapter of {split.bottom} bottom and "
                f"{split.top} top layers."
            )
        seen.add(place[0])
    if len(seen) != split.bottom + split.top:
        raise UserError(f"{file} holds {len(seen)} layers where its card says {split.bottom + split.top}.")


def _sites(shapes: Mapping[str, tuple[int, ...]], rank: int) -> list[str]:
    """The sites of a LoRA, each of two factors, (rank, in) and (out, rank)."""
    sites = sorted({name.rsplit(".lora_", 1)[0] for name in shapes})
    bundle.check_names("the adapter", shapes, [f"{site}.{part}" for site in sites for part in LORA_PARTS])
    for site in sites:
        down, up = (shapes[f"{site}.{part}"] for part in LORA_PARTS)
        if (len(down), len(up)) != (2, 2) or (down[0], up[1]) != (rank, rank):
            raise UserError(
                f"The adapter's {site!r:.80} holds {down} and {up}, which is no LoRA of rank {rank}."
            )
    return sites


def _merged(model: PreTrainedModel, adapter: Adapter, present: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights that a LoRA update changes, changed: float32 sums, rounded once to the model's type."""
    assert adapter.lora is not None
    scale = adapter.lora.alpha / adapter.lora.rank
    transposed = adapter_linears(model, adapter.split)
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
    sites = _sites(shapes, adapter.lora.rank)
    bundle.check_names("the adapter", sites, transposed)
    new = {}
    for site in sites:
        down, up = (adapter.tensors[f"{site}.{part}"] for part in LORA_PARTS)
        old = present[f"{site}.weight"]
        wanted = old.T.shape if transposed[site] else old.shape
        if (up.shape[0], down.shape[1]) != tuple(wanted):
            raise UserError(f"The adapter's {site!r} does not fit the model: it belongs to another model.")
        delta = scale * (up.to(old.device).float() @ down.to(old.device).float())
        merged = (old.float() + (delta.T if transposed[site] else delta)).to(old.dtype)
        if not bundle.finite(merged):
            raise UserError(f"The adapter's {site!r} is so large that the sum is NaN or infinity.")
        new[f"{site}.weight"] = merged
    return new
