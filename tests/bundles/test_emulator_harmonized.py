"""What an emulator with harmonizers must be, or it is refused, though signed."""

from __future__ import annotations

import json
import math
import shutil
import struct

import pytest
import torch

from offsite.bundles.emulator import Emulator
from offsite.model.harmonizers import harmonizer_tensors
from offsite.owner.build import build
from tests.bundles.test_emulator import check, edit
from tests.bundles.test_emulator_thin import alias_more, several
from tests.families import tiny_model, tiny_tokenizer
from tests.sample_bundles import edit_tensors, put, refusal, sign
from tests.test_laws import SPLIT, harmonized

FIRST = "harmonizers.1.0."  # the tiny llama, 32 wide: a middle of the layers 2 and 3, chains after 1, 2 and 3
QUERY = "model.layers.2.self_attn.q_proj.weight"


@pytest.fixture(scope="module", params=["llama", "bloom"])
def saved(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("emulators")
    build(tiny_model(request.param), SPLIT, harmonized(), tokenizer=tiny_tokenizer()).save(folder / "emulator")
    return folder / "emulator"


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "emulator")


@pytest.fixture
def unread(folder):
    """A bundle of which Emulator.load would say that it holds NaN, if it ever came to read the weights."""
    edit("harmonizers.2.0.up.weight", lambda x: x * float("nan"))(folder)
    assert "'harmonizers.2.0.up.weight' holds NaN" in refusal(Emulator.load, folder)
    return folder


def matrices(up, down, at=FIRST):
    """A harmonizer with matrices of these shapes, whatever it was; None: not there."""
    shapes = {f"{at}up.weight": up, f"{at}down.weight": down}
    return several(**{name: None if shape is None else torch.ones(shape) for name, shape in shapes.items()})


def another(home, rank=3):
    """A sound harmonizer more, at a place of the sender's choice."""
    return matrices((32, rank), (rank, 32), at=f"{home}.")


def moved(old, new):
    def change(tensors):
        for name in [name for name in tensors if name.startswith(f"{old}.")]:
            tensors[name.replace(old, new)] = tensors.pop(name)

    return lambda folder: edit_tensors(folder, change)


def borrowed(**sources):
    """Tensors that are stored under no name of their own, but said to be the same as others."""

    def alter(folder):
        several(**dict.fromkeys(sources))(folder)
        alias_more(folder, **sources)

    return alter


def square(*names):
    """Harmonizers of the full rank, so that each of their matrices is as any other that is square."""
    return several(**{name: torch.ones(32, 32) for name in names})


def both(*alterations):
    return lambda folder: [alter(folder) for alter in alterations]


def declared(name, shape):
    """Let the header say a shape, and as many bytes as that takes, of which the file has but the old ones."""

    def alter(folder):
        file = folder / "emulator.safetensors"
        content = file.read_bytes()
        (size,) = struct.unpack("<Q", content[:8])
        header = json.loads(content[8 : 8 + size])
        start = header[name]["data_offsets"][0]
        header[name] |= {"shape": shape, "data_offsets": [start, start + 4 * math.prod(shape)]}
        text = json.dumps(header).encode()
        put(folder, file.name, struct.pack("<Q", len(text)) + text + content[8 + size :])

    return alter


def renamed(folder):
    (folder / "emulator.safetensors").rename(folder / "model.safetensors")
    sign(folder)


