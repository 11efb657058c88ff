"""Attacks by the card: text that is no JSON or too much of it, fields that lie, strings that do harm."""

from __future__ import annotations

from tests.hostile.attacks_weights import tensor_names
from tests.hostile.corpus import attack, card, card_text, weights
from tests.sample_bundles import edit_json, edit_tensors, sign

ALL = "emulator adapter"


@attack(ALL, "/99', where")
def a_card_from_the_future(folder):
    card(folder, lambda data: data.update(format=data["format"].split("/")[0] + "/99"))


@attack(ALL, r"\[1\], where")
def a_format_that_is_a_list(folder):
    card(folder, lambda data: data.update(format=[1]))


@attack(ALL, r"'\\x1b\]0;x\\x07', where")
def a_format_that_steers_the_terminal(folder):
    card(folder, lambda data: data.update(format="\x1b]0;x\x07"))


@attack(ALL, "card.json")
def lists_ten_thousand_deep(folder):
    card(folder, lambda data: data.update(x=0))
    card_text(folder, lambda text: text.replace(b'"x": 0', b'"x": ' + b"[" * 10_000 + b"]" * 10_000))


@attack(ALL, "card.json")
def objects_ten_thousand_deep(folder):
    card_text(folder, lambda text: b'{"x":' * 10_000 + b"1" + b"}" * 10_000)


@attack(ALL, "card.json")
def lists_nine_hundred_deep(folder):
    card_text(folder, lambda text: text.replace(b"{", b'{"x": ' + b"[" * 900 + b"]" * 900 + b",", 1))


@attack(ALL, "card.json is not sound JSON")
def a_number_of_a_million_digits(folder):
    card_text(folder, lambda text: text.replace(b'"size":', b'"size": 1' + b"0" * 10**6 + b', "x":', 1))


@attack(ALL, "is truncated")
def a_size_past_all_numbers(folder):
    card(folder, lambda data: next(iter(data["files"].values())).update(size=2**70))


@attack(ALL, "files")
def a_size_below_nothing(folder):
    card(folder, lambda data: next(iter(data["files"].values())).update(size=-1))


@attack(ALL, "card.json is larger than any honest one")
def a_string_of_sixteen_million_letters(folder):
    card(folder, lambda data: data.update(x="\U0001f600" + "x" * (15 << 20)))


@attack(ALL, "card.json")
def five_million_lists(folder):
    card_text(folder, lambda text: b'{"x":[' + b"[]," * (5 << 20) + b"[]]}")


@attack(ALL, "card.json.*more than")
def half_a_million_lists(folder):
    card_text(folder, lambda text: text.replace(b"{", b'{"x":[' + b"[]," * 500_000 + b"[]],", 1))


@attack(ALL, "card.json.*more than")
def fifty_thousand_unknown_fields(folder):
    card(folder, lambda data: data.update({f"x{n}": n for n in range(45_000)}))


@attack(ALL, "card.json.*more than")
def fifty_thousand_unknown_fields_inside(folder):
    card(folder, lambda data: data["origin"].update({f"x{n}": n for n in range(45_000)}))


@attack(ALL, "card.json.*more than")
def fifty_thousand_files_on_the_card(folder):
    card(folder, lambda data: data["files"].update({f"x{n}": {} for n in range(45_000)}))


@attack("emulator", "same_as")
def sixty_thousand_aliases_that_are_no_names(folder):
    card(folder, lambda data: data["same_as"].update({f"x{n}": n for n in range(60_000)}))


@attack("emulator", "does not belong|same as")
def twenty_thousand_aliases_of_nothing(folder):
    card(folder, lambda data: data["same_as"].update({f"x{n}": "lm_head.weight" for n in range(20_000)}))


@attack("emulator", "far larger than the weights")
def a_layer_that_stands_in_two_thousand_places(folder):
    edit_json(folder, "config.json", num_hidden_layers=2000, layer_types=None)
    weights(folder).rename(folder / "emulator.safetensors")  # as of any whose layers share
    sign(folder)
    names = [name for name in tensor_names(folder) if name.startswith("model.layers.1.")]
    last = len([name for name in tensor_names(folder) if name.endswith("q_proj.weight")])
    same_as = {name.replace(".1.", f".{n}.", 1): name for n in range(last, 2000) for name in names}
    card(folder, lambda data: data["same_as"].update(same_as))


@attack(ALL, "card.json is not sound JSON .*NaN")
def a_number_that_is_none(folder):
    card(folder, lambda data: data.update(x=float("nan")))


@attack(ALL, "card.json is not sound JSON .*1e999")
def a_number_that_is_infinite(folder):
    card_text(folder, lambda text: text.replace(b"{", b'{"x": 1e999,', 1))


