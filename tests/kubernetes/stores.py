"""Stores that several servers share, for tests and measurements: etcd and PostgreSQL of Debian, on request an S3 server. They end with this process."""

import contextlib
import http.client
import os
import socket
import subprocess
import time
from pathlib import Path

from ports import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
# None of them needs a right, and PostgreSQL refuses to run as root.
NOBODY = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--pdeathsig", "KILL", "--"]
PASSWORD = "a secret"
READY_WITHIN_S = 300


def program(name, package):
    places = [*os.environ["PATH"].split(":"), *sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)]
    if found := next((it for it in places if (Path(it) / name).exists()), None):
        return f"{found}/{name}"
    raise SystemExit(f"{name} is not installed (Debian: {package}): deploy/packages-drivers.txt")


def done(*words, **options):
    made = subprocess.run([str(it) for it in words], capture_output=True, text=True, **options)
    if made.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: exit {made.returncode}\n{made.stdout}{made.stderr}")


class Stores:
    """On an address of this machine, in a folder that is the caller's to remove."""

    def __init__(self, work, host, s3=False):
        self.work, self.host, self.running = work, host, []
        work.chmod(0o755)
        self.home = work / "stores"
        self.home.mkdir()
        os.chown(self.home, 65534, 65534)
        self.etcd, self.postgres = free_port(host), free_port(host)
        try:
            self.start_etcd()
            self.start_postgres()
            for port in (self.etcd, self.postgres):
                self.wait_for(port)
            if s3:
                self.start_s3()
        except BaseException:
            self.end()
            raise

    def start_etcd(self):
        clients, peer = (f"http://{self.host}:{it}" for it in (self.etcd, free_port(self.host)))
        self.start([*NOBODY, program("etcd", "etcd-server"), "--data-dir", self.home / "etcd", "--log-level", "error", "--name", "one",
                    "--listen-client-urls", clients, "--advertise-client-urls", clients, "--listen-peer-urls", peer,
                    "--initial-advertise-peer-urls", peer, "--initial-cluster", f"one={peer}"])

    def start_postgres(self):
        (self.home / "password").write_text(f"{PASSWORD}\n")
        data = self.home / "postgres"
        done(*NOBODY, program("initdb", "postgresql"), "--no-sync", "--username=arco", "--auth=scram-sha-256", "--encoding=UTF8",
             f"--pwfile={self.home / 'password'}", "-D", data, cwd="/")
        with open(data / "pg_hba.conf", "a") as rules:
            rules.write("host all all 10.0.0.0/8 scram-sha-256\n")
        self.start([*NOBODY, program("postgres", "postgresql"), "-D", data, "-p", self.postgres, "-c", f"listen_addresses={self.host}",
                    "-c", "fsync=off", "-c", "max_connections=300", "-c", f"unix_socket_directories={self.home}"])

    def start_s3(self):
        self.s3 = free_port(self.host)
        environment = ROOT / "target/s3-server"
        if not (environment / "ready").exists():
            done("python3", "-m", "venv", environment)
            done(environment / "bin/python3", "-m", "pip", "install", "--quiet", "moto[server]==5.2.5")
            (environment / "ready").touch()
        self.start(["setpriv", "--pdeathsig", "KILL", "--", environment / "bin/python3", "-m", "moto.server", "-H", self.host, "-p", self.s3])
        self.wait_for(self.s3)
        with contextlib.closing(http.client.HTTPConnection(self.host, self.s3)) as c:
            c.request("PUT", "/arco", headers={"Authorization": "AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/s3/aws4_request"})
            if (answer := c.getresponse()).status != 200:
                raise SystemExit(f"the S3 server makes no bucket: {answer.status} {answer.read()!r}")

    def start(self, words):
        with open(self.work / f"store-{len(self.running)}.log", "wb") as log:
            self.running.append(subprocess.Popen([str(it) for it in words], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd="/"))

    def wait_for(self, port):
        end = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < end:
            with contextlib.suppress(OSError):
                return socket.create_connection((self.host, port), 1).close()
            time.sleep(0.1)
        raise SystemExit(f"no store answers on {self.host}:{port}; {self.work}/store-*.log say more")

    @property
    def metadata(self):
        return f"postgres://arco@{self.host}:{self.postgres}/postgres?sslmode=disable"

    @property
    def coordination(self):
        return f"etcd://{self.host}:{self.etcd}?tls=off"

    @property
    def blobs(self):
        return f"s3://arco/x?endpoint=http://{self.host}:{self.s3}&region=us-east-1"

    def end(self):
        for it in reversed(self.running):
            it.kill()
            it.wait()
        self.running = []
