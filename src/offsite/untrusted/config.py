"""A model's config from a stranger: what it describes is built by name, on no device, within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.module import register_module_module_registration_hook
from transformers import PretrainedConfig, PreTrainedModel

from offsite.errors import UserError, brief
from offsite.model.decoder import skeleton

_ORDERS = (
    "auto_map", "custom_code", "custom_generate", "custom_pipelines", "trust_remote_code",
    "quantization_config", "attn_implementation", "experts_implementation",
)  # fmt: skip
_MOST = {"layer": 100_000, "num_labels": 10_000}  # configs make lists so long before anything can stop them
_MOST_MODULES = 15_000  # a thousand layers; each takes 2 kB, names and all, however small its weights are
_LEAST_BUFFERED = 48 << 20  # bytes of tables that no file holds (rotations, masks), whatever the weights are


def from_stranger(
    data: Mapping[str, Any], tensors: int, stored: int
) -> tuple[PretrainedConfig, PreTrainedModel]:
    """The config and the skeleton that a stranger's config.json, `data`, describes.

    Built by name: never by remote code, which `attn_implementation` would fetch as well as `auto_map`.
    `tensors` is how many the model has, `stored` their bytes; what would build far more is refused before it
    takes time or memory, whether its tensors are stored or stand for each other.
    """
    from transformers import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(f"This transformers does not know the model type {kind!r:.40}; a newer one may.")
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise UserError(f"The config describes no {kind} model that is a causal language model.")
    refuse_orders("The config", data)
    refuse_methods("The config", data, CONFIG_MAPPING[kind])
    try:
        config: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(dict(data))
        with _at_most(min(20 * tensors + 1000, _MOST_MODULES), kind):
            bare = skeleton(config)
        _refuse_tables(bare, max(_LEAST_BUFFERED, stored // 4))
    except UserError:
        raise
    except Exception as error:  # a config can be made to raise whatever there is
        raise UserError(f"The config describes no {kind} model that can be built ({brief(error)}).") from error
    return config, bare


def refuse_orders(whose: str, data: Mapping[str, Any]) -> None:
    """Refuse what would fetch code or quantise, and lists without end, wherever it stands in a config."""
    rest: list[Any] = [data]
    while rest:
        value = rest.pop()
        if isinstance(value, list):
            rest += value
        if not isinstance(value, dict):
            continue
        rest += value.values()
        for key, said in value.items():
            if said is not None and key.strip("_").removesuffix("_internal") in _ORDERS:
                raise UserError(f"{whose} asks for {key!r:.40}: remote code and quantised weights are refused.")
            most = next((most for word, most in _MOST.items() if word in key), None)
            if most is not None and isinstance(said, int) and said > most:
                raise UserError(f"{whose} says {key!r:.40} is above {most}; no honest model has so many.")


def refuse_methods(whose: str, data: Mapping[str, Any], kind: type) -> None:
    """Refuse settings that would stand in the place of a method of their class, `kind`."""
    for key in data:
        if callable(getattr(kind, key, None)):
            raise UserError(f"{whose} sets {key!r:.40}, which is a method and no setting.")


@contextmanager
def _at_most(count: int, kind: str) -> Iterator[None]:
    """Within, refuse to build more than `count` modules."""
    built = 0

    def hook(*_: Any) -> None:
        nonlocal built
        built += 1
        if built > count:
            raise UserError(
                f"The config describes a {kind} model of over {count} modules, far larger than the weights "
                "beside it."
            )

    handle = register_module_module_registration_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def _refuse_tables(bare: PreTrainedModel, most: int) -> None:
    saved = bare.state_dict().keys()
    size = sum(table.nbytes for name, table in bare.named_buffers() if name not in saved)
    if size > most:
        raise UserError(f"The config asks for tables of {size:.0e} bytes, more than any honest model has.")
