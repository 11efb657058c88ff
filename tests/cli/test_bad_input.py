"""Whatever is asked wrongly: one sentence with the asker's own word, exit code 2, and nothing left behind."""

from __future__ import annotations

import json
import shutil

import pytest
import transformers as t

from offsite.bundles.emulator import Emulator
from offsite.data.tasks import examples
from offsite.data_owner.tune import TuneConfig, tune
from tests.cli.conftest import command, refused, write_jsonl
from tests.families import tiny_model
from tests.sample_bundles import edit_card, edit_json, edit_tensors


def asked(text, world, out):
    """A command line: M a model, E its emulator, A an adapter, D data, Q questions, T text, O the output."""
    places = {
        "M": world / "model",
        "E": world / "emulator",
        "A": world / "adapter",
        "D": world / "data.jsonl",
        "Q": world / "questions.jsonl",
        "T": world / "text.txt",
        "O": out,
    }
    return [str(places.get(word, word)) for word in text.split()]


LINES = {
    # no such path
    "compress no/such/model -o O": "'no/such/model' is neither",
    "compress nowhere -o O": "'nowhere' is neither a folder",
    "tune no/such -o O --data D": "There is no 'no/such'",
    "tune E -o O --data no/such.jsonl": "no such file: 'no/such.jsonl'",
    "compress M -o O --profile no/such": "There is no 'no/such'",
    "profile no/such/model -o O": "'no/such/model' is neither",
    "profile M -o O --text no/such.txt": "no such file: 'no/such.txt'",
    "plug no/such/model A -o O": "'no/such/model' is neither",
    "plug M no/such -o O": "There is no 'no/such'",
    "evaluate no/such/model --tasks Q -o O": "'no/such/model' is neither",
    "evaluate M --adapter no/such --tasks Q -o O": "There is no 'no/such'",
    "compare no/such/model E --tasks Q -o O": "'no/such/model' is neither",
    "compare M no/such --tasks Q -o O": "There is no 'no/such'",
    "compare M E --tasks no/such.jsonl -o O": "no such file: 'no/such.jsonl'",
    "compare M E --tasks Q --train no/such.jsonl -o O": "no such file: 'no/such.jsonl'",
    "inspect no/such": "There is no 'no/such'",
    "export no/such -o O": "There is no 'no/such'",
    # words that are almost right
    "compress smolm2-135m -o O": "did you mean 'smollm2-135m'?",
    "fetch smolm2-135m -o O": "did you mean 'smollm2-135m'?",
    "compress M -o O --method unifrom": "no method 'unifrom'; did you mean 'uniform'?",
    "compress M -o O --method zzz": "no method 'zzz'; known are crash, ",
    "profile M -o O --method unifrom": "no method 'unifrom'; did you mean 'uniform'?",
    "profile M -o O --method crash --set shar=false": "no knob 'shar'; did you mean 'share'?",
    "profile smolm2-135m -o O": "did you mean 'smollm2-135m'?",
    "profile M -o O --method crash --text wikipedai": "'wikipedai' is neither a text nor a file; did you mean",
    "profile M -o O --method uniform --text wikipedai": "'wikipedai' is neither a text nor a file; did you",
    "compress M -o O --method uniform --text wikipedai": "'wikipedai' is neither a text nor a file; did you",
    "compress M -o O --method crash --text wikipedai": "'wikipedai' is neither a text nor a file; did you mean",
    "tune E -o O --data arc_esy": "'arc_esy' is neither a task nor a file; did you mean 'arc_easy'?",
    "evaluate M --tasks scik -o O": "'scik' is neither a task nor a file; did you mean 'sciq'?",
    "compare M E --tasks raec -o O": "did you mean 'race'?",
    "tune E -o O --data D --report-to tensorbord": "no tracker 'tensorbord' here",
    # one thing in place of another
    "compress A -o O": "adapter' holds a card.json, as bundles do",
    "compress D -o O": "data.jsonl' is a file",
    "compress M -o O --profile E": "emulator' is not a profile: it has no profile.json",
    "compress M -o O --profile D": "data.jsonl' is not a profile",
    "tune M -o O --data D": "model' is not a bundle",
    "tune A -o O --data D": "where an emulator is wanted",
    "tune E -o O --data E": "emulator' is a folder where a data file is wanted",
    "tune E -o O --data model/model.safetensors": "is of no known format ('.safetensors')",
    "plug M E -o O": "where an adapter is wanted",
    "export A -o O": "where an emulator is wanted",
    "export M -o O": "model' is not a bundle",
    "inspect M": "model' is not a bundle",
    "inspect D": "data.jsonl' is not a bundle",
    "evaluate A --tasks Q -o O": "adapter' holds a card.json, as bundles do",
    "compare M A --tasks Q -o O": "where an emulator is wanted",
    "evaluate M --tasks D -o O": 'data.jsonl, line 1: expected "choices"',
    # numbers out of bounds
    "compress M -o O --keep 0": "above 0 and up to 1, not 0",
    "compress M -o O --keep 1.5": "above 0 and up to 1, not 1.5",
    "compress M -o O --keep -1": "above 0 and up to 1, not -1",
    "compress M -o O --keep nan": "above 0 and up to 1, not nan",
    "compress M -o O --keep inf": "above 0 and up to 1, not inf",
    "compress M -o O --keep much": "'much'",
    "compress M -o O --bottom 0": "0 bottom and 2 top",
    "compress M -o O --bottom 4 --top 4": "no middle between 4 bottom and 4 top",
    "compress M -o O --seed -1": "found '-1'",
    "profile M -o O --bottom 4 --top 4": "no middle between 4 bottom and 4 top",
    "profile M -o O --seed -1": "found '-1'",
    "profile M -o O --blocks 0": "found '0'",
    "profile M -o O --length 1": "found '1'",
    "profile M -o O --method crash --text T --length 129": "129 tokens are longer than the 128",
    "profile M -o O --method crash --text T --blocks 9999": "where 9999 are wanted",
    "compress M -o O --distill -1": "found '-1'",
    "tune E -o O --data D --steps 0": "steps must be above zero, not 0",
    "tune E -o O --data D --batch-size -1": "batch_size must be above zero, not -1",
    "tune E -o O --data D --lr nan": "lr must be above zero, not nan",
    "tune E -o O --data D --lr inf": "lr must be above zero, not inf",
    "tune E -o O --data D --lr -0.1": "lr must be above zero, not -0.1",
    "tune E -o O --data D --lora-rank 0": "found '0'",
    "tune E -o O --data D --lora-rank 5000": "found '5000'",
    "tune E -o O --data D --max-length 1": "1 tokens holds nothing to learn",
    "tune E -o O --data D --seed 99999999999": "99999999999",
    "tune E -o O --data D --lr 1e30 --steps 4 --max-length 32": "take an lr lower than 1e+30",
    "evaluate M --tasks Q --limit 0 -o O": "found '0'",
    "evaluate M --tasks questions.jsonl,questions.jsonl -o O": "'questions' is named 2 times",
    "evaluate M --tasks Q, -o O": "blank word",
    "compare M E --tasks Q --steps -3 -o O": "steps must be above zero, not -3",
    # the command line itself
    "compress M -o O --kep 1": "No such option: --kep",
    "compress M": "'--output'",
    "profile M": "'--output'",
    "compress -o O": "'model'",
    "tune E -o O": "'--data'",
    "comprss M -o O": "no command 'comprss'; did you mean 'compress'?",
    "inspect E A": "unexpected extra argument",
    "--nonsense": "No such option: --nonsense",
}