@attack(ALL, "card.json.*stands twice")
def a_field_twice(folder):
    card_text(folder, lambda text: text.replace(b"{", b'{"versions": {},', 1))


@attack(ALL, "card.json.*stands twice")
def a_file_twice(folder):
    card_text(
        folder, lambda text: text.replace(b'"files": {', b'"files": {"config.json": {}, "config.json": {},')
    )


@attack(ALL, r"'\\x1b\[31m': Extra")
def a_field_that_steers_the_terminal(folder):
    card(folder, lambda data: data.update({"\x1b[31m": 1}))


@attack(ALL, r"card.json")
def a_file_entry_that_reads_backwards(folder):
    card(folder, lambda data: data["files"].update({"\u202e\x9b2J": {"sha256": 1}}))


@attack("emulator", "'method'")
def a_method_that_steers_the_terminal(folder):
    card(folder, lambda data: data.update(method="\x1b[2J"))


@attack("emulator", "'method'")
def a_method_that_reads_backwards(folder):
    card(folder, lambda data: data.update(method="\u202emrofinu"))


@attack(ALL, "'versions")
def versions_that_steer_the_terminal(folder):
    card(folder, lambda data: data["versions"].update(torch="\x1b]8;;http://x\x07"))


@attack(ALL, "'versions")
def versions_by_a_name_that_reads_backwards(folder):
    card(folder, lambda data: data["versions"].update({"\u202e": "1"}))


@attack(ALL, "'origin.parent'")
def a_parent_that_is_no_digest(folder):
    card(folder, lambda data: data["origin"].update(parent="../../etc/passwd"))


@attack("adapter lora", "another model")
def another_parent(folder):
    card(folder, lambda data: data["origin"].update(parent="0" * 64))


@attack("lora", "changed since")
def another_start(folder):
    card(folder, lambda data: data["origin"].update(start="0" * 64))


@attack("adapter", "'emulator'")
def an_emulator_that_is_no_digest(folder):
    card(folder, lambda data: data.update(emulator="\x1b[2J" * 8 + "0" * 32))


@attack(ALL, "no middle|holds 2 layers")
def a_split_of_a_million(folder):
    card(folder, lambda data: data["origin"]["split"].update(bottom=10**6))


@attack(ALL, "without an end")
def a_split_of_less_than_nothing(folder):
    card(folder, lambda data: data["origin"]["split"].update(top=-1))


@attack(ALL, "card.json is not UTF-8")
def text_of_another_code(folder):
    card_text(folder, lambda text: text.decode().encode("utf-16"))


@attack(ALL, "card.json is not sound JSON")
def a_byte_order_mark(folder):
    card_text(folder, lambda text: b"\xef\xbb\xbf" + text)


@attack(ALL, "card.json")
def half_a_letter(folder):
    card_text(folder, lambda text: text.replace(b'"versions": {', b'"versions": {"x": "\\ud800",'))


@attack(ALL, "card.json is not sound JSON")
def zero_bytes(folder):
    card_text(folder, lambda text: text + b"\0" * 10)


@attack("lora", "'lora.rank'")
def a_rank_of_a_billion(folder):
    lora(folder, rank=10**9)


@attack("lora", "no LoRA of rank 4096")
def another_rank(folder):
    lora(folder, rank=4096)


@attack("lora", "'lora.rank'")
def a_rank_that_is_true(folder):
    lora(folder, rank=True)


@attack("lora", "card.json is not sound JSON .*NaN")
def an_alpha_that_is_no_number(folder):
    lora(folder, alpha=float("nan"))


@attack("lora", "card.json is not sound JSON .*Infinity")
def an_alpha_that_is_infinite(folder):
    lora(folder, alpha=float("inf"))


@attack("lora", "'lora.alpha'")
def an_alpha_of_a_billion_billions(folder):
    lora(folder, alpha=10**18)


@attack("lora", "'lora.alpha'")
def an_alpha_of_half(folder):
    lora(folder, alpha=0.5)


@attack("lora", "does not belong|missing")
def a_lora_that_says_it_is_none(folder):
    card(folder, lambda data: data.update(lora=None))


@attack("adapter", "does not belong|missing")
def whole_layers_that_say_they_are_a_lora(folder):
    lora(folder, rank=2, alpha=4)


def lora(folder, **changes):
    card(folder, lambda data: data.update(lora=(data["lora"] or {}) | changes))


@attack("emulator", "the config does not tie them")
def an_adapter_matrix_that_is_the_middles(folder):
    """Its shape fits; what is tuned would be more than the adapter."""
    weights(folder).rename(folder / "emulator.safetensors")
    name, source = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    edit_tensors(folder, lambda tensors: tensors.pop(name))
    card(folder, lambda data: data["same_as"].update({name: source}))
