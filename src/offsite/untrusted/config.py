"""Build what an untrusted model config describes: by name, on no device, within bounds of time and memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from torch.nn.modules.module import register_module_module_registration_hook
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PretrainedConfig, PreTrainedModel

from offsite.errors import UserError, brief
from offsite.model.decoder import skeleton
from offsite.untrusted.fork import try_first
from offsite.untrusted.model_types import MODEL_TYPES

_ORDERS = (
    "auto_map", "custom_code", "custom_generate", "custom_pipelines", "trust_remote_code",
    "quantization_config", "attn_implementation", "experts_implementation",
)  # fmt: skip
_MOST = {"layer": 100_000, "num_labels": 10_000}  # configs make lists so long before anything can stop them
_FIXED = {"return_dict": True, "use_return_dict": True, "torchscript": False}  # outputs are read by name
_MOST_MODULES = 15_000  # a thousand layers; each takes 2 kB, names and all, however small its weights are
_LEAST_BUFFERED = 48 << 20  # bytes of tables that no file holds (rotations, masks), whatever the weights are


def config_and_skeleton(
    data: Mapping[str, object], tensors: int, stored: int
) -> tuple[PretrainedConfig, PreTrainedModel]:
    """Build the config and the skeleton that an untrusted config.json, `data`, describes.

    Built by name: never by remote code, which `attn_implementation` would fetch as well as `auto_map`.
    `tensors` is how many the model has, `stored` their bytes; what would build far more is refused before it
    takes time or memory, whether its tensors are stored or stand for each other.
    """
    kind = data.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise UserError(f"This transformers does not know the model type {kind!r:.40}; a newer one may.")
    if kind not in MODEL_TYPES:
        raise UserError(
            f"The config describes no {kind} model that is taken: only causal language models are that "
            "transformers builds without compiling."
        )
    refuse_orders("The config", data)
    refuse_methods("The config", data, CONFIG_MAPPING[kind])
    _refuse_values(data)
    with suppress(Exception):  # imported before the trial, which would import it in vain; fails again there
        MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[kind]]
    decides = repr((json.dumps(data, sort_keys=True), tensors, stored)).encode()
    try_first(
        lambda: _build(kind, data, tensors, stored), f"The {kind} model that the config describes", decides
    )
    return _build(kind, data, tensors, stored)


def _build(
    kind: str, data: Mapping[str, object], tensors: int, stored: int
) -> tuple[PretrainedConfig, PreTrainedModel]:
    try:
        config: PretrainedConfig = CONFIG_MAPPING[kind].from_dict(copy.deepcopy(dict(data)))
        with _at_most(min(20 * tensors + 1000, _MOST_MODULES), kind):
            bare = skeleton(config)
        _refuse_tables(bare, max(_LEAST_BUFFERED, stored // 4))
        _refuse_empty(bare)
    except (UserError, MemoryError):
        raise
    except Exception as error:  # a config can be made to raise whatever there is
        if "can't allocate memory" in str(error):  # torch's own words
            raise MemoryError from error
        raise UserError(f"The config describes no {kind} model that can be built ({brief(error)}).") from error
    return config, bare


def _refuse_values(data: Mapping[str, object]) -> None:
    """Refuse values with which a model builds but does not run."""
    for step in objects(data):
        for key, value in step.items():
            share = ("dropout" in key or key.endswith("pdrop")) and type(value) in (int, float)
            if share and not 0 <= value < 1:
                raise UserError(f"The config sets {key!r:.40} to {value!r:.40}, which is not in [0, 1).")
            if key in _FIXED and value is not None and value != _FIXED[key]:
                raise UserError(f"The config sets {key!r:.40} to {value!r:.40}, where {_FIXED[key]} is needed.")


def _refuse_empty(bare: PreTrainedModel) -> None:
    for name, parameter in bare.named_parameters():
        if not parameter.numel():
            raise UserError(
                f"The config gives {name!r:.80} the shape {tuple(parameter.shape)}, which holds nothing."
            )


def refuse_orders(whose: str, data: Mapping[str, object]) -> None:
    """Refuse what would fetch code or quantise, and lists without end, wherever it stands in a config."""
    for step in objects(data):
        for key, value in step.items():
            if value is not None and key.strip("_").removesuffix("_internal") in _ORDERS:
                raise UserError(f"{whose} asks for {key!r:.40}: remote code and quantised weights are refused.")
            most = next((most for word, most in _MOST.items() if word in key), None)
            if most is not None and isinstance(value, int) and value > most:
                raise UserError(f"{whose} says {key!r:.40} is above {most}; no honest model has so many.")


def objects(data: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a value of JSON, itself included."""
    rest = [data]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            yield value
            rest += value.values()
        elif isinstance(value, list):
            rest += value


def refuse_methods(whose: str, data: Mapping[str, object], kind: type) -> None:
    """Refuse settings that would stand in the place of a method of their class, `kind`."""
    for key in data:
        if callable(getattr(kind, key, None)):
            raise UserError(f"{whose} sets {key!r:.40}, which is a method and no setting.")


@contextmanager
def _at_most(count: int, kind: str) -> Iterator[None]:
    """Within, refuse to build more than `count` modules."""
    built = 0

    def hook(*_: object) -> None:
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
