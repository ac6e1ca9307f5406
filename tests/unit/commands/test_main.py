"""The command line's own process."""

import subprocess
import sys

CODE = """
import atexit, gc
atexit.register(lambda: print("unfrozen:", len(gc.get_objects())))
from pipelines.cli import main
main(["--help"])
"""


def test_the_garbage_collector_has_nothing_to_do_when_a_command_ends() -> None:
    ended = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    left = int(ended.stdout.rpartition("unfrozen: ")[2])
    assert left < 1000
