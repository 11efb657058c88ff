"""Whether a folder holds one plain model whose weights fit its config."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offsite.errors import UserError, brief

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_WEIGHTS = (
    "*.safetensors", "pytorch_model*.bin", "consolidated*.pth", "tf_model.h5", "flax_model*.msgpack", "*.gguf",
)  # fmt: skip
_SHARD = re.compile(r"model-\d+-of-\d+\.safetensors")


def refuse_bundle(word: str, where: str) -> None:
    """Refuse a bundle, which is no plain model."""
    # Opened as a plain model, a bundle would pass by all that its receiver checks.
    if os.path.lexists(Path(where) / "card.json"):
        raise UserError(
            f"{word!r} holds a card.json, as bundles do, and is no plain model; `offsite inspect` says what it "
            "is, and `offsite export` makes a plain model of an emulator."
        )


def refuse_lora(word: str, folder: Path) -> None:
    """Refuse a LoRA, alone or beside a full model."""
    # transformers would merge it in without a word.
    if not (folder / "adapter_config.json").exists():
        return
    if (folder / "config.json").exists():
        raise UserError(
            f"{word!r} holds a full model (config.json) and a LoRA (adapter_config.json), so it can be read in "
            "two ways; move one of them to another folder."
        )
    raise UserError(
        f"{word!r} holds a LoRA (adapter_config.json) and no model; merge it into its base model with peft's "
        "merge_and_unload, save that, and name its folder."
    )


def refuse_two_sets(word: str, folder: Path) -> None:
    """Refuse weights that can be read in two ways or in part, and say which files beside them are not read."""
    whole, index = folder / _WHOLE, folder / _INDEX
    if whole.exists() and index.exists():
        raise UserError(
            f"{word!r} holds {_WHOLE} and the shards that {_INDEX} names, so its weights can be read in two "
            "ways; move one of them to another folder."
        )
    shards = _shards(index)
    found = {file.name for each in _WEIGHTS for file in folder.glob(each)} if folder.is_dir() else set()
    if absent := sorted(shards - found):
        raise UserError(
            f"{word!r} holds no safetensors weights that can be read: {_INDEX} names {absent[0]}, which is not "
            "there; take a whole copy of the model."
        )
    unread = sorted(found - shards - {_WHOLE})
    if odd := [name for name in unread if shards and _SHARD.fullmatch(name)]:
        raise UserError(
            f"{word!r} holds {odd[0]}, which {_INDEX} does not name; move it away, or take both from the same "
            "model."
        )
    if unread and (shards or whole.exists()):
        sys.stderr.write(
            f"reading {_INDEX if shards else _WHOLE} in {word!r}, and not {brief(', '.join(unread))}\n"
        )


def _shards(index: Path) -> set[str]:
    """Return the files that an index of shards names; nothing of a broken one, which the loader refuses."""
    try:
        named = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
        return {name for name in named if isinstance(name, str)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


def refuse_untied(word: str, model: PreTrainedModel) -> None:
    """Refuse a head of its own where the config says that it is the embeddings."""
    # transformers then leaves both as they are, and only warns.
    config = model.config.get_text_config()
    find_head: Callable[[], Any] = model.get_output_embeddings
    head = find_head()
    words = model.get_input_embeddings()
    if getattr(config, "tie_word_embeddings", False) and head is not None and head.weight is not words.weight:
        raise UserError(
            f"The config.json of {word!r} says tie_word_embeddings: true, but its weights hold a head that "
            "differs from the embeddings; set it to false, or take both from the same model."
        )


def say_ends(word: str, model: PreTrainedModel) -> None:
    """Say which end of text is taken where the two files that name one share none."""
    ours = model.config.eos_token_id
    theirs = getattr(model.generation_config, "eos_token_id", None)
    if None not in (ours, theirs) and not _ids(ours) & _ids(theirs):
        sys.stderr.write(
            f"in {word!r} generation_config.json says eos_token_id {theirs} and config.json {ours}; generation "
            "ends at the former\n"
        )


def _ids(said: Any) -> set[int]:
    return set(said) if isinstance(said, list) else {said}


def refuse_unknown_rope(word: str, data: object) -> None:
    """Refuse a config whose kind of rotary positions transformers does not know."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    for key in ("rope_parameters", "rope_scaling"):
        said = data.get(key) if isinstance(data, Mapping) else None
        kind = said.get("rope_type", said.get("type")) if isinstance(said, Mapping) else None
        if isinstance(kind, str) and kind not in ("default", *ROPE_INIT_FUNCTIONS):
            better = "'longrope'" if kind == "su" else f"one of {', '.join(sorted(ROPE_INIT_FUNCTIONS))}"
            raise UserError(
                f"The config.json of {word!r} names the rope type {brief(kind)!r} in {key}, which this "
                f"transformers does not know; write {better} there."
            )


def refuse_without_sentencepiece(word: str, folder: Path) -> None:
    """Refuse a sentencepiece tokenizer where nothing can read it."""
    models = sorted(file.name for file in folder.glob("*.model"))
    others = (folder / "tokenizer.json", folder / "vocab.json")
    if models and not any(file.exists() for file in others) and find_spec("sentencepiece") is None:
        raise UserError(
            f"{word!r} holds its tokenizer as {models[0]}, which needs sentencepiece; run `pip install "
            "sentencepiece protobuf`, or add the model's tokenizer.json."
        )


def refuse_other_kinds(word: str, config: PreTrainedConfig) -> None:
    """Refuse what is no causal language model, and quantised weights."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_MASKED_LM_MAPPING

    # transformers opens BERT and its kin as causal models, with attention that looks both ways.
    looks_ahead = type(config) in MODEL_FOR_MASKED_LM_MAPPING and not getattr(config, "is_decoder", False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING or config.is_encoder_decoder or looks_ahead:
        raise UserError(
            f"{word!r} is a {config.model_type} model, not a causal language model; "
            "take a decoder such as llama, qwen or gemma."
        )
    if getattr(config, "quantization_config", None):
        raise UserError(f"{word!r} holds quantised weights; take the model in its original precision.")


def refuse_unreadable(word: str, folder: Path) -> None:
    """Refuse files that we have no right to read; transformers takes them for missing."""
    for file in sorted(folder.glob("*.safetensors")):
        if file.exists() and not os.access(file, os.R_OK):
            raise UserError(f"{file.name} in {word!r} may not be read; change its rights or ask its owner.")


def refuse_misfit(word: str, found: Mapping[str, Any]) -> None:
    """Refuse weights that are missing or of another shape."""
    # transformers fills these tensors with random numbers and only warns; tied ones it does not list.
    wrong = sorted(found["missing_keys"]) + sorted(str(key[0]) for key in found["mismatched_keys"])
    if wrong:
        raise UserError(
            f"The weights of {word!r} do not fit its config.json: {len(wrong)} tensors are missing or of "
            f"another shape, {wrong[0]} the first; take both from the same model."
        )


def refuse_surplus(word: str, found: Mapping[str, Any]) -> None:
    """Refuse weights that the config has no place for."""
    # transformers drops these and only warns; those that it ignores for the family it does not list.
    if surplus := sorted(found["unexpected_keys"]):
        raise UserError(
            f"The weights of {word!r} do not fit its config.json: {len(surplus)} tensors have no place in the "
            f"model that it describes, {brief(', '.join(surplus))}; take both from the same model."
        )


def is_usable(dtype: torch.dtype | str) -> bool:
    """Return whether bundles hold this type and processors compute in it; float64 and float8 are cast."""
    import torch

    return dtype in (torch.float32, torch.bfloat16, torch.float16)
