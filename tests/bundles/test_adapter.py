"""What an adapter bundle must be, and what may be put into a model."""

from __future__ import annotations

import re
import shutil

import pytest
import torch

from offsite.bundles.adapter import Adapter, Lora, adapter_linears, swap
from offsite.errors import UserError
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build, origin
from tests.families import tiny_model
from tests.sample_bundles import edit_card, edit_tensors, refusal

SPLIT = Split(1, 2)
Q = "bottom.0.self_attn.q_proj"
UP = "top.1.mlp.up_proj"


def whole(model):
    return Adapter.of(model, build(model, SPLIT, (Place(3),)).origin)


def lora(model, rank=2, value=0.01):
    """A LoRA on every linear of the adapter layers of `model`."""
    layers = whole(model).tensors
    tensors = {}
    for site, turned in adapter_linears(model, SPLIT).items():
        rows, columns = layers[f"{site}.weight"].T.shape if turned else layers[f"{site}.weight"].shape
        tensors[f"{site}.lora_A.weight"] = torch.full((rank, columns), value)
        tensors[f"{site}.lora_B.weight"] = torch.full((rows, rank), value)
    return Adapter(tensors, origin(model, SPLIT), lora=Lora(rank=rank, alpha=4))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    whole(tiny_model("llama")).save(folder / "whole")
    lora(tiny_model("llama")).save(folder / "lora")
    return folder


def tensors(change):
    return lambda folder: edit_tensors(folder, change)


def rename(old, new):
    return tensors(lambda found: found.update({new: found.pop(old)}))


def drop(beginning):
    def change(found):
        for name in [name for name in found if name.startswith(beginning)]:
            del found[name]

    return tensors(change)


def split(bottom, top):
    def alter(folder):
        parts = origin(tiny_model("llama"), SPLIT)
        edit_card(folder, origin={**vars(parts), "split": {"bottom": bottom, "top": top}})

    return alter


ALTERED = {
    "NaN": ("whole", tensors(lambda x: x[f"{UP}.weight"].fill_(float("nan"))), "NaN or infinity"),
    "whole numbers": ("whole", tensors(lambda x: x.update(bool=torch.ones(2, dtype=torch.int64))), "type I64"),
    "a place in the middle": ("whole", rename(f"{UP}.weight", "middle.0.weight"), "'middle.0.weight' does not"),
    "a place past the split": ("whole", rename(f"{UP}.weight", "top.2.x"), "'top.2.x' does not belong"),
    "a place by a strange number": ("whole", rename(f"{UP}.weight", "top.01.x"), "'top.01.x' does not belong"),
    "a layer less": ("whole", drop("top.1."), "holds 2 layers where its card says 3"),
    "nothing": ("whole", drop(""), "holds 0 layers where its card says 3"),
    "another split": ("whole", split(1, 1), "does not belong into an adapter of 1 bottom and 1 top"),
    "a split without bounds": ("whole", split(10**30, 2), "holds 3 layers where"),
    "half a LoRA": ("lora", drop(f"{Q}.lora_A"), f"'{Q}.lora_A.weight' is missing"),
    "a whole layer in a LoRA": (
        "lora",
        rename(f"{Q}.lora_A.weight", f"{Q}.weight"),
        "lora_[AB].weight' is missing",
    ),
    "another rank": ("lora", lambda f: edit_card(f, lora={"rank": 3, "alpha": 4}), "no LoRA of rank 3"),
    "a rank past all bounds": ("lora", lambda f: edit_card(f, lora={"rank": 10**9, "alpha": 4}), "lora.rank"),
    "a LoRA that is none": (
        "whole",
        lambda f: edit_card(f, lora={"rank": 2, "alpha": 4}),
        "is missing|does not",
    ),
}


@pytest.mark.parametrize("case", ALTERED)
def test_an_odd_adapter_is_refused_though_signed(saved, tmp_path, case):
    kind, alter, why = ALTERED[case]
    folder = shutil.copytree(saved / kind, tmp_path / "adapter")
    alter(folder)
    said = refusal(Adapter.load, folder)
    assert re.search(why, said), said


@pytest.mark.parametrize("kind", ["whole", "lora"])
def test_what_is_loaded_is_what_was_saved(saved, kind):
    made = {"whole": whole, "lora": lora}[kind](tiny_model("llama"))
    again = Adapter.load(saved / kind)
    assert (again.origin, again.lora, again.emulator) == (made.origin, made.lora, made.emulator)
    assert again.tensors.keys() == made.tensors.keys()
    assert all(torch.equal(again.tensors[name], made.tensors[name]) for name in made.tensors)


MISFITS = {
    "a tensor less": (whole, lambda x: x.pop(f"{UP}.weight"), "is missing"),
    "a tensor more": (whole, lambda x: x.update({"top.0.extra": torch.ones(1)}), "does not belong"),
    "another shape": (whole, lambda x: x.update({f"{UP}.weight": torch.ones(32, 64)}), "another model"),
    "another precision": (
        whole,
        lambda x: x.update({f"{UP}.weight": torch.ones(64, 32).half()}),
        "another model",
    ),
    "a LoRA on less": (lora, lambda x: [x.pop(f"{UP}.lora_{p}.weight") for p in "AB"], f"'{UP}' is missing"),
    "a LoRA on what is no linear": (
        lora,
        lambda x: x.update({f"top.0.mlp.lora_{p}.weight": torch.ones(2, 2) for p in "AB"}),
        "'top.0.mlp' does not belong",
    ),
    "a LoRA past all memory": (
        lora,
        lambda x: x.update(
            {f"{UP}.lora_A.weight": torch.ones(2, 10**6), f"{UP}.lora_B.weight": torch.ones(10**6, 2)}
        ),
        "another model",
    ),
    "a LoRA whose sum is infinite": (
        lora,
        lambda x: [x[f"{UP}.lora_{p}.weight"].fill_(3e38) for p in "AB"],
        "NaN or infinity",
    ),
}


@pytest.mark.parametrize("case", MISFITS)
def test_what_does_not_fit_is_refused_and_changes_nothing(case):
    make, change, why = MISFITS[case]
    model = tiny_model("llama")
    adapter = make(model)
    change(adapter.tensors)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    said = refusal(lambda found: swap(model, found), adapter)
    assert re.search(why, said), said
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_an_adapter_for_more_layers_than_there_are_is_refused():
    model = tiny_model("llama")
    parts = origin(model, Split(4, 3))
    small = build(model, SPLIT, (Place(3),)).model
    with pytest.raises(UserError, match="has no middle"):
        swap(small, Adapter.of(model, parts))
