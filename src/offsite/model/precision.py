"""How a processor computes faster to the same numbers: autocast, short rows, weights cast once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

_EAGER_UP_TO = 256  # tokens; below, fused attention's backward on a CPU costs more than it saves


def bf16_pays() -> bool:
    """Return whether this machine computes bfloat16 matrix products faster than float32 ones."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported())
    able: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # older torch: float32
    return bool(able.get("avx512_bf16") or able.get("amx_tile"))


@contextmanager
def autocast(model: PreTrainedModel, enabled: bool = True) -> Iterator[str]:
    """Run `model` in bfloat16 within, where that pays; yield the precision in words, for the record."""
    fast = enabled and bf16_pays() and model.dtype == torch.float32
    with torch.autocast(model.device.type, torch.bfloat16, enabled=fast):
        yield "bfloat16 autocast" if fast else str(model.dtype).removeprefix("torch.")


@contextmanager
def cast_once(model: nn.Module) -> Iterator[None]:
    """Within, frozen float32 linears stand in bfloat16, for passes under autocast to bfloat16.

    Autocast itself casts them in every pass, to the same numbers: it remembers a cast only of what is trained.
    Takes half as much memory again as those linears, within.
    Embeddings, norms and all that is no plain linear stay as they are; a head tied to the embeddings is apart
    from them meanwhile. Afterwards each linear has its own parameter again.
    """
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    casts: dict[int, nn.Parameter] = {}  # shared layers are cast once
    try:
        for module in model.modules():
            if type(module) not in (nn.Linear, Conv1D):
                continue
            for name, old in list(module.named_parameters(recurse=False, remove_duplicate=False)):
                if old.dtype == torch.float32 and not old.requires_grad:
                    if id(old) not in casts:
                        casts[id(old)] = nn.Parameter(old.to(torch.bfloat16), requires_grad=False)
                    replaced.append((module, name, old))
                    setattr(module, name, casts[id(old)])
        yield
    finally:
        for module, name, old in replaced:
            setattr(module, name, old)


@contextmanager
def attention_for(model: PreTrainedModel, longest: int) -> Iterator[None]:
    """Within, plain attention on a CPU where no row is longer than `longest` and that is short."""
    before = model.config._attn_implementation
    if before != "sdpa" or longest > _EAGER_UP_TO or torch.accelerator.is_available():
        yield
        return
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
