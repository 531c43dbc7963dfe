"""What is wrong, how sure are we, who must know?

The path of an incident: `intake/` verifies and parses → `store.py` makes it durable before the 202 → `incidents.py`
deduplicates and groups → `evidence.py` mines templates and picks numbered lines → `signatures.py` ranks categories by
what the lines say → `triage.py` makes ONE grammar-constrained call → `confidence.py` says how sure we are →
`redact.py` guards the one door to a bigger model → `notify.py` tells people from an outbox. `workflow.py` runs the steps.
`model.py` holds the nouns, `taxonomy.py` the categories, `server.py` the hooks.
"""
