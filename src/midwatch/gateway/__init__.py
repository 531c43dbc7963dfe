"""Which model answers, at what price, and what if it fails?

Rooms: `wire.py` what is asked and answered (one request, one completion, its tokens and dollars) ·
`providers.py` who can answer (the port, and any OpenAI-compatible host).
"""
