"""Plain transformers checkpoints on disk, without traces of the machine that wrote them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.utils import logging

from offsite.model import tokenizer as tokenizers

_DTYPES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_LOCAL_KEYS = frozenset(
    ("_name_or_path", "name_or_path", "auto_map", "is_local", "local_files_only", "_commit_hash")
)
_VERBATIM = frozenset(  # where words are tokens, or a template's, and no paths
    ("added_tokens_decoder", "extra_special_tokens", "chat_template", "stop_strings")
)
_PATH = re.compile(  # how one begins, at the start of a text or after what is no word; that of a URL does not
    r"(?i:file:)[/\\]|^/[^/\n]+/"
    r"|(?:^|[^\w/}])(?:~[\w.-]*[/\\]|\.\.?[/\\]|/[^/\s<>]+/|[A-Za-z]:[\\/]|\\\\[\w.?-]+\\|[\w.+-]+@[\w.-]+:)"
    r"|(?:^|[^\w:/])//[^/\s<>]+/"  # a share on the network
)


def write(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    tensors: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the weights (or `tensors` in their place), config and tokenizer into `folder`."""
    with without_bars():
        model.save_pretrained(folder, state_dict=dict(tensors) if tensors else None)
    write_description(folder, model, tokenizer)


def stores_as_named(bare: PreTrainedModel) -> bool:
    """Tell whether transformers saves tensors of this architecture under the names that they have in memory.

    It splits fused experts, for example. `bare` may be on no device.
    """
    state = bare.state_dict()
    saved: dict[str, Tensor] = revert_weight_conversion(bare, dict(state))
    return saved.keys() == state.keys()


def write_one_by_one(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    declared: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
) -> None:
    """Write as `write`, holding one of the `tensors` at a time; they have the types and shapes `declared`.

    `declared` may be on no device. safetensors' own writer takes all tensors at once. The format is a header's
    length in eight bytes, the header, and the tensors (https://huggingface.co/docs/safetensors).
    """
    header: dict[str, dict[str, Any]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, like in sorted(declared.items(), key=lambda item: (-item[1].itemsize, item[0])):  # aligned
        begin, end = end, end + like.nbytes
        header[name] = {"dtype": _DTYPES[like.dtype], "shape": list(like.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    missing = set(declared)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in tensors:
            like = declared[name]
            assert (tensor.dtype, tensor.shape) == (like.dtype, like.shape), name
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
            missing.remove(name)
    assert not missing, missing
    model.config.architectures = [type(model).__name__]
    write_description(folder, model, tokenizer)


@contextmanager
def without_bars() -> Iterator[bool]:
    """Switch the progress bars of transformers and the hub off; yield whether they were on."""
    had_bars: bool = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield had_bars
    finally:
        if had_bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def write_description(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Write all but the weights: config, generation config and tokenizer."""
    model.config.dtype = model.dtype  # as it is, whatever it was made from; loading checks every tensor's
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    if tokenizer is not None:
        several = isinstance(tokenizer.chat_template, dict)  # each would be a file in a folder of their own
        tokenizer.save_pretrained(folder, save_jinja_files=not several)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        file = folder / name
        if file.exists():
            kept = _without_traces(json.loads(file.read_text(encoding="utf-8")))
            file.write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    if tokenizer is not None:
        tokenizers.settle(folder, tokenizer)


def _without_traces(data: dict[str, object]) -> dict[str, object]:
    """Remove what trainers and hubs leave of a machine: their own keys, and local paths anywhere."""
    found = {}
    for key, value in data.items():
        if key in _VERBATIM:
            found[key] = value
        elif key not in _LOCAL_KEYS and not _is_local(key) and not _is_local(value):
            found[key] = _cleaned(value)
    return found


def _is_local(value: object) -> bool:
    """Whether a text holds a local path, or a list such a text."""
    if isinstance(value, list):
        return any(map(_is_local, value))
    return isinstance(value, str) and _PATH.search(value) is not None


def _cleaned(value: object) -> object:
    """Remove the traces from the objects in a value."""
    if isinstance(value, list):
        return [_cleaned(each) for each in value]
    return _without_traces(value) if isinstance(value, dict) else value
