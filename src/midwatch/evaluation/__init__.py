"""How often is it right, and does it know when it is not? Sets of labelled incidents, verdicts, and what they say.

`sets.py` names the sets (`foundry-seeds`, `foundry-programs`, `incidents`, a file), `public.py` reads the public ones,
`verdict.py` is one answer beside the truth, `measures.py` are the numbers, `report.py` the page.
"""
