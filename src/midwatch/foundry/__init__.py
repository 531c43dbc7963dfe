"""What does a broken thing look like? Real programs, broken on purpose, and what they said.

`place.py` is the throw-away place a program runs in, `faults/` are the ways to break one (`services/` are small ones of
our own in several languages, `workshop.py` small projects whose build jobs run), `recording.py` is what was heard
with the lines that show the cause, `bank/` holds messages of programs that cannot run here (marked templated),
`compose.py` makes incidents out of recordings by a seed: names, times, neighbours, noise, several faults, recoveries,
false alarms. `incident.py` is a labelled incident, `split.py` says which programs a model may learn from.
"""