@pytest.mark.parametrize("line", LINES)
def test_a_wrong_command_line(world, here, monkeypatch, line):
    monkeypatch.chdir(world)
    said = refused(here, *asked(line, world, here / "out"))
    assert LINES[line].lower() in said.lower(), said


ROWS = {
    "empty.jsonl": ("", "empty.jsonl holds no rows"),
    "blank.jsonl": ("\n\n", "blank.jsonl holds no rows"),
    "cut.jsonl": ('{"text": "w5"}\n{"text": "w', "cut.jsonl, line 2"),
    "list.jsonl": ('{"text": "w5"}\n\n[1]\n', "list.jsonl, line 3: expected a JSON object, found a list"),
    "kinds.jsonl": ('{"promt": "w5", "completion": 5}\n', "kinds.jsonl, line 1"),
    "words.csv": ("prompt,completion\nw5,w6\nw7\n", "words.csv, line 3"),
    "binary.jsonl": (b"\xff\xfe\x00", "binary.jsonl, line 1: not UTF-8"),
    "chat.jsonl": ('{"messages": [{"role": "assistant", "content": "w5"}]}\n', "has no chat template"),
    "none.parquet": (b"PAR1", "none.parquet is not a readable parquet file"),
    "no.xyz": ("", "no.xyz is of no known format"),
}


