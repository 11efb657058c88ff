"""Keys, signatures and receipts, on the command line."""

from __future__ import annotations

import json
import os
import shutil

import pytest

pytest.importorskip("model_signing.signing")

from offsite.bundles.adapter import Adapter
from tests.cli.conftest import SHORT, command, refused, spoken


@pytest.fixture
def signed(world, tmp_path):
    """The owner's keys, and bundles that are signed with them."""
    folder = tmp_path / "signed"
    assert command("keygen", "-o", folder / "owner").code == 0
    for name in ("emulator", "adapter"):
        shutil.copytree(world / name, folder / name)
        assert command("sign", folder / name, "--key", folder / "owner.key").code == 0
    return folder


def tune(world, emulator, out, *more):
    return ("tune", emulator, "--data", world / "data.jsonl", "-o", out, *SHORT, *more)


def plug(world, adapter, out, *more):
    return ("plug", world / "model", adapter, "-o", out, *more)


class TestKeys:
    def test_both_sides_see_the_same_fingerprint(self, signed, here):
        made = command("keygen", "-o", here / "me", "--json").json
        assert made["private"].endswith("me.key")
        assert made["public"].endswith("me.pub")
        put = command("sign", signed / "adapter", "--key", made["private"], "--json").json
        found = command("verify", signed / "adapter", "--key", made["public"], "--json").json
        assert made["fingerprint"] == put["fingerprint"] == found["fingerprint"]
        assert found["files"].keys() == {"card.json", "adapter.safetensors"}

    def test_people_are_told_what_to_send(self, signed, here):
        said = command("keygen", "-o", here / "me").out
        assert "me.key: sign with it, and keep it to yourself." in said
        assert len(said.splitlines()[-1]) == 64
        assert "Send this folder." in command("sign", signed / "adapter", "--key", here / "me.key").out
        assert "signed it: all 2 files." in command("verify", signed / "adapter", "--key", here / "me.pub").out

    def test_nothing_is_replaced_or_made_of_what_is_wrong(self, world, signed, here):
        assert "never replaced" in refused(signed, "keygen", "-o", signed / "owner")
        assert "holds no private key" in refused(
            signed, "sign", signed / "adapter", "--key", signed / "owner.pub"
        )
        assert "is not a bundle" in refused(signed, "sign", world / "model", "--key", signed / "owner.key")
        assert "gone.pub'; check" in refused(signed, "verify", signed / "adapter", "--key", signed / "gone.pub")
        assert "is not signed" in refused(here, "verify", world / "adapter", "--key", signed / "owner.pub")


class TestTrustedKey:
    def test_what_the_owner_signed_is_taken(self, world, signed, here):
        key = ("--trusted-key", signed / "owner.pub")
        assert command(*tune(world, signed / "emulator", here / "ad", *key)).code == 0
        assert command(*plug(world, signed / "adapter", here / "tuned", *key)).code == 0
        assert Adapter.load(here / "ad").emulator == Adapter.load(world / "adapter").emulator

    @pytest.mark.parametrize(("words", "name"), [(tune, "emulator"), (plug, "adapter")], ids=["tune", "plug"])
    def test_what_is_unsigned_or_anothers_or_altered_is_refused_unread(self, world, signed, here, words, name):
        bundle = signed / name
        line = words(world, bundle, here / "out", "--trusted-key", signed / "owner.pub")
        (bundle / "card.json").write_text("{")
        assert "'card.json' was altered after it was signed" in refused(here, *line)
        stranger = words(world, bundle, here / "out", "--trusted-key", here / "me.pub")
        assert command("keygen", "-o", here / "me").code == 0
        assert "was signed with another key" in refused(here, *stranger)
        (bundle / "model.sig").unlink()
        assert "is not signed" in refused(here, *line)

    def test_signed_bundles_open_everywhere(self, world, signed, here):
        questions = world / "questions.jsonl"
        lines = [
            ("inspect", signed / "emulator"),
            ("inspect", signed / "adapter"),
            ("export", signed / "emulator", "-o", here / "plain"),
            ("evaluate", signed / "emulator", "--adapter", signed / "adapter", "--tasks", questions),
        ]
        for line in lines:
            assert command(*line).code == 0, line

    def test_a_signed_bundle_may_be_made_again_and_is_unsigned_then(self, world, signed):
        line = ("compress", world / "model", "-o", signed / "emulator", "--method", "uniform", "--keep", "0.5")
        assert "already there" in refused(signed, *line)
        assert command(*line, "--force").code == 0
        assert "is not signed" in refused(signed, "verify", signed / "emulator", "--key", signed / "owner.pub")


