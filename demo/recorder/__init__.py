"""How were the demo's incidents recorded? Real programs, broken on purpose, in a throw-away house.

`house` builds the private namespaces, `stage` starts programs and collects their lines, `servers` knows PostgreSQL,
nginx and Redis, `alerts` asks a real Alertmanager for the webhook body, `incident` holds the nouns and writes a
folder, `incidents/` holds what is broken and how, `demo/shop/` is the small shop that runs in the house.
"""
