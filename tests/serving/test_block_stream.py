from __future__ import annotations

import contextlib
import json
import socket
from urllib.parse import urlsplit

import pytest
from http_calls import await_health, call, get
from scripted_engine import ScriptedEngine, serve

from midwatch.engine.blocks import BlockState

USED = BlockState(state="used", owners=(1, 4), filled=16, age_steps=3)
FREE = BlockState(state="free", owners=(), filled=0, age_steps=9)
CACHED = BlockState(state="cached", owners=(), filled=16, age_steps=5)


def test_the_map_is_one_json_object_in_columns() -> None:
    with serve(ScriptedEngine(blocks=[USED, FREE, CACHED], steps=7).open) as url:
        await_health(url, 200)
        assert get(url, "/engine/blocks?once=1") == (
            200,
            {
                "block_size": 16,
                "num_blocks": 3,
                "step": 7,
                "states": "ufc",
                "owners": [[1, 4], [], []],
                "filled": [16, 0, 16],
                "age_steps": [3, 9, 5],
            },
        )


def test_the_map_is_sent_at_once_and_again_only_when_it_has_changed() -> None:
    engine = ScriptedEngine(blocks=[FREE, FREE])
    with serve(engine.open) as url:
        await_health(url, 200)
        with contextlib.ExitStack() as stack:
            address = urlsplit(url).hostname, urlsplit(url).port
            caller = stack.enter_context(socket.create_connection(address, timeout=10))
            caller.sendall(b"GET /engine/blocks?interval_ms=50 HTTP/1.1\r\nHost: x\r\n\r\n")
            stream = stack.enter_context(caller.makefile("rb"))

            def next_states() -> str:
                while not (line := stream.readline()).startswith(b"data: "):
                    assert line, "the stream ended"
                return json.loads(line.removeprefix(b"data: "))["states"]

            assert next_states() == "ff"
            engine.blocks[0] = BlockState(state="free", owners=(), filled=0, age_steps=10)  # older is no change
            engine.blocks[1] = USED
            assert next_states() == "fu"
            engine.blocks[1] = CACHED
            assert next_states() == "fc"


@pytest.mark.parametrize("interval", ["0", "-5", "1e3", "x", "99999999999999999999", ""])
def test_an_interval_that_is_none_is_refused(interval: str) -> None:
    with serve(ScriptedEngine().open) as url:
        await_health(url, 200)
        status, _, answer = call(url, "GET", f"/engine/blocks?interval_ms={interval}")
    assert status == 400
    assert "50 to 60000" in json.loads(answer)["error"]["message"]
