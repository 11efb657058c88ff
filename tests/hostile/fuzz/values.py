"""JSON altered at random, and odd values, texts and keys to alter it with."""

from __future__ import annotations

import copy
import json
from functools import cache
from random import Random
from typing import Any

from transformers import CONFIG_MAPPING

from tests.hostile.test_fuzz import ODD, places

TEXTS = (
    "", " ", "x" * 5000, "\x1b[2J", "\u202e", "\x00", "../x", "/etc/passwd", "</home/alice/x>", "{{", "{%",
    "%9999d", "e\u0301" * 500, "\N{GRINNING FACE}", "'", "\n\noffsite: all is well", "True", "null", "0" * 64,
    "float16", "bfloat16", "float64", "float8_e4m3fn", "eager", "sdpa", "flash_attention_2", "gelu", "relu",
    "linear", "dynamic", "yarn", "longrope", "full_attention", "sliding_attention", "linear_attention",
)  # fmt: skip
NUMBERS = (-1, 0, 1, 2, 3, 7, 16, 32, 33, 64, 127, 128, 129, 4096, 40_000_000, 2**31, 2**40, 2**63, 2**64,
           -0.0, 1e-45, 1e-8, 0.5, 1.0, 1e4, 1e38, 1e308, -1e308)  # fmt: skip
TYPES = (  # a part of all: the first import of a family takes longer than a case
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "gpt2", "opt", "bloom",
    "gpt_neox", "phi3", "phi", "gpt_neo", "gptj", "falcon", "mpt", "olmo", "olmo2", "cohere", "granite",
    "stablelm", "starcoder2", "mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3", "diffllama", "lfm2",
    "rwkv", "mamba", "mamba2", "jamba", "zamba2", "recurrent_gemma", "ernie4_5_moe", "hrm_text",
    "gpt_oss", "smollm3", "t5", "bert", "clip", "whisper", "nemotron", "persimmon", "xglm", "codegen",
    "ctrl", "biogpt", "glm", "glm4", "minimax", "dbrx", "bamba", "falcon_h1", "exaone4", "arcee",
    "helium",
)  # fmt: skip


@cache
def config_keys() -> tuple[tuple[str, Any], ...]:
    """Keys of many families' configs, each with the value it has there."""
    found: dict[str, Any] = {}
    for kind in TYPES:
        if kind in CONFIG_MAPPING:
            found |= CONFIG_MAPPING[kind]().to_dict()
    return tuple(sorted(found.items(), key=lambda item: item[0]))


def value(dice: Random, near: Any = None) -> Any:
    """An odd value, often of the kind of the one that stood there."""
    kind = dice.random()
    if type(near) is int and kind < 0.5:
        return dice.choice([near + 1, near - 1, near * 2, near * 1000, -near, near / 3, str(near), [near]])
    if isinstance(near, str) and kind < 0.4:
        return dice.choice([near + "x", near[:-1], near.upper(), near * 50, [near], f"{near}\n{near}"])
    if isinstance(near, list) and near and kind < 0.5:
        return dice.choice([near * 2, near[:-1], near[::-1], near * 1000, [near], near[0]])
    if kind < 0.7:
        return dice.choice(NUMBERS)
    if kind < 0.85:
        return dice.choice(TEXTS)
    return copy.deepcopy(dice.choice([*ODD, deep(dice), {dice.choice(TEXTS): dice.choice(NUMBERS)}]))


def deep(dice: Random) -> Any:
    """Lists or objects within each other."""
    data: Any = 1
    for _ in range(dice.choice([3, 30, 100])):
        data = [data] if dice.random() < 0.5 else {"a": data}
    return data


def alter(dice: Random, data: Any, keys: tuple[tuple[str, Any], ...] = ()) -> None:
    """Replace, drop, rename, double or add one value of `data`."""
    at = dice.choice(places(data))
    inside = data
    for key in at[:-1]:
        inside = inside[key]
    if not at or (isinstance(data, dict) and keys and dice.random() < 0.3):
        _add(dice, data, keys)
        return
    last, how = at[-1], dice.random()
    if how < 0.6:
        inside[last] = value(dice, inside[last])
    elif how < 0.75:
        del inside[last]
    elif isinstance(inside, list):
        inside.insert(dice.randint(0, len(inside)), copy.deepcopy(dice.choice(inside)))
    elif how < 0.85:
        inside[f"{last}{dice.choice(['x', '_', ' ', '.', chr(0x202E)])}"] = inside.pop(last)
    else:
        inside[last] = copy.deepcopy(dice.choice(list(inside.values())))


def _add(dice: Random, data: Any, keys: tuple[tuple[str, Any], ...]) -> None:
    if isinstance(data, dict):
        key, usual = dice.choice(keys) if keys else (dice.choice(TEXTS), 1)
        data[key] = value(dice, usual) if dice.random() < 0.7 else usual
    elif isinstance(data, list):
        data.append(value(dice))


def text_of(dice: Random, data: Any) -> bytes:
    """JSON text of `data`, sometimes with a doubled key, odd bytes, or an odd number."""
    text = json.dumps(data, ensure_ascii=dice.random() < 0.9).encode("utf-8", "surrogatepass")
    how = dice.random()
    if how < 0.04:
        return text.replace(b"{", b'{"x": 1, "x": 2,', 1)
    if how < 0.08:
        return text.replace(
            b": 1", dice.choice([b": 1e999", b": NaN", b": 1" + b"0" * 5000, b": 01", b": 1.0"]), 1
        )
    return flipped(dice, text) if how < 0.12 else text


def flipped(dice: Random, raw: bytes) -> bytes:
    """`raw` with a few bytes changed, doubled or left out."""
    data = bytearray(raw or b"x")
    for _ in range(dice.randint(1, 3)):
        at = dice.randrange(len(data) + 1)
        data[at : at + dice.randint(0, 3)] = dice.randbytes(dice.randint(0, 3))
    return bytes(data)
