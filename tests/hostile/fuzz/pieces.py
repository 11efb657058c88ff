"""Parts of tokenizer.json and chat templates made at random, many of them sound, some costly."""

from __future__ import annotations

from random import Random
from typing import Any

from tests.untrusted.test_chat_renderer import GEMMA, HOGS, LLAMA, QWEN

PATTERNS = (
    r"\s+", r"\w+|[^\w\s]+", r"\p{L}+", "a", "", "^", "$", r"(?:)", r"(a+)+$", r"(a|aa)+$", r"(?:x*x)(?:x*y)",
    r"(?x) ( a + ) +", r"\c", r"(?=a)", r"(?<=a)b", r"(?!a)", r"(.*)\1", r"[^\r\n]*", r"(\w+\s*)*",
    r"a{0,1000}",
    r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}", r"(?:a?){30}a{30}", r"\d{1,3}(?=(?:\d{3})*\b)", "[",
    "(?<n>x)",
)  # fmt: skip
WORDS = ("", " ", "w", "w10", "a", "\u2581", "##", "<s>", "<unk>", "Answer:", "\x1b[2J", "e\u0301", "x" * 300)
BEHAVIORS = ("Removed", "Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")
FRAGMENTS = (
    "{{ m['content'] }}", "{{ m.content | trim }}", "{{ m.role }}: {{ m.content }}\n", "{{ bos_token }}",
    "{{ eos_token }}",
    "{% if m.role == 'assistant' %}{{ m.content }}{% endif %}", "{{ messages | length }}",
    "{{ m.content | upper }}",
    "{{ m.content[::-1] }}", "{{ messages[-1].content }}", "{{ messages[0].content }}",
    "{{ strftime_now('%S') }}",
    "{% generation %}{{ m.content }}{% endgeneration %}", "{{ raise_exception('no') }}", "{{ loop.index }}",
    "{{ m.content.split(' ') | join('') }}", "{{ m | tojson }}",
    "{% set x = namespace(y=m.content) %}{{ x.y }}",
    "{{ m.content.replace('w', 'ww') }}", "{{ m.nothing.more }}", "{{ 7 // 0 }}", "{{ '{:>999}'.format(1) }}",
    "{{ m.content | batch(1) | list }}", "{{ m.content ~ m.role ~ loop.length }}",
    "{% for c in m.content %}{{ c }}{% endfor %}",
    "{% if add_generation_prompt and loop.last %}<assistant>{% endif %}", "{{ m.content.__class__ }}",
    "{{ {}.pop() }}",
    "{% break %}", "{{ [1].append(2) }}", "{{ m.content | replace('w', m.content) }}", "\x1b[2J",
    "{{ '{' * 3 }}", "{{ '%s' % m }}",
    "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(m.content) }}", "{{ m.content | truncate(3) }}",
    "{{ tools }}", "{{ undefined_ }}",
)  # fmt: skip


def template(dice: Random) -> str:
    """A chat template: a published one, one that takes too much, or a loop of fragments."""
    how = dice.random()
    if how < 0.2:
        text = dice.choice([LLAMA, QWEN, GEMMA])
    elif how < 0.205:  # seldom: each may take all the seconds that it is given
        text = dice.choice(list(HOGS.values()))
    elif how < 0.27:
        text = "{{ '" + dice.choice("{%(a ") * dice.choice([10, 1000, 20_000]) + "' }}"
    else:
        body = "".join(dice.choices(FRAGMENTS, k=dice.randint(1, 6)))
        text = f"{dice.choice(['', '{{ bos_token }}'])}{{% for m in messages %}}{body}{{% endfor %}}"
    if dice.random() < 0.15:
        at = dice.randrange(len(text))
        text = text[:at] + dice.choice(FRAGMENTS) + text[at + dice.randint(0, 9) :]
    return text


def step(dice: Random, part: str) -> Any:
    """A step of a tokenizer: a `part` (normalizer, pre_tokenizer, post_processor, decoder) of its JSON."""
    made = _STEPS[part](dice)
    if dice.random() < 0.25:
        several = {"normalizer": "normalizers", "pre_tokenizer": "pretokenizers",
        "post_processor": "processors",
                   "decoder": "decoders"}[part]  # fmt: skip
        return {
            "type": "Sequence",
            several: [_STEPS[part](dice) for _ in range(dice.choice([0, 1, 2, 5]))] + [made],
        }
    return None if dice.random() < 0.05 else made


def pattern(dice: Random) -> dict[str, str]:
    """A regular expression, or plain words."""
    return {"Regex": dice.choice(PATTERNS)} if dice.random() < 0.6 else {"String": dice.choice(WORDS)}


