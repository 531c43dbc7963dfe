"""What is wrong, how sure are we, who must know?

The path of an incident: `intake/` verifies and parses → `store.py` makes it durable before the 202 → `incidents.py`
deduplicates and groups → `evidence.py` mines templates and picks numbered lines → `signatures.py` ranks categories by
what the lines say → `triage.py` makes ONE grammar-constrained call → `confidence.py` says how sure we are →
`redact.py` guards the one door to a bigger model → `notify.py` tells people from an outbox. `workflow.py` runs it all.

Nouns: `model.py`; categories and next steps: `taxonomy.py`; hooks: `server.py`, counted by `metrics.py`.
Behind `store.py`: `tables.py` the schema, `commits.py` group commit, `placing.py` what comes in, `claims.py` what the
workflow takes and puts back, `views.py` what others read, `codec.py` values as bytes.
Behind `evidence.py`: `reading.py` a log into a digest, `wordings.py` kinds of lines that are known already, `shapes.py`
one kind of line, `parsing.py` a line apart, `structured.py` JSON and logfmt, `templates.py` lines of one wording,
`scoring.py` which lines matter, `baseline.py` what is usual, `entities.py` who is meant, `tokens.py` how long it is,
`rules.py` the signatures themselves. Behind `triage.py`: `prompt.py` the question.
"""
