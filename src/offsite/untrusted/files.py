"""Read single untrusted files within bounds: small text, JSON, the headers and values of tensors.

Each bound holds before memory is taken: a file's size before its text, its marks before its values, a header's
extents before a tensor.
"""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from offsite.errors import UserError, brief, printable

Header = tuple[torch.dtype, tuple[int, ...]]
"""What a safetensors file declares of a tensor before it is read: its type and shape."""

MOST_TEXT = 2 << 20  # bytes; ample for a thousand layers of shared tensors
_MOST_MARKS = 200_000  # each may be a list or a dict in memory, of some hundred bytes
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MOST_DIMENSIONS = 8
_CHUNK = 1 << 20  # values looked at together
_MOST_DENORMAL = 0.1  # of a tensor's values; honest ones have next to none


def read_text(file: Path, most: int = MOST_TEXT) -> str:
    """Read the text of a file of at most so many bytes."""
    if file.stat().st_size > most:
        raise UserError(f"{file} is larger than any honest one; ask the sender for it again.")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 text; ask the sender for it again.") from error


def parse(file: Path | str, text: str, marks: int = _MOST_MARKS) -> dict[str, Any]:
    """Parse the JSON object in the `text` of a `file`: every number finite, no key twice, few values."""
    if sum(map(text.count, ",[{")) > marks:
        raise UserError(f"{file} is not sound JSON (it holds more than {marks} values).")
    try:
        data = json.loads(
            text, object_pairs_hook=_no_duplicates, parse_constant=_no_number, parse_float=_finite_float
        )
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not sound JSON ({brief(error)}).") from error
    if not isinstance(data, dict):
        raise UserError(f"{file} holds no JSON object; ask the sender for it again.")
    return data


def read_object(file: Path) -> dict[str, Any]:
    """Read the JSON object in a small file; a UserError unless it is sound, with no key twice."""
    return parse(file, read_text(file))


def headers(file: Path) -> dict[str, Header]:
    """Read which tensors a safetensors file declares: floating point, filling it without gap or overlap.

    Reads no more than the header. The format: https://huggingface.co/docs/safetensors.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or not 2 <= length <= min(size - 8, MOST_TEXT):
            _refuse(file, f"it says that its header has {length} bytes")
        raw = stream.read(length)
    try:
        data = parse("its header", raw.decode())
    except (UnicodeDecodeError, UserError) as error:
        _refuse(file, str(error))
    about = data.pop("__metadata__", {})
    if not isinstance(about, dict) or not all(isinstance(value, str) for value in about.values()):
        _refuse(file, "its metadata is no text")
    found, extents = {}, [(0, 0)]
    for name, entry in data.items():
        found[name], extent = _entry(file, name, entry)
        extents.append(extent)
    extents.sort()
    if any(end != begin for (_, end), (begin, _) in pairwise(extents)) or extents[-1][1] != size - 8 - length:
        _refuse(file, "its tensors overlap, leave a gap or do not end where it does")
    return found


def finite(tensor: Tensor) -> bool:
    """Tell whether a tensor holds neither NaN nor infinity; `isfinite` would take a copy's memory."""
    return not tensor.numel() or all(math.isfinite(value) for value in tensor.detach().aminmax())


def flaw(tensor: Tensor) -> str:
    """Name what no sound tensor holds but this one does; empty for none. Takes next to no memory."""
    if not finite(tensor):
        return "NaN or infinity"
    if tensor.dtype == torch.float16:  # computed with as float32, where none of its values is denormal
        return ""
    smallest = torch.finfo(tensor.dtype).tiny
    chunks = torch.split(tensor.detach().reshape(-1), _CHUNK)
    count = sum(int(((chunk != 0) & (chunk.abs() < smallest)).sum()) for chunk in chunks)
    return "a flood of denormal numbers" if count > _MOST_DENORMAL * tensor.numel() else ""


def _entry(file: Path, name: str, entry: Any) -> tuple[Header, tuple[int, int]]:
    """Read the header and the extent, in bytes, of one tensor."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(file, f"{name!r:.80} is not given as type, shape and offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or not _counts(shape, _MOST_DIMENSIONS) or not _counts(offsets, 2):
        _refuse(file, f"{name!r:.80} is not given as type, shape and offsets")
    if kind not in _DTYPES:
        raise UserError(
            f"{file}: {name!r:.80} is of type {printable(kind[:20])}; a bundle holds F32, F16, BF16."
        )
    dtype = _DTYPES[kind]
    if len(offsets) != 2 or offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        _refuse(file, f"{name!r:.80} is not as long as its shape")
    return (dtype, tuple(shape)), (offsets[0], offsets[1])


def _counts(value: Any, most: int) -> bool:
    """Whether `value` is a list of at most so many whole numbers that a tensor can have."""
    small = isinstance(value, list) and len(value) <= most
    return small and all(type(each) is int and 0 <= each < 1 << 48 for each in value)


def _refuse(file: Path, why: str) -> NoReturn:
    raise UserError(f"{file} is not a readable safetensors file ({brief(why, 200)}).")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    data = dict(pairs)
    if len(data) != len(pairs):
        raise ValueError("a key stands twice")
    return data


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _finite_float(word: str) -> float:
    value = float(word)
    if not math.isfinite(value):
        _no_number(word[:20])
    return value
