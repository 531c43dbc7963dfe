"""What is happening, how long did it take, what did it cost?

One page that lists incidents as they change and one that shows an incident. `app.py` holds the routes, `feed.py` turns
changes of the store into server-sent events, `incident_page.py` lays out one incident (the log around the cited lines,
where the time went), `words.py` says things as a person would and makes hostile text harmless to read, `security.py`
the headers, `reader.py` the port to the store. `templates/` and `static/` are the pages: no build step, nothing fetched
from elsewhere.
"""
