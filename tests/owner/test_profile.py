"""What is learnt once is kept: whole or not at all, of one model, and read only as far as it is asked for."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch

from offsite.errors import UserError
from offsite.model.split import Split
from offsite.owner.methods import METHODS
from offsite.owner.methods.base import Method, layers_to_keep
from offsite.owner.methods.crash import Crash
from offsite.owner.methods.uniform import Uniform
from offsite.owner.profile import Parts, Profile
from tests.families import tiny_model
from tests.sample_bundles import is_sentence, refusal

SPLIT = Split(1, 1)
TOKENS = torch.randint(3, 120, (16, 8), generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Slow(Method):
    """Learns of one layer after the other, and may be stopped before any of them."""

    name: ClassVar[str] = "slow"
    paper: ClassVar[str] = "none"
    calibration: ClassVar[tuple[int, int] | None] = (16, 8)
    scale: float = 1.0
    learnt: ClassVar[list[int]] = []
    stop: ClassVar[int | None] = None

    def measure(self, model, split, tokens, parts):
        for layer in split.middle(8):
            if str(layer) in parts.names:
                continue
            if layer == Slow.stop:
                raise KeyboardInterrupt
            Slow.learnt.append(layer)
            parts.put(str(layer), {"scores": self.scale * tokens.float() * layer, "rank": torch.tensor(layer)})

    def plan(self, profile, keep):
        return Uniform().plan(profile, layers_to_keep(profile, keep) / len(profile.middle))


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama")


@pytest.fixture(autouse=True)
def slow(monkeypatch):
    monkeypatch.setattr(Slow, "learnt", [])
    monkeypatch.setattr(Slow, "stop", None)
    return Slow


@pytest.fixture
def saved(model, tmp_path):
    """A folder that a profile was saved into."""
    Slow().profile(model, SPLIT, TOKENS).save(tmp_path / "saved", text="wikipedia")
    return tmp_path / "saved"


def same(one, other):
    return set(one) == set(other) and all(torch.equal(one[key], other[key]) for key in one)


def edit(folder, **changes):
    card = json.loads((folder / "profile.json").read_text())
    (folder / "profile.json").write_text(json.dumps(card | changes))


class TestFindings:
    @pytest.fixture(params=["memory", "folder"])
    def parts(self, request, tmp_path):
        return Parts(tmp_path / "work" if request.param == "folder" else None)

    def test_are_found_by_part_and_name(self, parts):
        tensors = {"a.b": torch.arange(4.0), "q/k": torch.tensor([1, 2])}
        parts.put("3", tensors)
        parts.put("model", {"cka": torch.eye(2).half()})
        assert parts.names == {"3", "model"}
        assert list(parts) == ["3/a.b", "3/q/k", "model/cka"]
        assert len(parts) == 3
        assert same(parts, {"3/a.b": tensors["a.b"], "3/q/k": tensors["q/k"], "model/cka": torch.eye(2).half()})
        assert "3/a.b" in parts
        for missing in ("3/c", "4/a.b", "3", "model"):
            assert missing not in parts
            with pytest.raises(KeyError, match=missing):
                parts[missing]

    def test_a_part_put_twice_is_as_put_last(self, parts):
        parts.put("3", {"a": torch.ones(2), "b": torch.ones(2)})
        parts.put("3", {"a": torch.zeros(2)})
        assert same(parts, {"3/a": torch.zeros(2)})

    def test_views_and_empty_parts_are_kept(self, parts):
        whole = torch.arange(12.0).view(3, 4)
        parts.put("views", {"turned": whole.T, "row": whole[1]})
        parts.put("empty", {})
        assert same(parts, {"views/turned": whole.T, "views/row": whole[1]})
        assert parts.names == {"views", "empty"}

    def test_what_is_no_number_is_refused(self, parts):
        with pytest.raises(UserError, match="3/a is not a number; look") as caught:
            parts.put("3", {"a": torch.tensor([1.0, float("nan")])})
        assert is_sentence(str(caught.value))
        assert parts.names == set()

    def test_one_that_cannot_be_written_leaves_nothing(self, tmp_path):
        (tmp_path / "3.safetensors").mkdir()
        with pytest.raises(OSError, match=r"3\.safetensors"):
            Parts(tmp_path).put("3", {"a": torch.ones(2)})
        assert [path.name for path in tmp_path.iterdir()] == ["3.safetensors"]


class TestResumed:
    def test_findings_of_the_same_mark_are_there_and_of_another_gone(self, tmp_path):
        Parts.resumed(tmp_path / "work", "one").put("3", {"a": torch.ones(2)})
        assert Parts.resumed(tmp_path / "work", "one").names == {"3"}
        other = Parts.resumed(tmp_path / "work", "other")
        assert other.names == set()
        other.put("4", {"a": torch.ones(2)})
        assert Parts.resumed(tmp_path / "work", "other").names == {"4"}

    def test_nothing_is_written_before_there_is_something_to_keep(self, tmp_path):
        Parts.resumed(tmp_path / "work", "one")
        assert not list(tmp_path.iterdir())

    def test_what_a_kill_left_is_passed_over(self, tmp_path):
        parts = Parts.resumed(tmp_path, "one")
        for part in "345":
            parts.put(part, {"a": torch.ones(200)})
        cut = tmp_path / "4.safetensors"
        cut.write_bytes(cut.read_bytes()[:-100])
        (tmp_path / "5.safetensors").write_bytes(b"")
        (tmp_path / ".6.safetensors.partial-new").write_bytes(b"begun")
        assert Parts.resumed(tmp_path, "one").names == {"3"}

    def test_a_folder_of_other_things_stays(self, tmp_path):
        (tmp_path / "model.safetensors").write_text("mine")
        assert "holds other things" in refusal(lambda path: Parts.resumed(path, "one"), tmp_path)
        assert (tmp_path / "model.safetensors").read_text() == "mine"

    def test_a_profile_that_was_stopped_goes_on_to_the_same_end(self, model, tmp_path, slow):
        undisturbed = Slow().profile(model, SPLIT, TOKENS)
        slow.learnt.clear()
        for stop in (3, 3, 4, None):
            slow.stop = stop
            if stop is None:
                profile = Slow().profile(model, SPLIT, TOKENS, tmp_path / "work")
            else:
                with pytest.raises(KeyboardInterrupt):
                    Slow().profile(model, SPLIT, TOKENS, tmp_path / "work")
        assert slow.learnt == [1, 2, 3, 4, 5, 6]
        assert same(profile.tensors, undisturbed.tensors)
        assert replace(profile, tensors={}) == replace(undisturbed, tensors={})

    @pytest.mark.parametrize("changed", ["model", "split", "tokens", "knob"])
    def test_what_was_learnt_of_other_inputs_is_learnt_anew(self, model, tmp_path, slow, changed):
        slow.stop = 3
        with pytest.raises(KeyboardInterrupt):
            Slow().profile(model, SPLIT, TOKENS, tmp_path / "work")
        slow.stop = None
        asked = {
            "model": (Slow(), tiny_model("llama", 7), SPLIT, TOKENS),
            "split": (Slow(), model, Split(1, 2), TOKENS),
            "tokens": (Slow(), model, SPLIT, TOKENS + 1),
            "knob": (Slow(scale=2.0), model, SPLIT, TOKENS),
        }
        method, *inputs = asked[changed]
        resumed = method.profile(*inputs, tmp_path / "work")
        assert same(resumed.tensors, method.profile(*inputs).tensors)

    def test_what_other_code_of_the_method_computed_is_computed_anew(self, model, tmp_path, slow, monkeypatch):
        slow.stop = 3
        with pytest.raises(KeyboardInterrupt):
            Slow().profile(model, SPLIT, TOKENS, tmp_path / "work")
        slow.stop = None
        real = Slow.measure

        def measure(self, model, split, tokens, parts):
            real(self, model, split, -tokens, parts)

        monkeypatch.setattr(Slow, "measure", measure)
        profile = Slow().profile(model, SPLIT, TOKENS, tmp_path / "work")
        assert torch.equal(profile.tensors["1/scores"], -TOKENS.float())


class TestSaved:
    @pytest.mark.parametrize("name", sorted(METHODS))
    def test_the_plan_is_the_same(self, model, tmp_path, name):
        method = METHODS[name](**({"steps": 2} if name == "scaleot" else {}))
        profile = method.profile(model, SPLIT, TOKENS if method.calibration else None)
        profile.save(tmp_path / "saved")
        loaded = Profile.load(tmp_path / "saved")
        assert same(loaded.tensors, profile.tensors)
        assert replace(loaded, tensors={}) == replace(profile, tensors={})
        for keep in (0.2, 0.5, 1.0):
            assert repr(method.plan(loaded, keep)) == repr(method.plan(profile, keep))

    @pytest.mark.parametrize("links", [True, False], ids=["linked", "copied"])
    def test_from_the_folder_where_it_was_learnt(self, model, tmp_path, monkeypatch, links):
        if not links:
            monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
        profile = Slow().profile(model, SPLIT, TOKENS, tmp_path / "work")
        profile.save(tmp_path / "saved")
        names = {f"{layer}.safetensors" for layer in range(1, 7)}
        assert {path.name for path in (tmp_path / "saved").iterdir()} == names | {"profile.json"}
        one, other = (tmp_path / where / "3.safetensors" for where in ("work", "saved"))
        assert one.samefile(other) == links
        in_memory = Slow().profile(model, SPLIT, TOKENS).tensors
        assert same(profile.tensors, in_memory)
        shutil.rmtree(tmp_path / "work")
        assert same(Profile.load(tmp_path / "saved").tensors, in_memory)

    def test_onto_itself(self, saved):
        before = dict(Profile.load(saved).tensors)
        Profile.load(saved).save(saved)
        assert same(Profile.load(saved).tensors, before)

    def test_knobs_of_every_kind(self, model, tmp_path):
        knobs = {"a": True, "b": 1, "c": 1.0, "d": "word", "e": float("inf"), "f": 1e-300}
        replace(Profile.of(model, SPLIT), knobs=knobs).save(tmp_path / "saved")
        loaded = Profile.load(tmp_path / "saved").knobs
        assert loaded == knobs
        assert [type(value) for value in loaded.values()] == [type(value) for value in knobs.values()]

    def test_it_tells_no_path(self, model, tmp_path, monkeypatch):
        monkeypatch.setattr("sys.argv", ["offsite", "profile", str(tmp_path)])
        Slow().profile(model, SPLIT, TOKENS).save(tmp_path / "saved", text=str(tmp_path / "text.txt"), seed=3)
        card = (tmp_path / "saved" / "profile.json").read_text()
        assert str(tmp_path) not in card
        said = json.loads(card)
        assert (said["text"], said["calibration"], said["record"]["seed"]) == ("text.txt", [16, 8], 3)

    def test_when_the_disk_is_full_what_was_there_stays(self, saved, model, monkeypatch):
        before = {path.name: path.read_bytes() for path in saved.iterdir()}

        def full(*_):
            raise OSError("full")

        monkeypatch.setattr("offsite.owner.parts.save_file", full)
        with pytest.raises(OSError, match="full"):
            Crash().profile(model, SPLIT, TOKENS).save(saved)
        assert {path.name: path.read_bytes() for path in saved.iterdir()} == before
        assert [path.name for path in saved.parent.iterdir()] == [saved.name]


class TestRefused:
    def test_what_is_no_profile(self, tmp_path):
        assert "There is no" in refusal(Profile.load, tmp_path / "nowhere")
        assert "is not a profile: it has no profile.json" in refusal(Profile.load, tmp_path)
        (tmp_path / "file").write_text("mine")
        assert "is not a profile" in refusal(Profile.load, tmp_path / "file")

    @pytest.mark.parametrize("hashed", [0, 1 << 20], ids=["large", "small"])
    def test_a_truncated_part(self, saved, monkeypatch, hashed):
        monkeypatch.setattr("offsite.owner.profile._HASHED_UP_TO", hashed)
        cut = saved / "3.safetensors"
        cut.write_bytes(cut.read_bytes()[:-1])
        assert "'3.safetensors' is truncated or altered" in refusal(Profile.load, saved)

    def test_an_altered_part(self, saved):
        part = saved / "3.safetensors"
        raw = part.read_bytes()
        part.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
        assert "'3.safetensors' is truncated or altered" in refusal(Profile.load, saved)

    def test_a_large_part_that_is_none_when_it_is_read(self, saved, monkeypatch):
        monkeypatch.setattr("offsite.owner.profile._HASHED_UP_TO", 0)
        part = saved / "3.safetensors"
        part.write_bytes(b"\xff" * part.stat().st_size)
        loaded = Profile.load(saved)
        assert "2/rank" in loaded.tensors
        assert "3.safetensors' cannot be read" in refusal(loaded.tensors.__getitem__, "3/rank")

    def test_a_part_more_or_less(self, saved):
        (saved / "3.safetensors").rename(saved / "9.safetensors")
        assert "'3.safetensors' is missing" in refusal(Profile.load, saved)
        shutil.copy(saved / "9.safetensors", saved / "3.safetensors")
        assert "'9.safetensors' does not belong to it" in refusal(Profile.load, saved)

    @pytest.mark.parametrize(
        ("changes", "why"),
        [
            ({"format": "offsite-profile/1"}, "'format': Input should be 'offsite-profile/2'"),
            ({"sizes": [1, -1]}, "'sizes.1': Input should be greater"),
            ({"knobs": {"a": [1]}}, "'knobs.a"),
            ({"split": {"bottom": 0, "top": 1}}, "leaves the adapter without an end"),
            ({"sizes": [0, 0]}, "has no middle"),
            ({"files": {"../3.safetensors": {"sha256": "0" * 64, "size": 1}}}, "should match pattern"),
            ({"more": 1}, "'more': Extra inputs"),
            ({"parent": "x"}, "'parent'"),
        ],
    )
    def test_a_card_that_is_not_sound(self, saved, changes, why):
        edit(saved, **changes)
        assert why in refusal(Profile.load, saved)

    @pytest.mark.parametrize("text", ["", "{", "[]", "\xff", "[" * 100_000])
    def test_a_card_that_is_none(self, saved, text):
        (saved / "profile.json").write_bytes(text.encode("latin-1"))
        assert "is not a sound profile's" in refusal(Profile.load, saved)

    def test_another_model_or_split(self, saved, model):
        profile = Profile.load(saved)
        profile.check_model(model)
        profile.check_model(tiny_model("llama"))
        profile.check_split(Split(1, 1))
        said = refusal(profile.check_model, tiny_model("llama", 7))
        assert f"another model, with the digest {profile.parent[:12]}," in said
        shorter = replace(profile, sizes=profile.sizes[1:])
        assert "of a model of 7 layers, and this one has 8" in refusal(shorter.check_model, model)
        said = refusal(profile.check_split, Split(1, 3))
        assert "of 1 bottom and 1 top layers, not of 1 and 3" in said


def test_the_whole_model_counts_and_not_the_split(model):
    """Every weight is in the digest, the adapter's too: a tuned model is profiled anew."""
    parent = Profile.of(model, SPLIT).parent
    assert Profile.of(model, Split(2, 3)).parent == parent
    for name in (
        "model.embed_tokens.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.7.self_attn.q_proj.weight",
    ):
        other = tiny_model("llama")
        other.state_dict()[name].view(-1)[0] += 1
        assert Profile.of(other, SPLIT).parent != parent
