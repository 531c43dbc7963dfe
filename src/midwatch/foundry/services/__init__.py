"""How do our own services break? One small service, written in several languages, and the scenes it is put through.

`apps/` are its sources, `service.py` draws one and runs it, `kit.py` says what differs between languages. The scenes:
`defects.py` (code, settings, releases), `limits.py` (what runs out), `outside.py` (what it depends on), `calm.py` (no
trouble at all). `supervisor.py` is who starts it and restarts it.
"""
