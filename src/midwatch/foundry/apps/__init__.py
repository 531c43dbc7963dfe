"""What do users of a store print? Small services and drivers that run as programs of their own in a place.

Each file here needs the standard library only, since it is copied into the place and started there with a plain
Python: a service keeps asking a store through one driver and logs what happened as applications do.
"""