NONE = r"'harmonizers\.1\.0' of the shape .* makes no harmonizer of a width of 32"
STRAY = "'harmonizers.* does not belong there"
ALONE = "no harmonizer shares"
CASES = {
    "a wider one": (matrices((33, 3), (3, 33)), NONE),
    "a narrower one": (matrices((31, 3), (3, 31)), NONE),
    "one that reads more than it writes": (matrices((32, 3), (3, 33)), r"\(3, 33\) where the config says"),
    "a rank of zero": (matrices((32, 0), (0, 32)), NONE),
    "a rank above the width": (matrices((32, 33), (33, 32)), NONE),
    "a rank far above the width": (matrices((32, 10**5), (10**5, 32)), NONE),
    "matrices turned round": (matrices((3, 32), (32, 3)), NONE),
    "up without down": (matrices((32, 3), None), r"'harmonizers\.1\.0\.down\.weight' is missing"),
    "down without up": (matrices(None, (3, 32)), STRAY),
    "ranks that disagree": (matrices((32, 3), (4, 32)), r"\(4, 32\) where the config says .*\(3, 32\)"),
    "an up of three dimensions": (matrices((32, 3, 1), (3, 32)), NONE),
    "a down of three dimensions": (matrices((32, 3), (3, 32, 1)), r"\(3, 32, 1\) where the config says"),
    "an up of one dimension": (matrices((32,), (3, 32)), NONE),
    "an up that is a number": (matrices((), (3, 32)), STRAY),
    "a number skipped": (moved("harmonizers.2.1", "harmonizers.2.2"), STRAY),
    "a chain that starts with 1": (moved("harmonizers.3.0", "harmonizers.3.1"), STRAY),
    "a number with a zero before it": (moved("harmonizers.2.1", "harmonizers.2.01"), STRAY),
    "one after a top layer": (another("harmonizers.4.0"), STRAY),
    "one after the last layer": (another("harmonizers.5.0"), STRAY),
    "one past the stack": (another("harmonizers.6.0"), STRAY),
    "one after a bottom layer that is not the last": (another("harmonizers.0.0"), STRAY),
    "one before the stack": (another("harmonizers.-1.0"), STRAY),
    "one after no number": (another("harmonizers.x.0"), STRAY),
    "one after a number with a zero before it": (another("harmonizers.02.0"), STRAY),
    "one in a harmonizer": (another("harmonizers.1.0.up"), STRAY),
    "a bias": (several(**{"harmonizers.3.0.bias": torch.ones(32)}), STRAY),
    "a bias of a matrix": (several(**{"harmonizers.3.0.up.bias": torch.ones(32)}), STRAY),
    "another precision than the rest": (
        edit(f"{FIRST}up.weight", lambda x: x.bfloat16()),
        "stored as torch.bfloat16",
    ),
    "whole numbers": (edit(f"{FIRST}down.weight", lambda x: x.int()), "is of type I32"),
    "a huge rank without its bytes": (declared(f"{FIRST}up.weight", [32, 10**12]), "not a readable"),
    "a rank past all numbers": (declared(f"{FIRST}up.weight", [32, 2**62]), "not a readable"),
    "a name that transformers opens": (renamed, "has the wrong name: transformers would open it"),
    "matrices of another harmonizer": (
        borrowed(**{"harmonizers.3.0.up.weight": f"{FIRST}up.weight"}),
        ALONE,
    ),
    "a harmonizer made of another one": (
        borrowed(**{f"harmonizers.3.0.{part}.weight": f"{FIRST}{part}.weight" for part in ("up", "down")}),
        ALONE,
    ),
    "one more, made of another one": (
        borrowed(**{f"harmonizers.3.1.{part}.weight": f"{FIRST}{part}.weight" for part in ("up", "down")}),
        ALONE,
    ),
    "ten thousand made of another one": (
        borrowed(
            **{
                f"harmonizers.3.{number}.{part}.weight": f"{FIRST}{part}.weight"
                for number in range(1, 10**4)
                for part in ("up", "down")
            }
        ),
        ALONE,
    ),
    "one matrix as up and down": (
        both(square(f"{FIRST}up.weight"), borrowed(**{f"{FIRST}down.weight": f"{FIRST}up.weight"})),
        ALONE,
    ),
    "a harmonizer made of itself": (borrowed(**{f"{FIRST}up.weight": f"{FIRST}up.weight"}), ALONE),
    "a harmonizer made of nothing": (borrowed(**{f"{FIRST}up.weight": "nowhere"}), ALONE),
}
LLAMAS = {  # which has square matrices under names that are known
    "a layer's matrix": (borrowed(**{f"{FIRST}{part}.weight": QUERY for part in ("up", "down")}), ALONE),
    "an adapter layer's matrix": (
        borrowed(**{f"{FIRST}{part}.weight": QUERY.replace(".2.", ".0.") for part in ("up", "down")}),
        ALONE,
    ),
    "a layer's matrix made of a harmonizer": (
        both(square(f"{FIRST}up.weight", f"{FIRST}down.weight"), borrowed(**{QUERY: f"{FIRST}up.weight"})),
        ALONE,
    ),
    "an adapter layer's matrix made of a harmonizer": (
        both(
            square(f"{FIRST}up.weight", f"{FIRST}down.weight"),
            borrowed(**{QUERY.replace(".2.", ".0."): f"{FIRST}up.weight"}),
        ),
        ALONE,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_odd_harmonizers_are_refused_though_signed_and_unread(unread, case):
    check(unread, case, CASES)


@pytest.mark.parametrize("saved", ["llama"], indirect=True)
@pytest.mark.parametrize("case", LLAMAS)
def test_harmonizers_share_nothing_with_the_layers(unread, case):
    check(unread, case, LLAMAS)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["up", "down"])
def test_matrices_that_are_no_numbers_are_refused(folder, part, value):
    edit(f"{FIRST}{part}.weight", lambda x: x + value)(folder)
    assert f"'{FIRST}{part}.weight' holds NaN or infinity" in refusal(Emulator.load, folder)


def test_harmonizers_of_one_rank_each_and_of_the_full_rank_are_sound(folder):
    matrices((32, 1), (1, 32))(folder)
    matrices((32, 32), (32, 32), at="harmonizers.2.1.")(folder)
    ranks = [
        t.shape[1] for name, t in harmonizer_tensors(Emulator.load(folder).model).items() if ".up." in name
    ]
    assert ranks == [1, 3, 32, 3]


def test_a_chain_may_be_longer_than_it_was(folder):
    another("harmonizers.2.2")(folder)
    assert len(harmonizer_tensors(Emulator.load(folder).model)) == 10


def test_a_bundle_without_its_harmonizers_is_another_kind_and_has_the_wrong_name(folder):
    edit_tensors(folder, lambda x: [x.pop(name) for name in list(x) if name.startswith("harmonizers")])
    assert "has the wrong name" in refusal(Emulator.load, folder)
