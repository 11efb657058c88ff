"""Open an untrusted tokenizer: a class of transformers, with files, patterns and templates within bounds.

What its files hold is checked here, and it is opened in a copy of this process first (`fork`). It reads the
data owner's texts in the worker (`tokenize`), within limits.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from offsite.errors import UserError, brief
from offsite.model.tokenizer import SETTINGS, opened
from offsite.untrusted.chat_template import check_template
from offsite.untrusted.config import objects, refuse_orders
from offsite.untrusted.files import parse, read_object, read_text
from offsite.untrusted.fork import try_first
from offsite.untrusted.regex import check_patterns
from offsite.untrusted.tokenize import mark_untrusted

_BACKEND = "tokenizer.json"
_TEMPLATE = "chat_template.jinja"
_CONFIG = "config.json"  # the model's; transformers looks there for a class that the settings do not name
_ADDED = "added_tokens.json"
VOCABULARY = frozenset(
    [
        _BACKEND,
        SETTINGS,
        _TEMPLATE,
        _ADDED,
        "vocab.json",
        "vocab.txt",
        "merges.txt",
        "tokenizer.model",
        "spiece.model",
        "sentencepiece.bpe.model",
    ]
)
"""The files that a tokenizer may have.

Not special_tokens_map.json: transformers writes none, and would let it set whatever it names.
"""

_ELSEWHERE = re.compile(r"(_files?|_dir|(?<!^name_or)_path)$|^(vocab|merges|init_inputs|model_proto)$")
"""Settings that transformers or sentencepiece would open as files, or hand on to what does."""
_LEAST_BYTES, _BYTES_A_WORD = 256 << 10, 192  # of a file; the longest honest ones have 130 a word
_LEAST_MARKS, _MARKS_A_WORD = 20_000, 16  # of a file; honest ones have 8 a word, for the merges that made it
_MARKS = {".json": b",[{", ".txt": b"\r\n"}  # each may be a value in memory, by a file's suffix
_LONGEST_TOKEN = 1000  # characters
_SPARE_IDS = 1000  # past the embeddings; honest tokenizers have one or two
_MOST_GROWTH = 64  # of a text, through all replacements
_LONGEST_PIECE = 128  # bytes that a table of characters puts for one; honest ones have 33
_TOKEN_KEYS = {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special", "__type"}
_OPENED, _OPENED_A_BYTE = 384 << 20, 40  # bytes that opening may take, and for each byte of tokenizer.json
_NOT_READ = {"card.json", "model.safetensors", "model.sig"}  # files of a bundle that no tokenizer opens
_MOST_PIECES = 64  # in a template of special tokens
_UNSHOWN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def open_tokenizer(folder: Path, words: int) -> PreTrainedTokenizerBase:
    """Open the untrusted tokenizer in `folder`, for a model of so many `words`; a UserError if unsound."""
    for name in sorted(VOCABULARY):
        if (folder / name).exists():
            _check_size(folder / name, words)
    _check_settings(folder / SETTINGS)
    if (folder / _CONFIG).exists():
        _check_class(folder / _CONFIG)
    if (folder / _ADDED).exists():
        _check_added(folder / _ADDED)
    if (folder / _TEMPLATE).exists():
        check_template(folder / _TEMPLATE, read_text(folder / _TEMPLATE))
    if (folder / _BACKEND).exists():
        _check_backend(folder / _BACKEND)
    tokenizer = _tried(folder)
    check_fast(folder, tokenizer)
    _check_templates(folder, tokenizer.chat_template)  # whatever it came from
    _check_vocabulary(folder, tokenizer.get_vocab(), words)
    for token in tokenizer.all_special_tokens:
        if _UNSHOWN.search(token):
            raise UserError(f"{folder}: the tokenizer's token {token!r:.80} would steer a terminal.")
    mark_untrusted(tokenizer)
    return tokenizer


def check_fast(whose: Path | str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer written in Python, which the worker cannot run."""
    if not tokenizer.is_fast:
        raise UserError(
            f"{whose}: {type(tokenizer).__name__} is written in Python and would read texts without limits; a "
            "bundle needs a tokenizer.json, which transformers.convert_slow_tokenizer makes of most tokenizers."
        )


def _tried(folder: Path) -> PreTrainedTokenizerBase:
    """Open a tokenizer in a copy of this process first, where a panic of its library is not seen."""
    backend = folder / _BACKEND
    size = backend.stat().st_size if backend.exists() else 0
    try_first(
        lambda: _opened(folder), f"The tokenizer in {folder}", _content(folder), _OPENED + _OPENED_A_BYTE * size
    )
    return _opened(folder)


def _content(folder: Path) -> bytes:
    """Return names and digests of the files that could decide what a tokenizer becomes."""
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and file.name not in _NOT_READ]
    return repr([(file.name, hashlib.sha256(file.read_bytes()).digest()) for file in files]).encode()


