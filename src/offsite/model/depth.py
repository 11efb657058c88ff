"""A config for some of a model's layers, which says nothing of the depth or of the other layers.

Lists with an entry a layer follow the layers; what counts or numbers layers is counted anew. So models of
different depth with the same layers give the same config.
"""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PretrainedConfig

_BELOW = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index", "max_window_layers")
"""Layers with a lower number are of one kind."""
_UP_TO = ("moe_layer_end_index",)
"""Layers with a lower number, or this one, are of one kind."""
_FROM_THE_TOP = ("num_kv_shared_layers",)
"""So many of the last layers are of one kind."""
_NUMBERS = ("full_attn_idxs", "mlp_only_layers", "attn_layer_indices", "moe_layers", "hybrid_layer_ids")
"""The numbers of the layers of one kind."""
_FROM_KINDS = {  # where a list of kinds decides, the key repeats it: its kind, and the key of the list
    "max_window_layers": ("full_attention", "layer_types"),
    "first_k_dense_replace": ("dense", "mlp_layer_types"),
    "full_attn_idxs": ("full_attention", "layer_types"),
}
_APART_FROM_LAYERS = re.compile(r"(_token_ids?|_tokens|^architectures)$")
"""Lists of anything but layers; that one is as long as the stack is deep is chance."""
_DEPTHS = ("num_blocks", "encoder_layers", "decoder_layers", "n_layer", "n_layers", "num_layers")
"""Further names of the depth, if they have its value."""


def reduced_config(config: PretrainedConfig, order: Sequence[int]) -> PretrainedConfig:
    """Return a copy of `config` for a stack of the layers `order`."""
    depth, values = config.num_hidden_layers, config.to_dict()
    reduced = copy.deepcopy(config)
    reduced.num_hidden_layers = len(order)
    for key, value in values.items():
        if key not in ("num_hidden_layers", *_FROM_KINDS):
            _set(reduced, key, value, _carried(config, key, value, order))
    for key in values.keys() & _FROM_KINDS:  # after the lists of kinds
        _set(reduced, key, values[key], _repeated(config, key, values[key], reduced, order))
    if "attention_types" in values and "attention_layers" in values:  # gpt_neo: kinds, and how often in a row
        reduced.attention_types = [[list(reduced.attention_layers), 1]]
    if values.get("final_w_init_variance_scale") == 2 / depth:  # recurrent_gemma
        reduced.final_w_init_variance_scale = 2 / len(order)
    return reduced


def _has_one_a_layer(config: PretrainedConfig, key: str, value: Sequence[object]) -> bool:
    """Tell whether a list has an entry a layer; by its length alone it may have it by chance."""
    if len(value) != config.num_hidden_layers or _APART_FROM_LAYERS.search(key):
        return False
    kind: Any = type(config)
    usual = _defaults(kind)
    default = usual.get(key)
    if not isinstance(default, list | tuple) or not default or not isinstance(default[0], int | float):
        return True
    return len(default) == usual.get("num_hidden_layers")


@functools.cache
def _defaults(kind: Any) -> dict[str, Any]:
    """Return what a family's config says by default."""
    try:
        return dict(kind().to_dict())
    except Exception:  # a family without defaults
        return {}


def _set(config: PretrainedConfig, key: str, old: object, new: object) -> None:
    if new is not old and hasattr(config, key):  # `to_dict` names more than there is to set
        setattr(config, key, new)


def _carried(config: PretrainedConfig, key: str, value: Any, order: Sequence[int]) -> Any:
    """Return what a config's `value` is for the layers `order`: itself, unless it depends on the layers."""
    depth = config.num_hidden_layers
    if key == "per_layer_config" and isinstance(value, Mapping):
        by_number = {int(number): each for number, each in value.items()}
        return {slot: by_number[i] for slot, i in enumerate(order) if i in by_number}
    if isinstance(value, list | tuple):
        if key in _NUMBERS:
            return type(value)(slot for slot, i in enumerate(order) if i in value)
        return type(value)(value[i] for i in order) if _has_one_a_layer(config, key, value) else value
    if isinstance(value, bool) or not isinstance(value, int):
        return value
    if key in _BELOW:
        return sum(i < value for i in order)
    if key in _UP_TO:
        return sum(i <= value for i in order) - 1
    if key in _FROM_THE_TOP:
        return sum(i >= depth - value for i in order)
    return len(order) if key in _DEPTHS and value == depth else value


def _repeated(
    config: PretrainedConfig, key: str, value: Any, reduced: PretrainedConfig, order: Sequence[int]
) -> Any:
    """Return what a key says that repeats a list of kinds; without such a list, as any other."""
    kind, where = _FROM_KINDS[key]
    kinds = getattr(reduced, where, None)
    if value is None or not isinstance(kinds, list | tuple):
        return _carried(config, key, value, order)
    if key in _NUMBERS:
        return [slot for slot, each in enumerate(kinds) if each == kind]
    return next((slot for slot, each in enumerate(kinds) if each != kind), len(kinds))
