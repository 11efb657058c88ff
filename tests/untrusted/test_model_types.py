"""No model type that an untrusted config may name starts a program or a connection when it is built."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from offsite.errors import UserError
from offsite.untrusted.config import config_and_skeleton
from offsite.untrusted.model_types import MODEL_TYPES

BUILD_ALL = """
import json, sys, warnings
import transformers
from transformers import CONFIG_MAPPING
from offsite.model.decoder import skeleton
from offsite.untrusted.model_types import MODEL_TYPES

warnings.simplefilter("ignore")
transformers.logging.set_verbosity_error()
EVENTS = ("subprocess", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "socket.connect",
          "socket.getaddrinfo")
events, built, kind = [], [], ""
sys.addaudithook(lambda event, _: events.append(f"{kind}: {event}") if event.startswith(EVENTS) else None)
for kind in [*sorted(MODEL_TYPES), *sys.argv[1:]]:
    try:
        skeleton(CONFIG_MAPPING[kind].from_dict({"num_hidden_layers": 2}))
        built.append(kind)
    except Exception:
        pass  # some cannot be cut to two layers
print(json.dumps({"events": events, "built": built}))
"""


def _build(*more):
    ran = subprocess.run([sys.executable, "-c", BUILD_ALL, *more], capture_output=True, text=True, check=True)
    return json.loads(ran.stdout.splitlines()[-1])


@pytest.mark.long
def test_no_accepted_model_type_starts_a_program():
    told = _build()
    assert told["events"] == []
    assert len(told["built"]) > 0.85 * len(MODEL_TYPES)


@pytest.mark.long
def test_the_watch_sees_the_type_that_starts_a_program():
    assert _build("rwkv")["events"] == ["rwkv: subprocess.Popen"]


def test_a_type_that_is_not_listed_is_refused():
    with pytest.raises(UserError, match="describes no rwkv model"):
        config_and_skeleton({"model_type": "rwkv"}, 10, 1000)
