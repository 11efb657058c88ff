"""Attacks by the weights: headers that lie, shapes past all memory, types and values that no sender means."""

from __future__ import annotations

import json
import os
import struct

import torch

from tests.hostile.corpus import attack, card, first, header, header_text, put, weights
from tests.sample_bundles import edit_json, edit_tensors

ALL = "emulator adapter"
WHY = "safetensors is not a readable"


def of_first(**changes):
    """An attack's body: the header's first tensor says otherwise."""
    return lambda folder: header(folder, lambda data: first(data).update(changes))


def dtype_of(said):
    return of_first(dtype=said)


for _name, _why, _alter in [
    ("double precision", "of type F64", dtype_of("F64")),
    ("bytes", "of type I8", dtype_of("I8")),
    ("truths", "of type BOOL", dtype_of("BOOL")),
    ("eighths", "of type F8_E4M3", dtype_of("F8_E4M3")),
    ("an unknown type", "of type PICKLE", dtype_of("PICKLE")),
    ("a dtype that steers the terminal", r"of type \\x1b\[2J", dtype_of("\x1b[2J")),
    ("a type that is a list", WHY, dtype_of(["F32"])),
    ("a type without end", "of type xxx", dtype_of("x" * 10**6)),
    ("a tensor of a tebi elements", WHY, of_first(shape=[2**40])),
    ("a product past all numbers", WHY, of_first(shape=[2**32, 2**32, 2**32])),
    ("a product that comes round to one", WHY, of_first(shape=[2**63, 2, 1])),
    ("a negative dimension", WHY, of_first(shape=[-1, -32])),
    ("a dimension that is true", WHY, of_first(shape=[True, 32])),
    ("a dimension and a half", WHY, of_first(shape=[1.5, 32])),
    ("ten thousand dimensions", WHY, of_first(shape=[1] * 10_000)),
    ("a shape that is a number", WHY, of_first(shape=32)),
    ("offsets turned round", WHY, of_first(data_offsets=[128, 0])),
    ("offsets past the end", WHY, of_first(data_offsets=[0, 2**40])),
    ("offsets past all numbers", WHY, of_first(data_offsets=[2**64 - 64, 2**64 + 64])),
    ("negative offsets", WHY, of_first(data_offsets=[-128, 0])),
    ("offsets that are broken", WHY, of_first(data_offsets=[0.0, 128.0])),
    ("three offsets", WHY, of_first(data_offsets=[0, 64, 128])),
    ("no offsets", WHY, lambda folder: header(folder, lambda data: first(data).pop("data_offsets"))),
    ("a field more", WHY, of_first(code="x")),
]:
    _alter.__name__ = _name
    attack(ALL, _why)(_alter)


@attack(ALL, WHY)
def tensors_that_overlap(folder):
    def change(data):
        names = [name for name in data if name != "__metadata__"]
        data[names[1]] = dict(data[names[0]])

    header(folder, change)


@attack(ALL, WHY)
def a_gap_between_tensors(folder):
    def change(data):
        for name in data:
            if name != "__metadata__":
                data[name]["data_offsets"] = [offset + 64 for offset in data[name]["data_offsets"]]

    header(folder, change)
    put(folder, weights(folder).name, weights(folder).read_bytes() + bytes(64))


def hollow(folder, name, begin=b""):
    """A file of a terabyte, as the card says, and next to nothing stored of it; its digest takes hours."""
    (folder / name).write_bytes(begin)
    os.truncate(folder / name, 1 << 40)
    card(folder, lambda data: data["files"].update({name: {"sha256": "0" * 64, "size": 1 << 40}}))


@attack(ALL, "safetensors' is a sparse file")
def a_terabyte_of_one_tensor(folder):
    said = {"dtype": "F32", "shape": [(1 << 38) - 32], "data_offsets": [0, (1 << 40) - 128]}
    text = json.dumps({min(tensor_names(folder)): said}).encode().ljust(120)
    hollow(folder, weights(folder).name, struct.pack("<Q", len(text)) + text)


@attack("emulator", "'tokenizer.json' is a sparse file")
def a_tokenizer_of_a_terabyte(folder):
    hollow(folder, "tokenizer.json")


@attack("emulator", "far larger than the weights")
def two_thousand_layers_of_next_to_nothing(folder):
    edit_json(folder, "config.json", num_hidden_layers=2000, layer_types=None)
    names = [name for name in tensor_names(folder) if name.startswith("model.layers.1.")]
    more = {name.replace(".1.", f".{n}.", 1): torch.zeros(0) for n in range(4, 2000) for name in names}
    edit_tensors(folder, lambda tensors: tensors.update(more))


@attack(ALL, WHY)
def bytes_behind_the_last_tensor(folder):
    put(folder, weights(folder).name, weights(folder).read_bytes() + pickle_magic())


@attack(ALL, WHY)
def a_header_longer_than_the_file(folder):
    raw = weights(folder).read_bytes()
    put(folder, weights(folder).name, struct.pack("<Q", len(raw)) + raw[8:])


@attack(ALL, WHY)
def a_header_of_a_hundred_million_bytes(folder):
    header_text(folder, b"{}" + b" " * 1000, said=100_000_000)


@attack(ALL, WHY)
def a_header_of_four_million_bytes_that_are_there(folder):
    header_text(folder, b"{" + b" " * 4_000_000 + b"}")


@attack(ALL, WHY)
def a_header_of_less_than_nothing(folder):
    header_text(folder, b"{}", said=2**64 - 1)


@attack(ALL, WHY)
def a_header_past_the_sign(folder):
    header_text(folder, b"{}", said=2**63)


@attack(ALL, WHY)
def a_header_of_no_bytes(folder):
    header_text(folder, b"", said=0)


