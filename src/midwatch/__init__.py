"""Midwatch stands the middle watch: alerts and logs in, a cited and honest diagnosis out.

The folders, from the pager down to the multiplication:

`cli/` what can I do · `dashboard/` what is happening, how long did it take, what did it cost ·
`copilot/` what is wrong, how sure are we, who must know · `gateway/` which model answers, at what price ·
`serving/` how do others call the engine · `engine/` tokens in, tokens out ·
`resilience/` what if a dependency fails · `settings.py` one frozen tree of settings.

`docs/design.md` draws the house and the path of an alert and of a token through it.
"""

__version__ = "0.1.0"