NOTE = "No receipt of this model was found"


class TestReceipts:
    """The world has a receipt for each emulator; its adapter was tuned on the one named `emulator`."""

    def test_one_beside_the_output_vouches(self, world, here):
        shutil.copytree(world / "emulator-receipt", here / "first-receipt")
        ran = command(*plug(world, world / "adapter", here / "tuned", "--json"))
        assert ran.json["recorded"] is True
        assert spoken(ran.err) == []

    def test_one_in_the_working_folder_vouches(self, world, here):
        os.chdir(world)
        assert command(*plug(world, world / "adapter", here / "tuned", "--json")).json["recorded"] is True

    def test_an_emulator_that_none_names_was_never_sent(self, world, here):
        shutil.copytree(world / "emulator-2-receipt", here / "other-receipt")
        said = refused(here, *plug(world, world / "adapter", here / "tuned"))
        assert f"tuned on the emulator {Adapter.load(world / 'adapter').emulator[:12]}, which was never" in said
        shutil.copytree(world / "emulator-receipt", here / "first-receipt")
        assert command(*plug(world, world / "adapter", here / "tuned")).code == 0

    def test_without_any_it_goes_on_and_says_so(self, world, here):
        shutil.copytree(world / "adapter-receipt", here / "adapter-receipt")  # a data owner's says nothing here
        ran = command(*plug(world, world / "adapter", here / "tuned", "--json"))
        assert ran.json["recorded"] is False
        (said,) = spoken(ran.err)
        assert said.startswith(NOTE)

    def test_one_of_another_model_is_none(self, world, here):
        line = ("compress", world / "other-model", "-o", here / "em", "--method", "uniform", "--keep", "0.5")
        assert command(*line).code == 0
        assert NOTE in command(*plug(world, world / "adapter", here / "tuned")).err

    def test_one_that_came_with_the_adapter_is_not_believed(self, world, here, tmp_path):
        inbox = tmp_path / "inbox"
        shutil.copytree(world / "adapter", inbox / "adapter")
        shutil.copytree(world / "emulator-receipt", inbox / "emulator-receipt")
        assert NOTE in command(*plug(world, inbox / "adapter", here / "tuned")).err

    def test_the_named_ones_count_and_no_others(self, world, here):
        shutil.copytree(world / "emulator-2-receipt", here / "other-receipt")
        line = plug(world, world / "adapter", here / "tuned")
        assert "never sent" in refused(here, *line, "--receipts", world / "emulator-2-receipt")
        named = ("--receipts", world / "emulator-2-receipt", "--receipts", world / "emulator-receipt")
        assert command(*line, *named).code == 0
        assert command(*line, "--force", "--receipts", world).code == 0

    def test_where_the_named_ones_say_nothing_it_is_refused(self, world, here):
        line = plug(world, world / "adapter", here / "tuned")
        for folder in (here / "thesis", here / "gone", world / "adapter-receipt"):
            assert f"No receipt in '{folder}' is of the adapter's model" in refused(
                here, *line, "--receipts", folder
            )

    def test_an_adapter_of_no_bundle_was_tuned_on_nothing_sent(self, world, here):
        adapter = Adapter.load(world / "adapter")
        adapter.emulator = ""
        adapter.save(here / "ad")
        line = plug(world, here / "ad", here / "tuned", "--receipts", world)
        assert "tuned on the emulator of no bundle, which was never sent" in refused(here, *line)

    @pytest.mark.parametrize("content", ["", "[]", json.dumps({"a": 1})[:-1]])
    def test_an_unsound_one_is_named(self, world, here, content):
        (here / "x-receipt").mkdir()
        (here / "x-receipt" / "receipt.json").write_text(content)
        assert "x-receipt/receipt.json" in refused(here, *plug(world, world / "adapter", here / "tuned"))
