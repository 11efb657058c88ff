"""What is refused of any bundle, before anything in it is trusted."""

from __future__ import annotations

import json
import os
import re
import shutil

import pytest
import torch

from offsite.bundles import bundle
from offsite.bundles.adapter import Adapter
from offsite.bundles.emulator import Emulator
from offsite.errors import UserError
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from tests.families import tiny_model
from tests.sample_bundles import edit_card, put, refusal, sign

WEIGHTS = "adapter.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    model = tiny_model("llama")
    folder = tmp_path_factory.mktemp("bundle") / "adapter"
    Adapter.of(model, build(model, Split(1, 1), (Place(3),)).origin).save(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "adapter")


def linked(folder):
    (folder / WEIGHTS).rename(folder.parent / "elsewhere")
    (folder / WEIGHTS).symlink_to(folder.parent / "elsewhere")


def linked_card(folder):
    (folder / "card.json").rename(folder.parent / "elsewhere")
    (folder / "card.json").symlink_to(folder.parent / "elsewhere")


def foldered(folder):
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).mkdir()


def altered(folder):
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)


def cut(folder):
    os.truncate(folder / WEIGHTS, (folder / WEIGHTS).stat().st_size - 4)


def named(name):
    """The weights also stand on the card under `name`."""

    def alter(folder):
        card = json.loads((folder / "card.json").read_text())
        edit_card(folder, files={**card["files"], name: card["files"][WEIGHTS]})
        shutil.copy(folder / WEIGHTS, folder.parent / "stolen")

    return alter


def origin(**changes):
    def alter(folder):
        card = json.loads((folder / "card.json").read_text())
        edit_card(folder, origin=card["origin"] | changes)

    return alter


def entry(**changes):
    def alter(folder):
        card = json.loads((folder / "card.json").read_text())
        edit_card(folder, files={WEIGHTS: card["files"][WEIGHTS] | changes})

    return alter


def card_text(change):
    def alter(folder):
        file = folder / "card.json"
        file.write_bytes(change(file.read_bytes()))

    return alter


ALTERED = {
    "an extra file": (
        lambda f: (f / "run.py").write_text("evil"),
        "'run.py' is in the folder but not on the card",
    ),
    "an extra hidden file": (lambda f: (f / ".x").write_text(""), "'.x' is in the folder but not on the card"),
    "an extra folder": (lambda f: (f / "more").mkdir(), "'more' is in the folder but not on the card"),
    "a file of another kind, signed": (lambda f: put(f, "x.pkl", b"no pickle"), "and nothing else"),
    "a missing file": (lambda f: (f / WEIGHTS).unlink(), f"'{WEIGHTS}' is on the card but missing"),
    "an altered byte": (altered, "truncated or altered"),
    "a truncated file": (cut, "truncated or altered"),
    "an empty file": (lambda f: (f / WEIGHTS).write_bytes(b""), "truncated or altered"),
    "a link in place of a file": (linked, "not a plain file"),
    "a folder in place of a file": (foldered, "not a plain file"),
    "a name that climbs out": (named("../stolen"), r"'\.\./stolen' is on the card but missing"),
    "an absolute name": (named("/etc/hostname"), "'/etc/hostname' is on the card but missing"),
    "an endless name": (named("x" * 10**6), "is on the card but missing"),
    "a size that is not so": (entry(size=5), "truncated or altered"),
    "a negative size": (entry(size=-1), "size"),
    "a digest that is none": (entry(sha256="A" * 64), "sha256"),
    "no card": (lambda f: (f / "card.json").unlink(), "is not a bundle, for it has no card.json"),
    "a link in place of the card": (linked_card, "is not a bundle, for it has no card.json"),
    "a card from the future": (
        lambda f: edit_card(f, format="offsite-adapter/2"),
        "'offsite-adapter/2', where",
    ),
    "the card of an emulator": (
        lambda f: edit_card(f, format="offsite-emulator/1"),
        "is an emulator, where",
    ),
    "a format that is no string": (lambda f: edit_card(f, format=[1]), r"format is \[1\], where"),
    "a format without end": (lambda f: edit_card(f, format="x" * 10**6), "its format is 'xxx"),
    "an unknown field": (lambda f: edit_card(f, code="import os"), "'code': Extra inputs are not permitted"),
    "an endless unknown field": (lambda f: edit_card(f, **{"x" * 10**6: 1}), "Extra inputs"),
    "a field twice": (card_text(lambda t: t.replace(b"{", b'{"lora": null, ', 1)), "a key stands twice"),
    "a field deep inside twice": (
        card_text(lambda t: t.replace(b'"bottom"', b'"top": 1, "bottom"')),
        "stands twice",
    ),
    "no field of the card": (card_text(lambda t: t.replace(b'"versions"', b'"version"')), "Field required"),
    "text where a number belongs": (origin(split={"bottom": "1", "top": 1}), "split.bottom"),
    "a number that is true": (origin(split={"bottom": True, "top": 1}), "split.bottom"),
    "a split without an end": (origin(split={"bottom": 0, "top": 1}), "without an end"),
    "a split without bounds": (origin(split={"bottom": 10**30, "top": 1}), "says 1000000"),
    "a digest of another length": (origin(parent="ab"), "parent"),
    "a card that is cut short": (card_text(lambda t: t[:-10]), "not sound JSON"),
    "a card without end": (card_text(lambda t: b'{"format": ' + b"[" * 10**6), "not sound JSON"),
    "a card of 20 MB": (card_text(lambda t: t + b" " * (20 << 20)), "larger than any honest one"),
    "a card that is a list": (card_text(lambda t: b"[" + t + b"]"), "holds no JSON object"),
    "a card of other text": (card_text(lambda t: t.decode().encode("utf-16")), "not UTF-8"),
    "half a letter": (card_text(lambda t: t.replace(b"offsite-adapter/1", b"\\ud800")), "ud800"),
    "an empty card": (card_text(lambda t: b""), "not sound JSON"),
}


