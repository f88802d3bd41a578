"""Requests to an application without a pause, through the node's port of the gateway."""

import contextlib
import http.client
import threading
import time

from builds import BEGAN, NODE, say, until


class Load:
    """Asks for a page, again and again, until it is told to end; what is not answered with 200 within `limit_s` is kept."""

    def __init__(self, port, host, path="/", pause_s=0.02, threads=1, limit_s=10):
        self.port, self.host, self.path, self.pause_s, self.limit_s = port, host, path, pause_s, limit_s
        self.good, self.bad, self.stopped = 0, [], threading.Event()
        until(f"{path} of {host} answers", lambda: self.ask() == 200)
        self.threads = [threading.Thread(target=self.run, daemon=True) for _ in range(threads)]
        for it in self.threads:
            it.start()

    def ask(self):
        with contextlib.closing(http.client.HTTPConnection(NODE, self.port, timeout=self.limit_s)) as c:
            c.request("GET", self.path, headers={"Host": self.host, "Connection": "close"})
            answer = c.getresponse()
            answer.read()
            return answer.status

    def run(self):
        while not self.stopped.wait(self.pause_s):
            try:
                status = self.ask()
            except (OSError, http.client.HTTPException) as error:
                status = repr(error)
            if status == 200:
                self.good += 1
            else:
                self.bad.append(f"{time.monotonic() - BEGAN:.1f} s: {status}")

    def none_lost(self, what):
        if self.bad:
            raise SystemExit(f"{len(self.bad)} of {self.good + len(self.bad)} requests for {self.path} were lost, {what}: {self.bad[:5]}")

    def check(self, what):
        self.none_lost(what)
        say(f"{what}: {self.good} requests answered so far, none lost")

    def end(self):
        self.stopped.set()
        for it in self.threads:
            it.join()
        self.none_lost("until the end")
