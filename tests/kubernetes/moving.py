#!/usr/bin/env python3
"""From one machine to the cluster, as docs/guides/moving.md says it: several applications at once, in full.

  cluster.py run --node --kubectl -- moving.py ARCO

A server of one machine runs an application of two components with a volume, a binding, a host with a certificate, a route with a password and one
that leads elsewhere, and an application with a secret and TCP and UDP ports. One archive takes both into a platform installed on the cluster, which
makes volumes itself, of folders of the node: the server's own, and those that the import fills in before anything runs. What must hold: the report
names what differs, everything answers there as it did here (content, secret, certificate, routes, ports), a second import finds nothing to do, and no
volume outlives its application.
"""

import base64
import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys

from builds import NODE, ROOT, Platform, answers, done, gateway_ports, install, kubectl, say, trial, until

ECHO = """use strict; use IO::Socket::INET;
my $said = "$ENV{ARCO_COMPONENT} $ENV{TOKEN}";
if (!fork) {
  my $socket = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => 9001, Proto => 'udp') or die "udp: $!";
  while (my $from = $socket->recv(my $data, 65536)) { $socket->send("$said $data", 0, $from) }
  exit 1;
}
my $server = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => 9000, Listen => 128, ReuseAddr => 1) or die "tcp: $!";
for (;;) {
  my $client = $server->accept or next;
  if (!fork) { while (sysread($client, my $data, 8192)) { syswrite($client, "$said $data") } exit 0 }
  close $client;
}
"""
SECRET, PASSWORD = "a-secret-that-travels-sealed", "a-password-of-a-route"
GUARDED = {"path": "/guarded", "headers": {"Authorization": "Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()}, "contains": "written here"}


class Machine:
    """`arco server` on this machine, with everything below `work`."""

    def __init__(self, arco, work, registry="127.0.0.1:0"):
        self.arco, self.data = arco, work / "machine"
        listeners = [f"--registry-listen={registry}", *(f"--{it}-listen=127.0.0.1:0" for it in ("http", "https", "console", "api"))]
        environment = {**os.environ, "ARCO_GATEWAY__STREAM_LISTEN": "127.0.0.1"}
        self.log = open(work / "machine.log", "wb")
        self.server = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "--", arco, "server", "--stop-instances", "--data-dir", self.data, "--domain", "one.test", *listeners],
                                       stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log, env=environment)
        until("the machine's server is ready", lambda: self.run("list").returncode == 0 and (self.data / "server.json").exists(), 300)

    def run(self, *words):
        environment = {**os.environ, "ARCO_CONTEXT": str(self.data / "admin.toml")}
        return subprocess.run([self.arco, *map(str, words), "-o", "json"], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)

    def begin(self):
        """It is reached without a forward."""

    good = Platform.good

    def __enter__(self):
        return self

    def __exit__(self, failed, *_):
        if failed:
            self.log.flush()
            print((self.data.parent / "machine.log").read_text()[-4000:], file=sys.stderr)
        self.run("delete", "guestbook", "--yes")
        self.run("delete", "net", "--yes")
        self.server.send_signal(signal.SIGTERM)
        self.server.wait(300)
        self.log.close()


def fill(machine, work, port):
    """What is to be moved; it answers here first."""
    machine.good("apply", "-f", ROOT / "examples/guestbook/arco.yaml")
    address, http = json.loads((machine.data / "server.json").read_text())["http"].split(":")
    until("the entry is written", lambda: answers("web-guestbook.one.test", int(http), {
        "path": "/", "method": "POST", "body": "entry=written+here", "headers": {"Content-Type": "application/x-www-form-urlencoded"}, "status": 303}, address))
    done("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30", "-subj", "/CN=shop.test",
         "-addext", "subjectAltName=DNS:shop.test", "-addext", "basicConstraints=critical,CA:FALSE", "-keyout", work / "key.pem", "-out", work / "chain.pem")
    machine.good("certificate", "add", "shop", "--cert", f"@{work / 'chain.pem'}", "--key", f"@{work / 'key.pem'}")
    machine.good("route", "add", "guestbook/web", "shop.test")
    (work / "password").write_text(PASSWORD)
    machine.good("route", "add", "guestbook/web", "shop.test", "--path", "/guarded", "--rewrite-path", "/", "--user", f"me=@{work / 'password'}")
    machine.good("route", "add", "guestbook/web", "shop.test", "--path", "/old", "--redirect", "/", "--redirect-status", "308")
    source = work / "echo"
    source.mkdir()
    (source / "Dockerfile").write_text('FROM debian:12\nCOPY echo.pl /echo.pl\nCMD ["perl", "/echo.pl"]\n')
    (source / "echo.pl").write_text(ECHO)
    (work / "token").write_text(SECRET)
    machine.good("deploy", source, "--app", "net", "--component", "echo", "--port", "9000/tcp", "--port", "9001/udp", "--secret", f"TOKEN=@{work / 'token'}")
    for kind in ("--tcp", "--udp"):
        machine.good("route", "add", "net/echo", kind, port)
    it_answers(address, int(http), port, port, "one.test")


