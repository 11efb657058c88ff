"""How transformers lays out a causal LM: the only file that knows.

There is no table of architectures. The decoder stack is the one `nn.ModuleList` of `num_hidden_layers`
members that can be checkpointed; what a shorter stack needs follows from the config, and is checked by
comparing with a skeleton built from it.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from offsite.errors import UserError
from offsite.model.depth import reduced_config

_INDEX_NAMES = ("layer_idx", "layer_id")  # what a layer calls its own number; it addresses the KV cache


@dataclass(frozen=True)
class FeedForward:
    """One layer's feed-forward linears: what writes its inner channels, and what reads them."""

    ups: Mapping[str, int]
    """The linears into the channels (gate and up), and how many channel-long blocks of rows each fuses."""
    down: str
    width: int
    """Channels."""

    def rows(self, up: str, channels: Tensor) -> Tensor:
        """The rows of the linear `up` that write the `channels`: j, and j + width in a second fused block."""
        return torch.cat([channels + block * self.width for block in range(self.ups[up])])


@dataclass(frozen=True)
class Decoder:
    """A causal LM seen as a stack of layers."""

    model: PreTrainedModel
    path: str
    """The stack's name in the model, as in `model.layers`."""
    layers: nn.ModuleList

    @classmethod
    def of(cls, model: PreTrainedModel) -> Decoder:
        """Find the stack of `model`; a UserError for what is not one plain decoder stack."""
        config = model.config
        found = [
            (name, module)
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList)
            and len(module) == getattr(config, "num_hidden_layers", -1)
            and all(isinstance(layer, GradientCheckpointingLayer) for layer in module)  # FSDP's too
        ]
        if getattr(config, "is_encoder_decoder", False) or len(found) != 1:
            raise UserError(
                f"A model of type {config.model_type!r} has no single stack of decoder layers to cut; "
                "offsite works on decoder-only causal language models."
            )
        if getattr(config, "scale_attn_by_inverse_layer_idx", False):
            raise UserError(
                f"This {config.model_type!r} model scales attention by the layer's number "
                "(scale_attn_by_inverse_layer_idx), so its layers mean something else in a shorter stack; "
                "it cannot be cut."
            )
        return cls(model, *found[0])

    def __len__(self) -> int:
        return len(self.layers)

    def tensors(self, index: int) -> dict[str, Tensor]:
        """The parameters and saved buffers of one layer, by their names inside the layer."""
        return dict(self.layers[index].state_dict(keep_vars=True))

    def stored(self, layers: Sequence[int]) -> int:
        """Parameters and saved buffers of the `layers`, counting once what stands in several of them."""
        tensors = [tensor for index in layers for tensor in self.tensors(index).values()]
        return sum(tensor.numel() for tensor in {id(tensor): tensor for tensor in tensors}.values())

    def linears(self, index: int) -> dict[str, bool]:
        """One layer's linear modules by name, and whether each keeps its weight transposed, (in, out)."""
        found = {}
        for name, module in self.layers[index].named_modules():
            if isinstance(module, nn.Linear | Conv1D):
                found[name] = isinstance(module, Conv1D)
        return found

    def attention(self, index: int) -> list[str]:
        """The names of one layer's linears that belong to its attention: to what addresses the KV cache."""
        homes = tuple(
            f"{name}."
            for name, module in self.layers[index].named_modules()
            if name and any(hasattr(module, number) for number in _INDEX_NAMES)
        )
        return [name for name in self.linears(index) if name.startswith(homes)]

    def feed_forward(self, index: int) -> FeedForward:
        """One layer's feed-forward; a UserError for what is none, as a mixture of experts."""
        attention = set(self.attention(index))
        *ups, down = [name for name in self.linears(index) if name not in attention] or [""]
        if ups:
            outputs, width = self.matrix(index, down).shape
            shapes = {up: self.matrix(index, up).shape for up in ups}
            if all(rows % width == 0 and inputs == outputs for rows, inputs in shapes.values()):
                return FeedForward({up: rows // width for up, (rows, _) in shapes.items()}, down, width)
        raise UserError(
            f"Layer {index} of this {self.model.config.model_type!r} model has no plain feed-forward (linears "
            "into its channels and one back), so its channels cannot be pruned; drop whole layers instead."
        )

    def matrix(self, index: int, name: str) -> Tensor:
        """The weight of one of a layer's linears, (out, in) however it is kept: a view of it."""
        weight = self.layers[index].get_submodule(name).get_parameter("weight").detach()
        return weight.T if self.linears(index)[name] else weight

    def name(self, index: int, inside: str) -> str:
        """The full name, in the model, of what one layer calls `inside`."""
        return f"{self.path}.{index}.{inside}"

    def source(self, name: str, order: Sequence[int]) -> str:
        """What a tensor called `name` in a stack of the layers `order` is called in this one."""
        inside = self.path + "."
        if not name.startswith(inside):
            return name
        slot, _, rest = name.removeprefix(inside).partition(".")
        return self.name(order[int(slot)], rest)

    def rest(self) -> dict[str, Tensor]:
        """What is not in the stack: embeddings, head, last norm; by full name, tied ones under each name."""
        inside = self.path + "."
        return {k: v for k, v in self.model.state_dict(keep_vars=True).items() if not k.startswith(inside)}


def restack(model: PreTrainedModel, order: Sequence[int]) -> PreTrainedModel:
    """A causal LM whose stack is the layers `order` of `model`, which it leaves untouched.

    Every tensor is `model`'s own storage behind a new, frozen parameter, so the result costs next to no
    memory; a layer named twice is one set of parameters in two places. Clone what is to be trained
    (`own`). Raises UserError where the model cannot be cut so.
    """
    decoder = Decoder.of(model)
    config = reduced_config(model.config, order)
    config.dtype = model.dtype  # what the weights are, whatever the config says
    result = blank(config)
    _check_same(decoder, Decoder.of(result), order)
    ours = dict(_tensors(model))
    shared: dict[int, Tensor] = {}  # one new tensor per old one: tied weights stay tied
    for name, _ in list(_tensors(result)):
        old = ours[decoder.source(name, order)]
        if id(old) not in shared:
            data = old.detach()
            shared[id(old)] = nn.Parameter(data, requires_grad=False) if isinstance(old, nn.Parameter) else data
        _set(result, name, shared[id(old)])
    result.generation_config = copy.deepcopy(model.generation_config)
    result.train(model.training)
    return result


def own(model: PreTrainedModel, names: Sequence[str]) -> None:
    """Give `model` its own copy of the named tensors, in place of storage that it shares with another model.

    Parameters that stand under several names stay one parameter.
    """
    state = model.state_dict(keep_vars=True)
    copies: dict[int, Tensor] = {}
    for name in names:
        old = state[name]
        if id(old) not in copies:
            new = old.detach().clone()
            copies[id(old)] = nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new
    for name, old in state.items():  # every name of a copied tensor, also those not asked for
        if id(old) in copies:
            _set(model, name, copies[id(old)])


class StandIns:
    """Lets functions stand for layers of a model in passes without a KV cache."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.layers = Decoder.of(model).layers
        found: list[bool] = []
        handle = self.layers[0].register_forward_hook(
            lambda _, __, output: found.append(isinstance(output, tuple))
        )
        with torch.no_grad():  # only running a layer tells whether it gives more than the hidden states
            model(torch.zeros(1, 1, dtype=torch.long, device=model.device), use_cache=False)
        handle.remove()
        self._tuples = found[0]

    @contextmanager
    def within(self, functions: Mapping[int, Callable[[Tensor], Tensor]]) -> Iterator[None]:
        """Within, each of the functions, of the hidden states, stands for the layer of its index."""
        own = {index: vars(self.layers[index]).get("forward") for index in functions}
        for index, function in functions.items():
            self.layers[index].forward = self._forward(function)
        try:
            yield
        finally:
            for index, forward in own.items():
                del self.layers[index].forward
                if forward is not None:  # another library had put its own there
                    self.layers[index].forward = forward

    def _forward(self, function: Callable[[Tensor], Tensor]) -> Callable[..., object]:
        def forward(states: Tensor, *_: object, **__: object) -> object:
            return (function(states), None) if self._tuples else function(states)

        return forward


def blank(config: PretrainedConfig) -> PreTrainedModel:
    """A causal LM of `config` whose weights are not yet anything, and take no memory until written."""
    with no_init_weights():
        model = _from(config)
    model.requires_grad_(False)
    return model


def skeleton(config: PretrainedConfig) -> PreTrainedModel:
    """A causal LM of `config` on the meta device: names, shapes and dtypes, no memory."""
    with no_init_weights(), torch.device("meta"):  # where drawing random numbers would take most of the time
        model = _from(config)
    model.tie_weights()
    return model


def fill(model: PreTrainedModel, tensors: Mapping[str, Tensor], same_as: Mapping[str, str]) -> None:
    """Set the parameters and saved buffers of a `blank` model; `same_as` names those that are another's."""
    parameters = {name: nn.Parameter(tensor, requires_grad=False) for name, tensor in tensors.items()}
    for name, old in model.state_dict(keep_vars=True).items():
        new = parameters[same_as.get(name, name)]
        _set(model, name, new if isinstance(old, nn.Parameter) else new.detach())


def base_of(model: nn.Module) -> PreTrainedModel:
    """The transformers model itself, where peft has wrapped it."""
    unwrap: Any = getattr(model, "get_base_model", lambda: model)
    base = unwrap()
    assert isinstance(base, PreTrainedModel)
    return base


def longest(model: PreTrainedModel) -> int:
    """Return how many tokens the model can read; no limit where its config states none."""
    most: int | None = getattr(model.config, "max_position_embeddings", None)
    return most or sys.maxsize


def check_length(model: PreTrainedModel, length: int) -> None:
    """Refuse blocks of more tokens than the model reads."""
    most = longest(model)
    if length > most:
        raise UserError(
            f"Blocks of {length} tokens are longer than the {most} that the model reads; shorten them."
        )


def output_at(model: nn.Module, columns: Tensor | None = None, **inputs: Any) -> Any:
    """The output of a pass without a KV cache, with logits at these columns only; None: at hardly any.

    The head, which costs as much as ten layers of a small model, is computed there alone, where the model's
    forward can do that (`logits_to_keep`).
    """
    if columns is None:
        columns = torch.zeros(1, dtype=torch.long, device=inputs["input_ids"].device)
    if "logits_to_keep" in inspect.signature(base_of(model).forward).parameters:
        return model(**inputs, use_cache=False, logits_to_keep=columns)
    out = model(**inputs, use_cache=False)
    out.logits = out.logits[:, columns]
    return out


def _tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer under every name, buffers that are never saved included."""
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _from(config: PretrainedConfig) -> PreTrainedModel:
    build: Any = AutoModelForCausalLM.from_config
    model = build(config, dtype=config.dtype or torch.float32)
    assert isinstance(model, PreTrainedModel)
    model.train(False)
    return model


def _set(model: nn.Module, name: str, tensor: Tensor) -> None:
    parent, _, leaf = name.rpartition(".")
    module = model.get_submodule(parent)
    if not isinstance(getattr(module, leaf), nn.Parameter):  # a parameter would not stay a buffer
        setattr(module, leaf, tensor.detach())
    else:
        setattr(module, leaf, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, False))


def _check_same(old: Decoder, new: Decoder, order: Sequence[int]) -> None:
    """Refuse a stack whose layers, rebuilt from the shorter config, are not the layers they came from."""
    for slot, index in enumerate(order):
        if _traits(old.layers[index], index) != _traits(new.layers[slot], slot):
            raise UserError(
                f"Layer {index} of this {old.model.config.model_type!r} model would change its kind in a "
                "shorter stack, because its config does not say the kind layer by layer; it cannot be cut."
            )


def _traits(layer: nn.Module, index: int) -> dict[str, object]:
    """What makes a layer the layer it is, apart from its weights and its number."""
    traits: dict[str, object] = {k: (v.shape, v.dtype) for k, v in layer.state_dict().items()}
    for path, module in layer.named_modules():
        traits[path] = type(module)
        for name, value in vars(module).items():
            plain = isinstance(value, bool | int | float | str | None) and not name.startswith("_")
            if plain and name != "training" and not (name in _INDEX_NAMES and value == index):
                traits[f"{path}:{name}"] = value
    return traits
