"""How do others call the engine? Over HTTP, in OpenAI's words.

The path of a call: `app.py` routes it and bounds its body → `protocol.py` checks it and turns it into sampling
parameters → `generation.py` runs it on the engine and stops it when the caller hangs up → `answers.py` shapes what
comes out, whole or as server-sent events. `host.py` holds the one model, from loading to failed. `errors.py` shapes
what goes wrong, `metrics.py` counts, `server.py` opens the socket and drains it.
"""