@pytest.mark.parametrize("case", ALTERED)
def test_an_altered_bundle_is_refused_in_one_sentence(folder, case):
    alter, why = ALTERED[case]
    alter(folder)
    said = refusal(Adapter.load, folder)
    assert re.search(why, said), said


@pytest.mark.parametrize(("stored", "hollow"), [(0, True), (1, True), (4, False), (31, False), (32, False)])
def test_a_large_file_may_have_holes_but_be_no_hole(folder, stored, hollow):
    file = folder / WEIGHTS
    file.write_bytes(b"x" * (stored << 20))
    os.truncate(file, 32 << 20)
    if file.stat().st_blocks * 512 > (stored + 1) << 20:
        pytest.skip("this disk stores holes")
    sign(folder)
    assert ("is a sparse file" in refusal(Adapter.load, folder)) == hollow


def test_signing_again_what_was_not_altered_changes_nothing(folder):
    sign(folder)
    Adapter.load(folder)


def test_the_digest_is_of_the_card_and_so_of_all(folder):
    digest = Adapter.load(folder).digest
    edit_card(folder, emulator="0" * 64)
    assert Adapter.load(folder).digest != digest


@pytest.mark.parametrize("kind", [Adapter, Emulator])
def test_what_is_not_there_or_no_folder_is_said_so(tmp_path, kind):
    assert "There is no" in refusal(kind.load, tmp_path / "nothing")
    (tmp_path / "file").write_text("x")
    assert "file' is not a bundle" in refusal(kind.load, tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "empty' is not a bundle" in refusal(kind.load, tmp_path / "empty")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_nothing_that_is_not_finite_is_written(tmp_path, value):
    tensors = {"good": torch.ones(3), "bad": torch.tensor([1.0, value])}
    with pytest.raises(UserError, match="'bad' holds NaN or infinity"):
        bundle.save_tensors(tensors, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_the_digest_of_tensors_sees_names_types_shapes_and_values():
    one = {"a": torch.zeros(2, 3)}
    others = [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.bfloat16)},
        {"a": torch.zeros(2, 3) + 1e-9},
        {"a": torch.zeros(2, 3), "b": torch.zeros(1)},
    ]
    digests = {bundle.digest(tensors) for tensors in [one, *others]}
    assert len(digests) == 6
    assert bundle.digest({"a": torch.zeros(3, 2).T}) == bundle.digest(one)


def test_versions_name_no_build_of_a_machine(monkeypatch):
    from offsite import provenance

    monkeypatch.setattr(
        provenance, "version", lambda name: "2.13.0+cpu.debian" if name == "torch" else "1.0rc1"
    )
    assert bundle.versions()["torch"] == "2.13.0"
    assert bundle.versions()["peft"] == "1.0rc1"
