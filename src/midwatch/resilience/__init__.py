"""What if a dependency fails? Rooms: `supervisor.py` keeps child processes alive and says when all are ready."""
