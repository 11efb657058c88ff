"""A training loop of one's own takes public names alone, and what it makes is as good as what `tune` makes."""

from __future__ import annotations

import json

import torch

import offsite
from tests.families import tiny_model


def test_a_loop_of_ones_own(tmp_path, tokenizer):
    model, split = tiny_model("llama"), offsite.Split(1, 1)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    offsite.compress(model, tokenizer, "uniform", 0.5, split=split).save(tmp_path / "emulator")

    emulator = offsite.Emulator.load(tmp_path / "emulator")
    data = tmp_path / "rows.jsonl"
    made = [{"prompt": f"w{i} w5", "completion": f" w{i + 20}"} for i in range(10, 18)]
    data.write_text("\n".join(map(json.dumps, made)))
    rows = offsite.encode(offsite.examples(str(data)), emulator.tokenizer, 32)
    weights = emulator.adapter_parameters()
    for weight in weights.values():
        weight.requires_grad_()
    optimizer = torch.optim.SGD(weights.values(), lr=0.1)
    losses = []
    for _ in range(3):
        for row in rows:
            ids, labels = (torch.tensor([each]) for each in row)
            loss = emulator.model(input_ids=ids, labels=labels).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert sum(losses[-len(rows) :]) < sum(losses[: len(rows)])
    emulator.adapter().save(tmp_path / "adapter")

    adapter = offsite.Adapter.load(tmp_path / "adapter")
    assert adapter.emulator == emulator.digest
    assert set(adapter.tensors) >= set(weights)
    displaced = offsite.plug(model, adapter)
    changed = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert changed
    assert all(name.startswith(("model.layers.0.", "model.layers.7.")) for name in changed)
    offsite.plug(model, displaced)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_fidelity_and_what_was_kept_and_a_receipt_take_public_names_alone(tmp_path, tokenizer):
    model, split = tiny_model("llama"), offsite.Split(1, 1)
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{3 + i * i % 120}" for i in range(4000)))
    method = offsite.METHODS["src"](beta=0.2)
    profile = offsite.profile_of(model, tokenizer, method, split, text=str(text), blocks=8, length=16)
    blueprint = method.plan(profile, 1.0)
    emulator = offsite.build(model, split, blueprint, method="src", tokenizer=tokenizer)
    kept = offsite.keep_of(emulator, model)
    assert 0 < kept < 1
    emulator.save(tmp_path / "emulator")
    offsite.write_receipt(tmp_path / "private", emulator, blueprint, asked=1.0, kept=kept, seed=0)
    assert (tmp_path / "private" / "receipt.json").is_file()
    tokens = offsite.held_out(offsite.texts(str(text)), tokenizer, 16, 4)
    assert tokens.shape == offsite.blocks(offsite.texts(str(text)), tokenizer, 16, 4).shape == (4, 16)
    assert 0 < offsite.fidelity(emulator, model, tokens).cosine < 1


def test_a_batch_of_masked_answers_takes_public_names_alone(tmp_path, tokenizer):
    model, data = tiny_model("llama"), tmp_path / "rows.jsonl"
    made = [{"prompt": "w4 " * i + "w5", "completion": f" w{i + 20} w9"} for i in range(1, 5)]
    data.write_text("\n".join(map(json.dumps, made)))
    prepared = offsite.prepare(offsite.examples(str(data)), tokenizer, 6)
    assert (prepared.cut_rows, prepared.cut_tokens, prepared.longest) == (2, 3, 8)
    batch = offsite.pad(tokenizer.pad_token_id)([row._asdict() for row in prepared.rows])
    assert (batch["labels"] != offsite.IGNORED).sum(dim=1).tolist() == [3] * 4  # two words and the EOS
    with torch.no_grad():
        assert torch.allclose(offsite.answer_loss(model, batch), model(**batch).loss, atol=1e-5)