def _normalizer(dice: Random) -> dict[str, Any]:
    return dice.choice([
        {"type": dice.choice(["NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "Nmt", "ByteLevel"])},
        {"type": "Strip", "strip_left": True, "strip_right": dice.random() < 0.5},
        {"type": "Prepend", "prepend": dice.choice(WORDS)},
        {"type": "Replace", "pattern": pattern(dice), "content": dice.choice(WORDS)},
        {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "strip_accents": None,
         "lowercase": dice.random() < 0.5},
        {"type": "Precompiled", "precompiled_charsmap": dice.choice(["", "AAAA", "AAEAAAAAAAA=",
        "/////w==", "x"])},
    ])  # fmt: skip


def _pre_tokenizer(dice: Random) -> dict[str, Any]:
    flag = dice.random() < 0.5
    return dice.choice([
        {"type": dice.choice(["Whitespace", "WhitespaceSplit", "BertPreTokenizer", "UnicodeScripts"])},
        {"type": "ByteLevel", "add_prefix_space": flag, "trim_offsets": True, "use_regex": flag},
        {"type": "Split", "pattern": pattern(dice), "behavior": dice.choice(BEHAVIORS), "invert": flag},
        {"type": "Metaspace", "replacement": dice.choice(["\u2581", " ", "ab", ""]), "prepend_scheme": "always",
         "split": flag},
        {"type": "Punctuation", "behavior": dice.choice(BEHAVIORS)},
        {"type": "Digits", "individual_digits": flag},
        {"type": "CharDelimiterSplit", "delimiter": dice.choice([" ", "w", "ab"])},
        {"type": "FixedLength", "length": dice.choice([0, 1, 5, 2**40])},
    ])  # fmt: skip


def _post_processor(dice: Random) -> dict[str, Any]:
    number = dice.choice([0, 1, 2, 127, 128, 1127, 2**31, -1])
    sequence = [{"Sequence": {"id": dice.choice("AB"), "type_id": 0}} for _ in range(dice.choice([0, 1, 2]))]
    token = {"SpecialToken": {"id": dice.choice(["<s>", "</s>", "x"]), "type_id": 0}}
    single = dice.sample([*sequence, token], len(sequence) + 1)
    names = {"<s>": {"id": "<s>", "ids": [number], "tokens": ["<s>"]}}
    return dice.choice([
        {"type": "TemplateProcessing", "single": single, "pair": [*single, *single], "special_tokens": names},
        {"type": "BertProcessing", "sep": ["</s>", number], "cls": ["<s>", 1]},
        {"type": "RobertaProcessing", "sep": ["</s>", number], "cls": ["<s>", 1], "trim_offsets": True,
         "add_prefix_space": False},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
    ])  # fmt: skip


def _decoder(dice: Random) -> dict[str, Any]:
    return dice.choice([
        {"type": dice.choice(["ByteLevel", "ByteFallback", "Fuse"])},
        {"type": "WordPiece", "prefix": dice.choice(WORDS), "cleanup": True},
        {"type": "Replace", "pattern": pattern(dice), "content": dice.choice(WORDS)},
        {"type": "Strip", "content": dice.choice([" ", "ab"]), "start": dice.choice([0, 1, 2**40]), "stop": 0},
        {"type": "CTC", "pad_token": "<pad>", "word_delimiter_token": "|", "cleanup": True},
    ])  # fmt: skip


def model(dice: Random, data: Any) -> None:
    """Alter the `model` of tokenizer.json: its options, or some of its words."""
    options = {
        "dropout": (0.0, 0.5, 1.0, -1.0, None), "unk_token": ("<unk>", "x", None), "fuse_unk": (True, False),
        "byte_fallback": (True, False), "ignore_merges": (True,), "continuing_subword_prefix": WORDS,
        "end_of_word_suffix": WORDS, "max_input_chars_per_word": (0, 1, 100, 10**9, -1), "unk_id": (0, 3,
        200, None),
        "type": ("BPE", "WordLevel", "WordPiece", "Unigram"), "merges": ([], ["a b"], ["x y"], [["p",
        "a"]] * 50),
    }  # fmt: skip
    vocab = data.get("vocab")
    if dice.random() < 0.6 or not vocab:
        key = dice.choice(list(options))
        data[key] = dice.choice(options[key])
    elif isinstance(vocab, dict):
        word = dice.choice(list(vocab))
        vocab[dice.choice([word, f"{word}x", *WORDS])] = dice.choice(
            [0, 1, 127, 128, 200, 1127, 2000, 2**31, -1, vocab[word]]
        )
    else:
        at = dice.randrange(len(vocab))
        vocab[at] = dice.choice(
            [[vocab[at][0], 1e308], [vocab[at][0], -1e30], ["", 0.0], [vocab[0][0], -1.0], vocab[at]]
        )


_STEPS = {
    "normalizer": _normalizer, "pre_tokenizer": _pre_tokenizer, "post_processor": _post_processor,
    "decoder": _decoder,
}  # fmt: skip
