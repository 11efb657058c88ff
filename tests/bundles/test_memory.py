"""The memory that a bundle needs is known, and bounded, before a tensor is read."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import transformers as t

from offsite.bundles.emulator import Emulator
from offsite.bundles.memory import size
from offsite.model.decoder import skeleton
from offsite.model.linears import Weight
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build
from tests.cli.conftest import command
from tests.families import tiny_model, tiny_tokenizer
from tests.hostile import runner
from tests.sample_bundles import refusal

SPLIT = Split(1, 1)


@pytest.fixture(scope="module")
def small_but_large(tmp_path_factory):
    """Ninety places share one layer of rank 1: 34 MB are stored, 1.5 GB would be exported."""
    import torch

    config = t.LlamaConfig(
        vocab_size=128, hidden_size=512, intermediate_size=2048, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=True,
        bos_token_id=1, eos_token_id=2, pad_token_id=0,
    )  # fmt: skip
    model = t.AutoModelForCausalLM.from_config(config)
    layer = model.model.layers[1]
    thin = {
        name: Weight((torch.ones(module.out_features, 1), torch.ones(1, module.in_features) / 1000))
        for name, module in layer.named_modules()
        if hasattr(module, "in_features")
    }
    folder = tmp_path_factory.mktemp("large") / "emulator"
    build(model, SPLIT, (Place(1, weights=thin),) * 90, tokenizer=tiny_tokenizer()).save(folder)
    return folder


def test_what_is_small_as_sent_and_large_as_used_is_refused(small_but_large):
    said = refusal(Emulator.load, small_but_large)
    assert re.search(
        r"stores 33\.9 MB but needs about .* GB to be tuned and 1\.5 GB .* --allow-large\.$", said
    ), said
    assert Emulator.load(small_but_large, allow_large=True).memory.is_large


def test_every_command_that_opens_emulators_refuses_it_and_inspect_shows_why(small_but_large, tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "w5", "completion": " w6"}\n')
    for words in (
        ["tune", small_but_large, "--data", tmp_path / "rows.jsonl", "-o", tmp_path / "adapter"],
        ["export", small_but_large, "-o", tmp_path / "dense"],
        ["inspect", small_but_large, "--data", tmp_path / "rows.jsonl"],
    ):
        ran = command(*words)
        assert ran.code == 2
        assert "--allow-large" in ran.err
    shown = command("inspect", small_but_large)
    assert shown.code == 0
    assert re.search(r"memory +33\.9 MB opened, \d.*GB to be tuned, 1\.5 GB exported", shown.out)
    assert command("inspect", small_but_large, "--json").json["memory"]["dense"] > 1.4e9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.jsonl"]


@pytest.mark.skipif(sys.platform != "linux", reason="a process's peak of memory is read from /proc")
def test_the_refusal_costs_little_memory(small_but_large):
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before = runner.memory("VmRSS")
    refusal(Emulator.load, small_but_large)
    assert runner.memory("VmHWM") - before < 150_000


def test_what_is_computed_is_what_is_written(tmp_path, model):
    """In every family: opened, the tensors have the bytes that were computed; exported, likewise."""
    build(model, SPLIT, tuple(map(Place, (2, 2, 4)))).save(tmp_path / "e")
    opened = Emulator.load(tmp_path / "e")
    needed = opened.memory
    tensors = {id(x): x for x in opened.model.state_dict(keep_vars=True).values()}.values()
    assert needed.stored == sum(x.nbytes for x in tensors)
    whole = {id(x): x for x in skeleton(opened.model.config).state_dict(keep_vars=True).values()}.values()
    assert needed.dense == sum(x.nbytes for x in whole) > needed.stored
    assert not needed.is_large


def test_an_honest_emulator_of_a_small_model_is_far_below_the_bound():
    """SmolLM2-135M's shape in bfloat16, a third of its middle kept: the worst of honest cases."""
    from offsite.bundles.memory import memory

    config = t.LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, tie_word_embeddings=True, dtype="bfloat16",
    )  # fmt: skip
    needed = memory(skeleton(config), Split(2, 2), stored=150_000_000)
    assert not needed.is_large
    assert max(needed.tuning, needed.dense) < needed.allowed * 0.8


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (812, "812 B"), (999, "999 B"), (1000, "1.0 kB"), (3449, "3.4 kB"), (99_940, "99.9 kB"),
     (99_960, "100 kB"), (999_600, "1.0 MB"), (537_123_456, "537 MB"), (1_610_612_736, "1.6 GB"),
     (2 * 10**15, "2000 TB")],
)  # fmt: skip
def test_sizes_read_as_people_write_them(count, text):
    assert size(count) == text


def test_inspect_writes_the_sizes_of_files_so(tmp_path):
    build(tiny_model("llama"), SPLIT, (Place(2),), tokenizer=tiny_tokenizer()).save(tmp_path / "e")
    shown = command("inspect", tmp_path / "e").out
    assert re.search(r"file +card\.json, \d(\.\d)? kB", shown), shown
    assert "0.00 MB" not in shown


@pytest.mark.skipif(sys.platform != "linux", reason="a peak of memory is read from /proc")
def test_an_export_holds_one_tensor_at_a_time(tmp_path):
    """Thirty places share a layer of 3.2 MB: 100 MB are written."""
    config = t.LlamaConfig(
        vocab_size=128, hidden_size=256, intermediate_size=704, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    emulator = build(t.AutoModelForCausalLM.from_config(config), SPLIT, (Place(1),) * 30)
    emulator.export(tmp_path / "warm")
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins anew
    before = runner.memory("VmRSS")
    emulator.export(tmp_path / "dense")
    assert (tmp_path / "dense" / "model.safetensors").stat().st_size > 100_000_000
    assert runner.memory("VmHWM") - before < 30_000
