"""What a tuning trains: the adapter layers whole, or a LoRA on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from offsite.bundles.adapter import LORA_PARTS, adapter_linears, adapter_tensors
from offsite.bundles.emulator import Emulator
from offsite.data_owner.config import TuneConfig
from offsite.model.decoder import Decoder, base_of
from offsite.training.loop import trainable


@contextmanager
def adapter_trainable(emulator: Emulator, config: TuneConfig) -> Iterator[torch.nn.Module]:
    """The emulator's model with just the adapter to be trained; as it was, afterwards."""
    if config.lora_rank:
        with _with_lora(emulator, config) as wrapped:
            yield wrapped
        return
    with trainable(emulator.model, adapter_tensors(emulator.model, emulator.split).values()):
        yield emulator.model


@contextmanager
def _with_lora(emulator: Emulator, config: TuneConfig) -> Iterator[torch.nn.Module]:
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(
        r=config.lora_rank or 0,
        lora_alpha=config.lora_alpha,
        target_modules=list(lora_sites(emulator).values()),
        fan_in_fan_out=any(adapter_linears(emulator.model, emulator.split).values()),
        task_type="CAUSAL_LM",
    )
    wrapped = get_peft_model(emulator.model, lora)
    try:
        yield wrapped
    finally:
        bare = base_of(wrapped.unload())
        bare.requires_grad_(False).train(False)
        emulator.model = bare


def lora_sites(emulator: Emulator) -> dict[str, str]:
    """The adapter layers' linear modules: name by place, to name in the emulator's model."""
    decoder = Decoder.of(emulator.model)
    places = emulator.split.adapter(len(decoder))
    return {f"{p}.{name}": decoder.name(i, name) for p, i in places.items() for name in decoder.linears(i)}


def lora_tensors(wrapped: torch.nn.Module, sites: Mapping[str, str]) -> dict[str, torch.Tensor]:
    """What peft trained, by place instead of by the emulator's layer number."""
    from peft import get_peft_model_state_dict

    tensors = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
    found = {
        f"{site}.{part}": tensors[f"base_model.model.{name}.{part}"].detach().clone()
        for site, name in sites.items()
        for part in LORA_PARTS
    }
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert len(trained) == len(found), f"peft trained more than was asked: {trained}"
    return found
