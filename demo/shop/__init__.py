"""The small shop that runs in the recordings. Standard library only, so that any Debian can run it."""
