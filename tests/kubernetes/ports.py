"""Ports of this machine for programs that cannot be given a socket."""

import os
import random
import socket

# The kernel does not hand these out by itself, so that nobody gets one before the program.
FIRST, LAST = 20_000, 31_999
given = set()


def free_port(host="127.0.0.1") -> int:
    """One that nobody listens on; each is given once by a process."""
    begin = random.Random(os.getpid()).randrange(FIRST, LAST + 1)
    for port in (*range(begin, LAST + 1), *range(FIRST, begin)):
        if port not in given:
            given.add(port)
            with socket.socket() as it:
                try:
                    it.bind((host, port))
                    return port
                except OSError:
                    continue
    raise SystemExit(f"every port from {FIRST} to {LAST} is in use")
