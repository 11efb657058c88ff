"""Cards and headers altered at random: each is refused in one sentence or opened, soon and in little memory.

`make test` asks a few hundred cases, always the same; `pytest -m long tests/hostile` asks 10,000.
"""

from __future__ import annotations

import copy
import json
import struct
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir

from offsite.bundles.adapter import Adapter
from offsite.bundles.emulator import Emulator
from offsite.errors import UserError
from tests.hostile.runner import honest, memory
from tests.sample_bundles import sign

ODD = [
    None, True, False, 0, 1, -1, 2, 32, 2**31, 2**63, 2**64, 10**30, 0.5, 1e308, float("nan"), float("inf"),
    "", "F32", "F64", "x" * 5000, "\x1b[2J", "\u202e", "\ud800", "../x", "0" * 64,
    [], [0], [-1], [2**63, 2], [1] * 100, {}, {"a": 1}, {"sha256": "0" * 64, "size": 0},
]  # fmt: skip
MOST_MEGABYTES = 64
SLOWEST = timedelta(seconds=10)  # a hang, on any machine
FEW, MANY = 100, 3000

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="a peak of memory is read from /proc")


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzzed")
    set_hypothesis_home_dir(folder / "hypothesis")  # not into the working folder
    honest(folder)
    return folder


def places(data, at=()):
    """The path of every value in JSON data."""
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [at, *(place for key, value in inside for place in places(value, (*at, key)))]


@st.composite
def altered(draw, data):
    """JSON text of `data` with some values replaced, dropped, renamed or doubled, and some bytes flipped."""
    data = copy.deepcopy(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.sampled_from(places(data)))
        if at:
            alter(draw, data, at)
    text = bytearray(json.dumps(data).encode())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        where = draw(st.integers(0, len(text) - 1))
        text[where : where + draw(st.integers(0, 2))] = bytes([draw(st.integers(0, 255))])
    return bytes(text)


def alter(draw, data, at):
    """One value, at the path `at`, is another, or gone, or under another name, or there once more."""
    home = data
    for key in at[:-1]:
        home = home[key]
    how = draw(st.sampled_from(["replace", "replace", "drop", "rename", "double"]))
    value = home[at[-1]] if how == "replace" else home.pop(at[-1])
    if how == "replace":
        near = [value + 1, value - 1, value * 4] if type(value) is int else []
        home[at[-1]] = copy.deepcopy(draw(st.sampled_from(ODD + near)))
    elif isinstance(home, list):
        home += [value, value] if how != "drop" else []
    elif how != "drop":
        home[f"{at[-1]}x" if how == "rename" else str(at[-1])] = [value, value] if how == "double" else value


def fuzz(kind, folder, write, data, cases):
    """Open `cases` altered bundles; whatever is no refusal or success, or late, or large, fails."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before = memory("VmRSS")
    outcomes = {"opened": 0, "refused": 0}

    @settings(max_examples=cases, deadline=SLOWEST, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(altered(data))
    def once(text):
        write(text)
        try:
            kind.load(folder)
            outcomes["opened"] += 1
        except UserError as error:
            outcomes["refused"] += 1
            said = str(error)
            assert said.isprintable(), said
            assert len(said) <= 600, said

    start = time.monotonic()
    once()
    print(f"{folder.name}: {outcomes}, {time.monotonic() - start:.0f} s")  # noqa: T201 - shown by pytest -s
    assert outcomes["refused"] > cases / 3
    assert (memory("VmHWM") - before) / 1024 < MOST_MEGABYTES


def fuzz_card(kind, folder, cases):
    file = folder / "card.json"
    kept = file.read_bytes()
    try:
        fuzz(kind, folder, file.write_bytes, json.loads(kept), cases)
    finally:
        file.write_bytes(kept)


def fuzz_header(kind, folder, cases):
    file = next(folder.glob("*.safetensors"))
    kept, card = file.read_bytes(), (folder / "card.json").read_bytes()
    size = struct.unpack("<Q", kept[:8])[0]

    def write(text):
        file.write_bytes(struct.pack("<Q", len(text)) + text + kept[8 + size :])
        sign(folder)

    try:
        fuzz(kind, folder, write, json.loads(kept[8 : 8 + size]), cases)
    finally:
        file.write_bytes(kept)
        (folder / "card.json").write_bytes(card)


@pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.long)])
@pytest.mark.parametrize("part", [fuzz_card, fuzz_header])
def test_an_adapter_altered_at_random(bundles, part, cases):
    part(Adapter, bundles / "lora", cases)


@pytest.mark.parametrize("cases", [FEW // 2, pytest.param(MANY * 2 // 3, marks=pytest.mark.long)])
@pytest.mark.parametrize("part", [fuzz_card, fuzz_header])
def test_an_emulator_altered_at_random(bundles, part, cases):
    part(Emulator, bundles / "emulator", cases)
