"""How often is it right, and does it know when it is not? Sets of labelled incidents, verdicts, and what they say.

sets.py       names of sets (`foundry-seeds`, `foundry-programs`, `incidents`, a file); public.py: the public logs
verdict.py    one answer beside the truth; judge.py: a column asked about a set, with a record that a run goes on from
measures.py   the numbers of a column; intervals.py: how sure they are
promise.py    whether the threshold keeps its promise on incidents that did not choose it
cost.py       the share that goes up and the bill, for every risk
ablation.py   the local column without each of its parts
report.py     rows with aims, and pictures (figures.py, drawn by chart.py); page.py: every wrong answer, to be read
fitting.py    from labelled incidents to a calibration
"""
