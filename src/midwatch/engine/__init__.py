"""Tokens in, tokens out: the path of a token, from weights on disk to a sampled id and its probability.

`request.py` says what a caller asks and hears. `hub.py` finds and fetches weights → `weights.py` reads GGUF →
`tokenizer.py` text to ids, with `chat_template.py` → `sequence.py` one request's state → `scheduler.py` who runs this
step → `blocks.py` where keys and values live → `transformer.py` the Llama-family decoder, with `attention.py`,
`rope.py`, `norm.py`, `quantize.py` → `sampler.py` one id per sequence, with `grammar.py` masking what a schema bars
→ `engine.py` (`step` = schedule, run, sample) and `async_engine.py`, which runs the steps on a thread of its own.
"""