@pytest.mark.parametrize("name", ROWS)
def test_malformed_data_is_named_with_its_line(world, here, name):
    content, why = ROWS[name]
    data = here / name
    data.write_bytes(content if isinstance(content, bytes) else content.encode())
    said = refused(here, "tune", world / "emulator", "--data", data, "-o", here / "out")
    assert why in said, said


@pytest.mark.parametrize("answer", [2, -1, "0", None, True])
def test_malformed_questions_are_named_with_their_line(world, here, answer):
    good = {"prompt": "w5", "choices": ["w6", "w7"], "answer": 0}
    questions = write_jsonl(here / "q.jsonl", [good, good | {"answer": answer}])
    said = refused(here, "evaluate", world / "model", "--tasks", questions, "-o", here / "out")
    assert "q.jsonl, line 2" in said


class TestModels:
    def spoilt(self, world, here):
        return shutil.copytree(world / "model", here / "spoilt")

    def test_truncated_weights(self, world, here):
        weights = self.spoilt(world, here) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:1000])
        assert "spoilt' are cut short" in refused(here, "compress", here / "spoilt", "-o", here / "out")

    def test_no_tokenizer(self, world, here):
        (self.spoilt(world, here) / "tokenizer.json").unlink()
        assert "spoilt' holds no tokenizer" in refused(here, "compress", here / "spoilt", "-o", here / "out")

    @pytest.mark.parametrize("config", [t.BertConfig, t.T5Config, t.ViTConfig])
    def test_not_a_causal_language_model(self, world, here, config):
        config().save_pretrained(here / "other")
        said = refused(here, "compress", here / "other", "-o", here / "out")
        assert f"other' is a {config.model_type} model, not a causal language model" in said

    @pytest.mark.parametrize(
        "asked",
        [
            {"auto_map": {"AutoConfig": "evil.Evil"}, "model_type": "evil"},
            {"_attn_implementation": "evil/kernel"},
        ],
    )
    def test_remote_code(self, world, here, asked):
        edit_json_of_model(self.spoilt(world, here), **asked)
        assert "spoilt' wants to run code of its own" in refused(
            here, "compress", here / "spoilt", "-o", here / "out"
        )

    def test_a_model_that_cannot_be_cut(self, world, here, tokenizer):
        model = tiny_model("gpt2")
        model.config.scale_attn_by_inverse_layer_idx = True
        model.save_pretrained(here / "gpt2")
        tokenizer.save_pretrained(here / "gpt2")
        said = refused(here, "compress", here / "gpt2", "-o", here / "out", "--method", "uniform")
        assert "it cannot be cut" in said

    def test_too_little_public_text(self, world, here):
        (here / "few.txt").write_text("w5 w6 w7")
        said = refused(
            here,
            "compress",
            world / "model",
            "-o",
            here / "out",
            "--method",
            "crash",
            "--text",
            here / "few.txt",
        )
        assert "The text makes 0 blocks" in said


