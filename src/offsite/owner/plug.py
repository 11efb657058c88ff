"""The tuned adapter goes into the full model."""

from __future__ import annotations

from transformers import PreTrainedModel

from offsite.bundles.adapter import Adapter, swap
from offsite.errors import UserError
from offsite.owner.build import origin


def plug(model: PreTrainedModel, adapter: Adapter) -> Adapter:
    """Put `adapter` into `model`, in place, and return the layers that it displaced.

    Plugging those back restores the model bit for bit. Raises UserError, with the model untouched, for an
    adapter that was tuned for another model, or a LoRA whose base is no longer there.
    """
    here = origin(model, adapter.split)
    if here.parent != adapter.origin.parent:
        raise UserError(
            "The adapter was tuned for another model: the digest of this model's frozen part is "
            f"{here.parent[:12]}, the adapter names {adapter.origin.parent[:12] or 'none'}."
        )
    if adapter.lora is not None and here.start != adapter.origin.start:
        raise UserError(
            "The adapter is a LoRA on the untuned model, but this model's adapter layers were changed since; "
            "plug it into the model that the emulator was made from."
        )
    return swap(model, adapter)
