"""Tiny random models, one for each family that the laws must hold for, and a tiny tokenizer."""

from __future__ import annotations

import torch
import transformers as t

_COMMON = dict(
    vocab_size=128,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=8,
    num_attention_heads=4,
    max_position_embeddings=128,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
_GROUPED = _COMMON | dict(num_key_value_heads=2)
_HEAD8 = _GROUPED | dict(head_dim=8)
_IDS = dict(vocab_size=128, bos_token_id=1, eos_token_id=2, pad_token_id=0)

FAMILIES = {
    "llama": lambda: t.LlamaConfig(**_GROUPED, tie_word_embeddings=True),
    "mistral": lambda: t.MistralConfig(**_GROUPED, sliding_window=6),
    "qwen2": lambda: t.Qwen2Config(**_GROUPED, use_sliding_window=True, sliding_window=6, max_window_layers=3),
    "qwen3": lambda: t.Qwen3Config(**_HEAD8),
    "gemma2": lambda: t.Gemma2Config(**_HEAD8, sliding_window=6),
    "gemma3": lambda: t.Gemma3TextConfig(**_HEAD8, sliding_window=6),
    "gpt2": lambda: t.GPT2Config(**_IDS, n_embd=32, n_layer=8, n_head=4, n_positions=128),
    "opt": lambda: t.OPTConfig(
        **_IDS, hidden_size=32, ffn_dim=64, num_hidden_layers=8, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=32,
    ),
    "bloom": lambda: t.BloomConfig(**_IDS, hidden_size=32, n_layer=8, n_head=4),
    "gpt_neox": lambda: t.GPTNeoXConfig(**_COMMON),
    "phi3": lambda: t.Phi3Config(**_GROUPED),
}  # fmt: skip


def tiny_model(family, seed=0):
    """A model of 8 layers whose weights are large enough that every layer matters to the logits."""
    torch.manual_seed(seed)
    config = FAMILIES[family]()
    model = t.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15)
            elif "bias" in name:
                parameter.normal_(0, 0.05)
    return model


def tiny_tokenizer():
    """A word-level tokenizer of 128 ids: w4 .. w127, unknown words become id 3."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    vocab = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, 128)}
    backend = Tokenizer(models.WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return t.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
