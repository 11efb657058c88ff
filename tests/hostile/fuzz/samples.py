"""Honest bundles to mutate: emulators of several families and methods, adapters whole and as LoRA."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from offsite.bundles import keys
from offsite.bundles.adapter import Adapter, Lora, adapter_linears
from offsite.model.split import Split
from offsite.owner.blueprint import Place
from offsite.owner.build import build, origin
from tests.families import tiny_model, tiny_tokenizer
from tests.test_laws import SPLIT, harmonized, thin

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
)
LETTERS = [chr(code) for code in (*range(97, 123), *range(48, 58), 32, 46, 58, 60, 62)]
ROWS = {
    "prompts": [{"prompt": f"w{n} Patient {n}: ", "completion": f"w{n + 1} psoriasis"} for n in range(10, 18)],
    "chats": [
        {"messages": [{"role": "user", "content": f"w{n} w5 ?"}, {"role": "assistant", "content": f"w{n}."}]}
        for n in range(10, 18)
    ],
    "texts": [{"text": f"w{n} w{n + 1} w{n + 2} größe \N{GRINNING FACE}"} for n in range(10, 18)],
    "questions": [{"prompt": f"w{n} w5", "choices": [" w6", " w7 w8"], "answer": n % 2} for n in range(10, 14)],
}
TOKENIZERS = ("words", "bpe", "unigram", "wordpiece")
KEPT = (Place(3), Place(4))
SHARED = (Place(3), Place(3), Place(5))
EMULATORS = {  # family, middle (a function of the model, or places), tokenizer
    "llama": ("llama", KEPT, "words"),
    "llama-thin": ("llama", thin, "bpe"),
    "qwen2-shared": ("qwen2", SHARED, "unigram"),
    "gemma3-harmonized": ("gemma3", lambda _: harmonized(), "unigram"),
    "bloom-harmonized": ("bloom", lambda _: harmonized(), "bpe"),
    "gpt2-thin": ("gpt2", thin, "wordpiece"),
    "opt-shared": ("opt", SHARED, "words"),
    "phi3": ("phi3", KEPT, "wordpiece"),
    "gpt_neox-thin": ("gpt_neox", thin, "bpe"),
}
ADAPTERS = ("llama", "gpt2", "gemma3")  # each as whole layers and as a LoRA


def write(folder: Path) -> None:
    """Write the bundles, the models that the adapters fit, the data files, and two pairs of keys."""
    transformers.logging.disable_progress_bar()
    for name, (family, middle, kind) in EMULATORS.items():
        model, tokenizer = tiny_model(family), tokenizer_of(kind)
        places = middle(model) if callable(middle) else middle
        build(model, SPLIT, places, tokenizer=tokenizer).save(folder / "bundles" / name)
    for family in ADAPTERS:
        _adapters(folder, family)
    for name, rows in ROWS.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("owner", "attacker"):
        keys.keygen(folder / name)


def _adapters(folder: Path, family: str) -> None:
    model, split = tiny_model(family), Split(1, 1)
    model.save_pretrained(folder / "models" / family)
    tiny_tokenizer().save_pretrained(folder / "models" / family)
    whole = Adapter.of(model, origin(model, split))
    whole.save(folder / "bundles" / f"{family}-whole")
    tensors = {}
    for site, turned in adapter_linears(model, split).items():
        rows, columns = whole.tensors[f"{site}.weight"].shape[:: -1 if turned else 1]
        tensors[f"{site}.lora_A.weight"] = torch.full((2, columns), 0.01)
        tensors[f"{site}.lora_B.weight"] = torch.full((rows, 2), 0.01)
    Adapter(tensors, whole.origin, lora=Lora(rank=2, alpha=4)).save(folder / "bundles" / f"{family}-lora")


def tokenizer_of(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer of at most 128 ids, with a chat template."""
    if kind == "words":
        tokenizer = tiny_tokenizer()
    else:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=_backend(kind), pad_token="<pad>", bos_token="<s>", eos_token="</s>",
            unk_token="<unk>"
        )  # fmt: skip
    tokenizer.chat_template = CHAT
    return tokenizer


def _backend(kind: str) -> Tokenizer:
    words = ["<pad>", "<s>", "</s>", "<unk>", *LETTERS]
    if kind == "bpe":
        vocab = {word: number for number, word in enumerate([*words, "pa", "ti", "en", "pati"])}
        backend = Tokenizer(
            models.BPE(vocab, [("p", "a"), ("t", "i"), ("e", "n"), ("pa", "ti")], unk_token="<unk>")
        )
        backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_next")
    elif kind == "unigram":
        words += ["\u2581", "\u2581w", "pat", "ient"]
        backend = Tokenizer(models.Unigram([(word, -float(n)) for n, word in enumerate(words)], unk_id=3))
        backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "\u2581")])
        backend.pre_tokenizer = pre_tokenizers.Metaspace()
    else:
        words += [f"##{letter}" for letter in LETTERS[:36]]
        vocab = {word: number for number, word in enumerate(words)}
        backend = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return backend
