"""How do others call the engine? Over HTTP, in OpenAI's words and vLLM's.

The path of a call: `app.py` routes it → `bodies.py` bounds and parses it → `protocol.py` turns it into sampling
parameters → `generation.py` runs it on the engine and stops it when the caller hangs up → `answers.py` shapes what
comes out, whole or as server-sent events. `embeddings.py`, `model_routes.py` (models, adapters, tokens) and
`block_stream.py` are the other routes. `host.py` holds the one model, from loading to draining or failed. `errors.py`
shapes what goes wrong, `metrics.py` counts, `server.py` opens the socket and drains it, `http_benchmark.py` measures
any such server from outside.
"""