def edit_json_of_model(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


class TestStrangers:
    """Bundles that do not belong together."""

    @pytest.mark.parametrize("name", ["adapter", "lora"])
    def test_an_adapter_of_another_model(self, world, here, name):
        said = refused(here, "plug", world / "other-model", world / name, "-o", here / "out")
        assert "tuned for another model" in said
        said = refused(
            here,
            "evaluate",
            world / "other-model",
            "--adapter",
            world / name,
            "--tasks",
            world / "questions.jsonl",
        )
        assert "tuned for another model" in said

    @pytest.mark.parametrize("name", ["adapter", "lora"])
    def test_an_adapter_of_another_emulator(self, world, here, name):
        said = refused(
            here,
            "evaluate",
            world / "emulator-2",
            "--adapter",
            world / name,
            "--tasks",
            world / "questions.jsonl",
        )
        assert "tuned on another emulator" in said
        assert command("plug", world / "model", world / name, "-o", here / "fits-the-model-though").code == 0

    def test_a_lora_on_layers_that_were_tuned_since(self, world, here):
        assert command("plug", world / "model", world / "adapter", "-o", here / "tuned").code == 0
        said = refused(here, "plug", here / "tuned", world / "lora", "-o", here / "out")
        assert "adapter layers were changed since" in said

    def test_an_emulator_of_another_model(self, world, here):
        said = refused(here, "compare", world / "other-model", world / "emulator", "--tasks",
                       world / "questions.jsonl", "-o", here / "out")  # fmt: skip
        assert "made from another model" in said


class TestAltered:
    """Every command that opens a bundle refuses one that was altered, by the name of the file."""

    COMMANDS = (
        "inspect X",
        "tune X --data D -o O",
        "evaluate X --tasks Q -o O",
        "export X -o O",
        "compare M X --tasks Q -o O",
    )

    @pytest.fixture(params=COMMANDS)
    def line(self, request, world, here):
        return [here / "bundle" if word == "X" else word for word in asked(request.param, world, here / "out")]

    @pytest.fixture
    def bundle(self, world, here):
        return shutil.copytree(world / "emulator", here / "bundle")

    def test_truncated(self, here, bundle, line):
        weights = bundle / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1])
        assert "'model.safetensors' is truncated or altered" in refused(here, *line)

    def test_a_file_more(self, here, bundle, line):
        (bundle / "run.py").write_text("evil")
        assert "'run.py' is in the folder but not on the card" in refused(here, *line)

    def test_from_the_future(self, here, bundle, line):
        edit_card(bundle, format="offsite-emulator/2")
        assert "'offsite-emulator/2', where 'offsite-emulator/1' is wanted" in refused(here, *line)

    def test_not_a_number(self, here, bundle, line):
        edit_tensors(bundle, lambda tensors: tensors["model.norm.weight"].fill_(float("nan")))
        assert "'model.norm.weight' holds NaN" in refused(here, *line)

    def test_remote_code(self, here, bundle, line):
        edit_json(bundle, "config.json", auto_map={"AutoModelForCausalLM": "evil.Evil"})
        assert "remote code" in refused(here, *line)

    @pytest.mark.parametrize("words", ["inspect X", "plug M X -o O", "evaluate M --adapter X --tasks Q"])
    def test_an_adapter(self, world, here, words):
        bundle = shutil.copytree(world / "adapter", here / "bundle")
        weights = bundle / "adapter.safetensors"
        weights.write_bytes(b"x" + weights.read_bytes()[1:])
        line = [bundle if word == "X" else word for word in asked(words, world, here / "out")]
        assert "'adapter.safetensors' is truncated or altered" in refused(here, *line)


def test_an_emulator_without_a_tokenizer(world, here):
    bare = Emulator.load(world / "emulator")
    bare.tokenizer, bare.origin = None, type(bare.origin)(**{**vars(bare.origin), "tokenizer": ""})
    bare.save(here / "bare")
    for line in ("tune X --data D -o O", "evaluate X --tasks Q", "compare M X --tasks Q -o O"):
        words = [here / "bare" if word == "X" else word for word in asked(line, world, here / "out")]
        assert "without a tokenizer" in refused(here, *words)
    assert command("inspect", here / "bare").code == 0


def test_resuming_what_was_another_run_is_refused(world, here):
    work = here / ".out.tuning"
    call = ["tune", world / "emulator", "--data", world / "data.jsonl", "-o", here / "out", "--steps", "12"]
    tune(
        Emulator.load(world / "emulator"), examples(str(world / "data.jsonl")), TuneConfig(steps=12), work=work
    )
    assert "was on another emulator, other data or settings" in refused(here, *call, "--resume", "--lr", "0.1")
    assert "was on another emulator, other data or settings" in refused(
        here, *call, "--resume", "--lora-rank", "2"
    )
    resumed = command(*call, "--resume")
    assert resumed.code == 0
    assert "no interrupted run" not in resumed.err
    assert not work.exists()
    anew = command(*call, "--resume", "--force")
    assert (anew.code, anew.out) == (0, resumed.out)
    assert "There is no interrupted run to go on from; this one begins at the first step." in anew.err