def _opened(folder: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer = opened(folder, local=True)
        tokenizer.get_vocab()
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:  # the tokenizers library panics with what is no Exception
        raise UserError(f"{folder}: the tokenizer cannot be read ({brief(error)}).") from error
    return tokenizer


def _check_size(file: Path, words: int) -> None:
    """Refuse a file of more bytes or values than any honest one for so many `words`."""
    if file.stat().st_size > _LEAST_BYTES + _BYTES_A_WORD * words:
        raise UserError(f"{file} is larger than any honest one for {words} words; ask for it again.")
    marks, most = 0, _LEAST_MARKS + _MARKS_A_WORD * words
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            marks += sum(map(chunk.count, _MARKS.get(file.suffix, b"")))
    if marks > most:
        raise UserError(f"{file} holds more than {most} values, too many for {words} words; ask for it again.")


def _check_settings(file: Path) -> None:
    settings = read_object(file)
    refuse_orders(str(file), settings)
    for step in objects(settings):
        _check_token(file, step)
        for key in step:
            if _ELSEWHERE.search(key):
                raise UserError(f"{file} asks for {key!r:.80}: code and files from elsewhere are refused.")
    _check_class(file)
    _check_templates(file, settings.get("chat_template"))


def _check_class(file: Path) -> None:
    name = read_object(file).get("tokenizer_class")
    if name is not None and not _is_tokenizer(name):
        raise UserError(f"{file} names {name!r:.80} for a tokenizer_class, which is none of transformers' own.")


def _check_added(file: Path) -> None:
    if any(type(number) is not int for number in read_object(file).values()):
        raise UserError(f"{file} adds a token to the tokenizer that has no number; ask for it again.")


def _check_templates(file: Path, given: object) -> None:
    """Check one chat template, or several with their names."""
    several = list(given.values()) if isinstance(given, dict) else given if isinstance(given, list) else [given]
    for each in several:
        text = each.get("template") if isinstance(each, dict) else each
        if text is not None or each is not None:
            check_template(file, text)


def _is_tokenizer(name: object) -> bool:
    """Tell whether transformers would open a tokenizer by that name; it would open a model as readily."""
    from transformers.models.auto.tokenization_auto import tokenizer_class_from_name

    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_]*(Tokenizer(Fast)?|Backend)", name):
        return False  # before any import
    found = tokenizer_class_from_name(name)
    return found is None or (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase))


def _check_backend(file: Path) -> None:
    """Refuse what would take time or memory without end, when it is opened or on texts."""
    text = read_text(file, file.stat().st_size)
    data = parse(file, text, len(text))  # no more than `_check_size` passed
    growth, patterns = 1.0, []
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        for step in objects(data.get(part)):
            patterns.append(step.get("Regex"))
            growth *= max(1.0, _growth(step)) if part == "normalizer" else 1.0
            if step.get("type") == "Precompiled":
                _check_character_table(file, step.get("precompiled_charsmap"))
            if any(isinstance(each, list) and len(each) > _MOST_PIECES for each in step.values()):
                raise UserError(f"{file} has a {part} of more than {_MOST_PIECES} steps; no honest one has.")
    check_patterns(file, patterns)
    if growth > _MOST_GROWTH:
        raise UserError(f"{file} has a normalizer that makes texts {growth:.0e} times as long.")
    _check_repeatable(file, data)
    added = data.get("added_tokens") or []
    if not isinstance(added, list) or not all(isinstance(token, dict) for token in added):
        raise UserError(f"{file} gives {added!r:.40} for added_tokens, which is no list of tokens.")
    for token in added:
        _check_token(file, token)
        if len(str(token.get("content"))) > _LONGEST_TOKEN:
            raise UserError(f"{file} adds a token of more than {_LONGEST_TOKEN} characters to the tokenizer.")


def _check_token(file: Path, token: object) -> None:
    """Refuse an added token with a key of no meaning, which the tokenizers library would print as it is."""
    if isinstance(token, dict) and "content" in token and not token.keys() <= _TOKEN_KEYS:
        odd = min(token.keys() - _TOKEN_KEYS)
        raise UserError(f"{file} adds a token with the odd setting {odd!r:.80}; ask for it again.")


def _check_character_table(file: Path, table: object) -> None:
    """Refuse a table of characters whose sizes are not its own, or that makes much of one character.

    Of sentencepiece: the trie's size in 4 bytes, the trie, and what its leaves stand for, each ended by a zero.
    """
    try:
        data = base64.b64decode(table, validate=True) if isinstance(table, str) else b""
    except ValueError:
        data = b""
    size = int.from_bytes(data[:4], "little")
    if len(data) < 4 or size % 4 or size > len(data) - 4:
        raise UserError(f"{file} has a table of characters that is cut short; ask for it again.")
    if any(len(piece) > _LONGEST_PIECE for piece in data[4 + size :].split(b"\0")):
        raise UserError(f"{file} has a table that puts more than {_LONGEST_PIECE} bytes for one character.")


def _check_repeatable(file: Path, data: Mapping[str, Any]) -> None:
    """Refuse what tokenises a text in another way each time, or writes it several times."""
    model = data.get("model")
    if isinstance(model, dict) and (dropout := model.get("dropout")):
        raise UserError(f"{file} drops merges at random (dropout {dropout!r:.20}); it must be null.")
    for step in objects(data.get("post_processor")):
        single = step.get("single")
        pieces = single if isinstance(single, list) else []
        count = sum(isinstance(piece, dict) and "Sequence" in piece for piece in pieces)
        if single is not None and count != 1:
            raise UserError(
                f"{file} has a post-processor that writes a text {count} times; it must do so once."
            )


def _growth(step: Mapping[str, Any]) -> float:
    """Estimate how many times as long a text may become through one step of a normalizer."""
    content, pattern = step.get("content", step.get("prepend")), step.get("pattern")
    if not isinstance(content, str):
        return 1
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    return len(content) / max(1, len(replaced) if isinstance(replaced, str) else 1)


def _check_vocabulary(folder: Path, vocabulary: Mapping[str, int], words: int) -> None:
    last = max(vocabulary.values(), default=0)
    if last >= words + _SPARE_IDS:
        raise UserError(f"{folder}: the tokenizer has a token of number {last} for a model of {words} words.")
