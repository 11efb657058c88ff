"""A model's config from a stranger: what it describes is built by name, on no device, within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PretrainedConfig, PreTrainedModel

from offsite.decoder import skeleton
from offsite.errors import UserError, brief

_ORDERS = ("auto_map", "quantization_config", "attn_implementation", "experts_implementation")
_MOST_LAYERS = 100_000  # configs make lists of that length before anything can stop them
_MOST_BUFFERED = 1 << 30  # bytes of tables that no file holds (rotations, masks); honest ones are far below


def from_stranger(data: Mapping[str, Any], tensors: int) -> tuple[PretrainedConfig, PreTrainedModel]:
    """The config and the skeleton that a stranger's config.json, `data`, describes.

    Built by name: never by remote code, which `attn_implementation` would fetch as well as `auto_map`.
    `tensors` is how many the model has; what would build far more is refused before it takes time or memory.
    """
    from transformers import CONFIG_MAPPING

    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(f"This transformers does not know the model type {kind!r:.40}; a newer one may.")
    _refuse_orders(data)
    try:
        config: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(dict(data))
        with _at_most(20 * tensors + 1000, kind):
            bare = skeleton(config)
        _refuse_tables(bare)
    except UserError:
        raise
    except Exception as error:  # a config can be made to raise whatever there is
        raise UserError(f"The config describes no {kind} model that can be built ({brief(error)}).") from error
    return config, bare


def _refuse_orders(data: Mapping[str, Any]) -> None:
    """Refuse what would fetch code or quantise, and layers without end, wherever it stands in a config."""
    rest: list[Any] = [data]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest += value
        if not isinstance(value, dict):
            continue
        rest += value.values()
        for key, said in value.items():
            if key.lstrip("_") in _ORDERS and said is not None:
                raise UserError(f"The config asks for {key!r}: remote code and quantised weights are refused.")
            if "layer" in key and isinstance(said, int) and said > _MOST_LAYERS:
                raise UserError(
                    f"The config says {key!r:.40} is above {_MOST_LAYERS}; no honest model has so many."
                )


@contextmanager
def _at_most(count: int, kind: str) -> Iterator[None]:
    """Within, refuse to build more than `count` modules."""
    built = 0

    def hook(*_: Any) -> None:
        nonlocal built
        built += 1
        if built > count:
            raise UserError(f"The config describes a {kind} model far larger than the weights beside it.")

    handle = register_module_module_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _refuse_tables(bare: PreTrainedModel) -> None:
    saved = bare.state_dict().keys()
    size = sum(table.nbytes for name, table in bare.named_buffers() if name not in saved)
    if size > _MOST_BUFFERED:
        raise UserError(f"The config asks for tables of {size:.0e} bytes, more than any honest model has.")