@attack(ALL, WHY)
def an_empty_file(folder):
    put(folder, weights(folder).name, b"")


@attack(ALL, WHY)
def seven_bytes(folder):
    put(folder, weights(folder).name, b"\x08" * 7)


@attack(ALL, WHY)
def a_header_that_is_a_list(folder):
    header_text(folder, b"[]")


@attack(ALL, WHY)
def a_header_ten_thousand_deep(folder):
    header_text(folder, b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}")


@attack(ALL, WHY + ".*twice")
def a_tensor_twice_in_the_header(folder):
    name, entry = (
        json.dumps(tensor_names(folder)[0]).encode(),
        b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}',
    )
    text = header_bytes(folder)
    header_text(folder, b"{" + name + b":" + entry + b"," + text[1:])


@attack(ALL, WHY + ".*twice")
def a_shape_twice_in_the_header(folder):
    header_text(folder, header_bytes(folder).replace(b'"shape":', b'"shape":[1],"shape":', 1))


@attack(ALL, WHY)
def sixty_thousand_empty_tensors(folder):
    many = b",".join(b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % n for n in range(60_000))
    header_text(folder, b"{" + many + b"," + header_bytes(folder)[1:])


@attack(ALL, WHY)
def a_million_lists_in_the_header(folder):
    header_text(folder, b'{"x":[' + b"[]," * 600_000 + b"[]]," + header_bytes(folder)[1:])


@attack(ALL, "does not belong")
def an_empty_tensor_more(folder):
    header(folder, lambda data: data.update(x={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}))


@attack(ALL, WHY)
def metadata_that_is_no_text(folder):
    header(folder, lambda data: data.update(__metadata__={"format": ["pt"]}))


@attack(ALL, r"\\x1b\[2J")
def a_tensor_that_steers_the_terminal(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"\x1b[2J": tensors.pop(min(tensors))}))


@attack(ALL, r"\\u202e|is missing")
def a_tensor_that_reads_backwards(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"\u202eabc": tensors.pop(min(tensors))}))


@attack(ALL, "does not belong|missing")
def a_tensor_by_another_name(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"a.b": tensors.pop(max(tensors))}))


@attack(ALL, "does not belong")
def a_tensor_more(folder):
    edit_tensors(folder, lambda tensors: tensors.update({"top.7.extra": torch.ones(2)}))


@attack(ALL, "missing")
def a_tensor_less(folder):
    edit_tensors(folder, lambda tensors: tensors.pop(max(tensors)))


@attack(ALL, "missing|holds 0 layers")
def no_tensor(folder):
    edit_tensors(folder, lambda tensors: tensors.clear())


@attack(ALL, r"bfloat16")
def a_tensor_of_less_precision(folder):
    edit_tensors(folder, lambda tensors: tensors.update({max(tensors): tensors[max(tensors)].bfloat16()}))


@attack(ALL, r"\(1,\)")
def a_tensor_of_one_number(folder):
    edit_tensors(folder, lambda tensors: tensors.update({max(tensors): torch.ones(1)}))


@attack(ALL, r"\(3,\)|\(0,\)")
def a_tensor_of_no_number(folder):
    edit_tensors(folder, lambda tensors: tensors.update({max(tensors): torch.ones(0)}))


def spoilt(value, share=1.0):
    """An attack's body: the last matrix holds `value`, at least at its end."""

    def change(tensors):
        name = max(name for name in tensors if tensors[name].dim() == 2)
        tensor = tensors[name].clone().view(-1)
        tensor[-max(1, int(len(tensor) * share)) :] = value
        tensors[name] = tensor.view_as(tensors[name])

    return lambda folder: edit_tensors(folder, change)


for _name, _why, _alter in [
    ("no number", "NaN or infinity", spoilt(float("nan"), 0)),
    ("infinity", "NaN or infinity", spoilt(float("inf"), 0)),
    ("less than all numbers", "NaN or infinity", spoilt(float("-inf"))),
    ("a flood of denormals", "denormal", spoilt(1e-40)),
    ("a flood of negative denormals", "denormal", spoilt(-1e-42, 0.6)),
]:
    _alter.__name__ = _name
    attack(ALL + " lora", _why)(_alter)


@attack("lora", "missing")
def half_a_lora(folder):
    edit_tensors(folder, lambda tensors: tensors.pop(max(tensors)))


@attack("lora", "no LoRA of rank")
def ranks_that_do_not_match(folder):
    edit_tensors(folder, lambda tensors: tensors.update({max(tensors): tensors[max(tensors)][:, :1].clone()}))


@attack("lora", "another model")
def a_lora_of_another_width(folder):
    def change(tensors):
        site = min(tensors).rsplit(".lora_", 1)[0]
        tensors[f"{site}.lora_A.weight"] = torch.ones(2, 100_000)
        tensors[f"{site}.lora_B.weight"] = torch.ones(100_000, 2)

    edit_tensors(folder, change)


@attack("lora", "NaN or infinity")
def a_lora_whose_product_is_infinite(folder):
    edit_tensors(folder, lambda tensors: [tensor.fill_(3e38) for tensor in tensors.values()])


@attack("adapter", "NaN or infinity")
def a_hundred_megabytes_that_end_in_no_number(folder):
    def change(tensors):
        name = max(tensors)
        tensors[name] = torch.ones(25_000_000)
        tensors[name][-1] = float("nan")

    edit_tensors(folder, change)


def header_bytes(folder):
    raw = weights(folder).read_bytes()
    return raw[8 : 8 + struct.unpack("<Q", raw[:8])[0]].strip()


def tensor_names(folder):
    return sorted(name for name in json.loads(header_bytes(folder)) if name != "__metadata__")


def pickle_magic():
    return b"\x80\x04}."
