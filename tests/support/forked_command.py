"""A command line whose process is forked: a short program that has it started, forwards signals and ends as it does.

    python -I -S forked_command.py ADDRESS CODE ARGUMENT...

`command_line` returns the first words, for code that starts a child process by its command line.
"""

import contextlib
import json
import os
import signal
import socket
import sys
from pathlib import Path


def main(address: str, code: str, *arguments: str) -> None:
    """Run the code in a process forked by the server at the address, with this process's streams and folder."""
    forwarded = (signal.SIGINT, signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(address)
        request = json.dumps([code, arguments, str(Path.cwd()), dict(os.environ)]).encode()
        socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
        server.sendall(request)
        replies = server.makefile()
        pid = int(replies.readline())

        def forward(number: int, frame: object) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

        for number in forwarded:
            signal.signal(number, forward)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
        exit_code = int(replies.readline())
    if exit_code < 0:
        if -exit_code in forwarded:
            signal.signal(-exit_code, signal.SIG_DFL)
        os.kill(os.getpid(), -exit_code)
    # Nothing is left to flush.
    os._exit(exit_code)


if __name__ == "__main__":
    main(*sys.argv[1:])
