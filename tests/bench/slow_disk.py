"""The price of `ledger: {durability: power}` on a disk that takes long to sync; needs a C compiler.

    python tests/bench/slow_disk.py               # 10,000 rows of chat; a sync takes 0, 5 and 50 ms
    python tests/bench/slow_disk.py --rows 50000

A library in front of libc's (`LD_PRELOAD`) delays fsync and fdatasync; what else a slow disk delays, the operating
system does in the background.
"""

import argparse
import os
import subprocess
import tempfile
from pathlib import Path

from speed import as_installed, compared, in_markdown, machine, median, spread

DELAYS_MS = (0, 5, 50)

SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <unistd.h>
static int slowly(const char *name, int file) {
    usleep(1000 * atoi(getenv("SYNC_MS")));
    return ((int (*)(int))dlsym(RTLD_NEXT, name))(file);
}
int fsync(int file) { return slowly("fsync", file); }
int fdatasync(int file) { return slowly("fdatasync", file); }
"""


def main() -> None:
    """Compile the library, run both durabilities with each delay, print the table."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--rows", type=int, default=10_000)
    said.add_argument("--times", type=int, default=3)
    args = said.parse_args()
    as_installed()
    lines = [["a sync takes", "durability", "rows/s", "from, to", "× process", "CPU s / 1,000 rows"]]
    with tempfile.TemporaryDirectory() as name:
        source, library = Path(name) / "slow.c", Path(name) / "slow.so"
        source.write_text(SOURCE)
        subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        for delay_ms in DELAYS_MS:
            # Inherited by the runs, and by the server, which syncs nothing.
            os.environ.update(LD_PRELOAD=str(library), SYNC_MS=str(delay_ms))
            found = compared("chat", args.rows, {"rowmill": args.times, "rowmill-power": args.times})
            del os.environ["LD_PRELOAD"]
            process, power = median(found["rowmill"]), median(found["rowmill-power"])
            for durability, client, one in (("process", "rowmill", process), ("power", "rowmill-power", power)):
                ratio = f"{one.rate / process.rate:.2f}"
                used = f"{one.cpu_of_1000:.3f}"
                lines.append([f"{delay_ms} ms", durability, f"{one.rate:,.0f}", spread(found[client]), ratio, used])
    print(machine())
    print(f"chat, {args.rows:,} rows\n")
    print(in_markdown(lines))


if __name__ == "__main__":
    main()
