"""How often Python looks for circles among objects, in every process that sends."""

import gc

RARELY = (20_000, 20, 50)
"""Objects, and rounds, until it looks. Usually after 700: what the modules hold would be walked again and again, a
tenth of the CPU time of a run."""


def look_rarely() -> None:
    """From now on, in this process."""
    gc.set_threshold(*RARELY)