def it_answers(address, http, tcp, udp, domain):
    """All that a person sees, but the certificate."""
    until("the guestbook answers with its entry", lambda: answers("shop.test", http, {"path": "/", "contains": "written here"}, address))
    until("by its default host, too", lambda: answers(f"web-guestbook.{domain}", http, {"path": "/", "contains": "written here"}, address))
    until("with the password only", lambda: answers("shop.test", http, GUARDED, address) and answers("shop.test", http, {"path": "/guarded", "status": 401}, address))
    until("the old path leads elsewhere", lambda: answers("shop.test", http, {"path": "/old", "status": 308}, address))
    until("TCP answers with the secret", lambda: said_by_tcp(address, tcp) == f"echo {SECRET} hello")
    until("UDP answers with the secret", lambda: said_by_udp(address, udp) == f"echo {SECRET} hello")


def free_stream_port():
    """One of the gateway's ports for components that is free for TCP and UDP."""
    for port in range(10400, 11000):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp:
            try:
                tcp.bind(("127.0.0.1", port))
                udp.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue
    raise SystemExit("no port from 10400 to 10999 is free")


def said_by_tcp(host, port):
    with socket.create_connection((host, port), 5) as it:
        it.sendall(b"hello")
        return it.recv(100).decode()


def said_by_udp(host, port):
    with socket.socket(type=socket.SOCK_DGRAM) as it:
        it.settimeout(1)
        it.sendto(b"hello", (host, port))
        return it.recv(100).decode()


def shown_certificate(port):
    tls = ssl.create_default_context()
    tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection((NODE, port), 5) as plain, tls.wrap_socket(plain, server_hostname="shop.test") as it:
        return ssl.DER_cert_to_PEM_cert(it.getpeercert(binary_form=True))


def main():
    with trial("moving") as (arco, work, platform), contextlib.ExitStack() as ends:
        port = free_stream_port()
        install(arco, work, "--stream-port", f"{port}/tcp,{port}/udp", "--local-storage", "--server-node", "node-1")
        platform.open("admin")
        machine = ends.enter_context(Machine(arco, work))
        fill(machine, work, port)
        (work / "phrase").write_text("correct horse battery\n")
        archive, phrase = work / "all.arco", f"@{work / 'phrase'}"
        written = machine.good("export", "-f", archive, "--passphrase", phrase)
        if (written["applications"], written["components"], written["volumes"]) != (["guestbook", "net"], 3, 1) or any(it.encode() in archive.read_bytes() for it in (SECRET, PASSWORD)):
            raise SystemExit(f"the export: {written}")
        say(f"one machine: two applications are in one archive of {archive.stat().st_size >> 20} MB")

        looked = platform.good("import", "-f", archive, "--passphrase", phrase, "--dry-run")
        for wanted in ("ran on `local`", "end with `apps.test` here", "`arco-gateway`"):
            if not any(wanted in it for it in looked["notes"]):
                raise SystemExit(f"no note says {wanted}: {looked['notes']}")
        if platform.good("list")["items"]:
            raise SystemExit("a dry run made something")
        made = platform.good("import", "-f", archive, "--passphrase", phrase)
        if [it["action"] for it in made["components"]] != ["create"] * 3 or made["volumes"] != 1:
            raise SystemExit(f"the import: {made}")
        for note in made["notes"]:
            say(f"note: {note}")

        ports = gateway_ports()
        it_answers(NODE, ports["http"], ports[f"tcp-{port}"], ports[f"udp-{port}"], "apps.test")
        until("with its certificate", lambda: shown_certificate(ports["https"]) == (work / "chain.pem").read_text())
        say("the cluster: content, hosts, routes, password, certificate, secret, TCP and UDP ports are there")

        again = platform.good("import", "-f", archive, "--passphrase", phrase)
        if [it["action"] for it in again["components"]] != ["same"] * 3 or again["blobs_sent"] or again["volumes"] or again["operations"]:
            raise SystemExit(f"a second import: {again}")
        for application in ("guestbook", "net"):
            platform.good("delete", application, "--yes")
        until("the volume of an application goes with it", lambda: not kubectl("get", "pv", "-l", "app.kubernetes.io/managed-by=arco", "-o", "name"))
        kubectl("delete", "-f", work / "arco.yaml")
        if left := kubectl("get", "pv", "-o", "name"):
            raise SystemExit(f"volumes are left: {left}")
        say("a second import finds nothing to do; deleted and uninstalled")


if __name__ == "__main__":
    main()
