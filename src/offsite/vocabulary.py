"""A tokenizer from a stranger: a class of transformers' own, over files, patterns and templates within bounds.

What runs later on the data owner's texts is checked here: a pattern may not take time without end, a normalizer
may not blow texts up, and a chat template may do no more than write out messages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from offsite import bundle
from offsite.errors import UserError, brief
from offsite.foreign import parse, read_text
from offsite.stranger import refuse_orders
from offsite.template import check_template

_SETTINGS = "tokenizer_config.json"
_BACKEND = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"
VOCABULARY = frozenset(
    [
        _BACKEND,
        _SETTINGS,
        _TEMPLATE,
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
    ]
)
"""The files that a tokenizer may have."""

_LEAST_BYTES, _BYTES_A_WORD = 256 << 10, 192  # of a file; the longest honest ones have 130 a word
_LONGEST_TOKEN, _LONGEST_PATTERN = 1000, 5000  # characters
_SPARE_IDS = 1000  # past the embeddings; honest tokenizers have one or two
_MOST_GROWTH = 64  # of a text, through all replacements
_MOST_PIECES = 64  # in a template of special tokens
_UNSHOWN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def from_folder(folder: Path, words: int) -> PreTrainedTokenizerBase:
    """The tokenizer in a stranger's `folder`, for a model of so many `words`; a UserError for an odd one."""
    most = _LEAST_BYTES + _BYTES_A_WORD * words
    for name in VOCABULARY:
        if (file := folder / name).exists() and file.stat().st_size > most:
            raise UserError(f"{file} is larger than any honest one for {words} words; ask for it again.")
    settings = bundle.read_object(folder / _SETTINGS)
    _check_settings(folder / _SETTINGS, settings)
    if (folder / _TEMPLATE).exists():
        check_template(folder / _TEMPLATE, read_text(folder / _TEMPLATE))
    if (folder / _BACKEND).exists():
        _check_backend(folder / _BACKEND)
    try:
        with _hushed():
            tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=False, local_files_only=True
            )
            vocabulary = tokenizer.get_vocab()
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # the tokenizers library panics with what is no Exception
        raise UserError(f"{folder}: the tokenizer cannot be read ({brief(error)}).") from error
    _check_vocabulary(folder, vocabulary, words)
    for token in tokenizer.all_special_tokens:
        if _UNSHOWN.search(token):
            raise UserError(f"{folder}: the tokenizer's token {token!r:.80} would steer a terminal.")
    return tokenizer


def _check_settings(file: Path, settings: Mapping[str, Any]) -> None:
    refuse_orders(str(file), settings)
    for key in settings:
        if key.endswith("_file"):
            raise UserError(f"{file} asks for {key!r:.80}: code and files from elsewhere are refused.")
    said = settings.get("tokenizer_class")
    if said is not None and not _is_tokenizer(said):
        raise UserError(f"{file} names {said!r:.80} for a tokenizer_class, which is none of transformers' own.")
    templates = settings.get("chat_template")
    for each in templates if isinstance(templates, list) else [templates]:
        text = each.get("template") if isinstance(each, dict) else each
        if text is not None or each is not None:
            check_template(file, text)


def _is_tokenizer(name: object) -> bool:
    """Whether transformers would open a tokenizer by that name; it would open a model as readily."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]*(Tokenizer(Fast)?|Backend)", name):
        return False  # before any import
    found = tokenizer_class_from_name(name)
    return found is None or (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase))


def _check_backend(file: Path) -> None:
    """Refuse what would take time or memory without end, when it is opened or on texts."""
    text = read_text(file, file.stat().st_size)
    data = parse(file, text, len(text))
    growth = 1.0
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for step in _steps(data.get(part)):
            _check_pattern(file, step.get("Regex"))
            growth *= max(1.0, _growth(step)) if part == "normalizer" else 1.0
            if any(isinstance(each, list) and len(each) > _MOST_PIECES for each in step.values()):
                raise UserError(f"{file} has a {part} of more than {_MOST_PIECES} steps; no honest one has.")
    if growth > _MOST_GROWTH:
        raise UserError(f"{file} has a normalizer that makes texts {growth:.0e} times as long.")
    for token in data.get("added_tokens") or ():
        if isinstance(token, dict) and len(str(token.get("content"))) > _LONGEST_TOKEN:
            raise UserError(f"{file} adds a token of more than {_LONGEST_TOKEN} characters to the tokenizer.")


def _steps(data: Any) -> Iterator[dict[str, Any]]:
    """Every object in a part of a tokenizer, itself included."""
    rest = [data]
    while rest:
        value = rest.pop()
        if isinstance(value, dict):
            yield value
            rest += value.values()
        elif isinstance(value, list):
            rest += value


def _growth(step: Mapping[str, Any]) -> float:
    """How many times as long a text may become through one step of a normalizer."""
    content, pattern = step.get("content", step.get("prepend")), step.get("pattern")
    if not isinstance(content, str):
        return 1
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    return len(content) / max(1, len(replaced) if isinstance(replaced, str) else 1)


def _check_pattern(file: Path, pattern: object) -> None:
    """Refuse a regular expression that may try without end: a repeated group that can match in several ways."""
    if not isinstance(pattern, str):
        return
    endless = len(pattern) > _LONGEST_PATTERN
    plain = "" if endless else re.sub(r"\\[^1-9kg]", "_", pattern)  # what follows takes time squared
    plain = re.sub(r"\[\^?\]?[^\[\]]*(\[[^\]]*\][^\[\]]*)*\]", "_", plain)  # classes, some within classes
    plain = re.sub(r"\(\?(<?[!=]|[^:()]*:)", "(", plain)
    endless = endless or bool(re.search(r"\\[1-9kg]", plain))
    while not endless and "(" in plain:
        endless = bool(re.search(r"\([^()]*[*+?|}][^()]*\)[*+{]", plain))
        shorter = re.sub(r"\(([^()]*)\)", lambda found: "_+" if re.search("[*+?|}]", found[1]) else "_", plain)
        plain = shorter if shorter != plain else ""  # unbalanced: not for us to say
    if endless:
        raise UserError(f"{file} has a pattern that may take for ever on a text: {pattern!r:.80}.")


def _check_vocabulary(folder: Path, vocabulary: Mapping[str, int], words: int) -> None:
    last = max(vocabulary.values(), default=0)
    if last >= words + _SPARE_IDS:
        raise UserError(f"{folder}: the tokenizer has a token of number {last} for a model of {words} words.")


@contextmanager
def _hushed() -> Iterator[None]:
    """Within, nothing reaches the screen: the tokenizers library writes its panics there by itself."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
