#!/usr/bin/env python3
"""What clients notice while everything behind the gateway changes: nothing. Ends with status 1 when a single request fails, or an address that two
machines share is away for longer than three seconds.

Run as root: python3 bench/shows.py [--arco PATH] [--hosts N] [--changes N] [changes] [address]
`changes` starts a server of its own (own data dir, free ports) with a component and N hosts, lets wrk ask it on 64 connections and a client ask it over
TLS, and meanwhile changes one route after the other, changes 1,000 at once, kills the control plane and starts it again, renews a certificate, and
lets the data plane be replaced by a new one; at the end, without load, it kills the gateway's worker three times. How long each took to be in
effect, and the 99th percentile before and during the changes, it prints.
`address` makes two machines (network namespaces) whose gateways share an address, and a client that asks it: one machine dies, its gateway dies, it
is stopped, three times each; how long it took until the other one answered. Without keepalived it is left out, which it says.
"""
import argparse, concurrent.futures, contextlib, ctypes, hashlib, http.client, json, os, pathlib, re, shutil, signal, socket, ssl, statistics, subprocess, sys, tempfile, threading, time, tomllib

sys.dont_write_bytecode = True
from figures import administrator

ROOT = pathlib.Path(__file__).resolve().parent.parent
ap = argparse.ArgumentParser()
ap.add_argument("--arco", default=str(ROOT / "target/release/arco"))
ap.add_argument("--hosts", type=int, default=10_000)
ap.add_argument("--changes", type=int, default=1_000)
PARTS = ("changes", "address")
ap.add_argument("parts", nargs="*", help=" ".join(PARTS) + " (default: all)")
args = ap.parse_args()
if unknown := [it for it in args.parts if it not in PARTS]:
    raise SystemExit(f"unknown part {unknown[0]}; there are: {' '.join(PARTS)}")
ARCO = str(pathlib.Path(args.arco).resolve())
# Hosts in one call of the API.
BATCH = 500
ROUTES = "/v1/tenants/default/applications/shows/components/web/routes"
DOCKERFILE = 'FROM debian:12\nCOPY web.pl /web.pl\nEXPOSE 8080\nCMD ["perl", "/web.pl"]\n'
PROGRAM = r"""use strict; use IO::Socket::INET; use IO::Select;
$SIG{PIPE} = 'IGNORE';
my $server = IO::Socket::INET->new(LocalAddr => '0.0.0.0', LocalPort => 8080, Listen => 512, ReuseAddr => 1) or die "listen: $!";
my ($all, %heard) = (IO::Select->new($server));
for (;;) { for my $it ($all->can_read) {
  if ($it == $server) { my $client = $server->accept; $all->add($client) if $client; next }
  if (!sysread($it, my $piece, 65536)) { $all->remove($it); delete $heard{$it}; close $it; next }
  else { $heard{$it} .= $piece }
  while ($heard{$it} =~ s/^.*?\r\n\r\n//s) { syswrite($it, "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n") }
} }
"""
failures = []


def say(what, value, note=""):
    print(f"  {what:<58} {value:>14}  {note}", flush=True)


def until(what, seconds, step=0.001):
    """What `what` returns once that is true, and how many milliseconds it took."""
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException, KeyError):
            if found := what():
                return found, (time.monotonic() - began) * 1000
        time.sleep(step)
    raise SystemExit(f"{what.__name__}: not within {seconds} s")


class Platform:
    def __init__(self, work):
        self.work, self.data, self.proc = work, work / "data", None

    def start(self):
        (self.data / "server.json").unlink(missing_ok=True)
        listen = [it for name in ("http", "https", "console", "api", "registry") for it in (f"--{name}-listen", "127.0.0.1:0")]
        with open(self.work / "server.log", "ab") as log:
            self.proc = subprocess.Popen([ARCO, "server", "--data-dir", str(self.data), "--domain", "shows.localhost", *listen], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

        def ready():
            if self.proc.poll() is not None:
                raise SystemExit(f"the server ended:\n{(self.work / 'server.log').read_text()[-2000:]}")
            where = json.loads((self.data / "server.json").read_text())
            self.port = {it: int(where[it].rsplit(":", 1)[1]) for it in ("http", "https", "console")}
            return ask(self.port["console"], "console", "/healthz")[0] == 200
        until(ready, 120, 0.02)

    def arco(self, *words):
        done = subprocess.run([ARCO, *words], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=dict(os.environ, ARCO_CONTEXT=str(self.data / "admin.toml"), NO_COLOR="1"))
        if done.returncode:
            raise SystemExit(f"arco {' '.join(words)}: exit {done.returncode}\n{done.stderr}{done.stdout}")

    def api(self):
        """A connection to the API with the administrator's certificate."""
        host, port, tls = administrator(self.data, self.work)
        return http.client.HTTPSConnection(host, port, context=tls, timeout=300)

    def routes(self, api, hosts, mark):
        """Lets these hosts lead to the component, with a field `x-mark` in each response."""
        route = {"hosts": hosts, "response_headers": {"set": {"x-mark": mark}}}
        api.close()  # the server ends connections that were idle; this one may be
        api.request("POST", ROUTES, json.dumps(route), {"Content-Type": "application/json"})
        answer = api.getresponse()
        text = answer.read()
        if answer.status >= 300:
            raise SystemExit(f"adding routes: {answer.status} {text[:500]}")

    def workers(self):
        """Process ids of the data plane's workers."""
        holder = (self.data / "run/data-plane.pid").read_text().split()[0]
        return [int(it) for it in pathlib.Path(f"/proc/{holder}/task/{holder}/children").read_text().split()]

    def stop(self):
        with contextlib.suppress(SystemExit):
            self.arco("delete", "shows", "--yes")
        self.proc.send_signal(signal.SIGTERM)
        self.proc.wait(60)


def ask(port, host, path="/"):
    """Status and `x-mark` of an answer on a fresh connection."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=10)) as it:
        it.request("GET", path, headers={"Host": host, "Connection": "close"})
        answer = it.getresponse()
        answer.read()
        return answer.status, answer.getheader("x-mark")


class Wrk:
    """64 connections that ask on and on until they are told to stop."""

    def __init__(self, port, seconds):
        words = ["wrk", "-t1", "-c64", f"-d{seconds}s", "--timeout", "20s", "--latency", "-H", "Host: h0.shows.example", f"http://127.0.0.1:{port}/"]
        self.proc = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    def end(self, what):
        """Requests and their 99th percentile in ms; what failed is kept."""
        self.proc.send_signal(signal.SIGINT)
        text = self.proc.communicate()[0]
        failures.extend(f"{what}: {it[0]}" for it in re.finditer(r"Socket errors:.*|Non-2xx or 3xx responses:.*", text))
        number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", text).groups()
        return int(re.search(r"(\d+) requests in", text)[1]), float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


class Secure(threading.Thread):
    """A client that asks over TLS on connections that it keeps for ten requests each."""

    def __init__(self, port):
        super().__init__(daemon=True)
        self.port, self.answers, self.stopped = port, 0, threading.Event()

    def run(self):
        while not self.stopped.is_set():
            try:
                with secure(self.port) as it:
                    for _ in range(10):
                        it.sendall(b"GET / HTTP/1.1\r\nHost: h0.shows.example\r\n\r\n")
                        answer = b""
                        while not answer.endswith(b"\r\n\r\nok\n"):
                            piece = it.recv(4096)
                            if not piece:
                                raise OSError(f"closed after {answer!r}")
                            answer += piece
                        if not answer.startswith(b"HTTP/1.1 200"):
                            raise OSError(repr(answer[:100]))
                        self.answers += 1
                        if b"connection: close" in answer.lower():
                            break
            except OSError as error:
                failures.append(f"over TLS: {error}")
                if len(failures) > 20:
                    return
            time.sleep(0.002)  # the pace of a client


def secure(port):
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), 20), server_hostname="h0.shows.example")


def shown(port):
    """What stands for the certificate that a new connection gets."""
    with secure(port) as it:
        return hashlib.sha256(it.getpeercert(True)).hexdigest()


def certificate(platform, number):
    folder = platform.work / f"certificate-{number}"
    folder.mkdir()
    key, chain = folder / "key.pem", folder / "chain.pem"
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key), "-out", str(chain),
        "-days", "30", "-subj", "/CN=shows", "-addext", "subjectAltName=DNS:h0.shows.example", "-addext", "basicConstraints=critical,CA:FALSE"], check=True, capture_output=True)
    platform.arco("certificate", "add", "shows", "--cert", f"@{chain}", "--key", f"@{key}")


def main(platform):
    platform.start()
    source = platform.work / "source"
    source.mkdir()
    (source / "Dockerfile").write_text(DOCKERFILE)
    (source / "web.pl").write_text(PROGRAM)
    platform.arco("deploy", str(source), "--app", "shows", "--component", "web")
    certificate(platform, 0)
    hosts, api, http_port, https_port = [f"h{it}.shows.example" for it in range(args.hosts)], platform.api(), platform.port["http"], platform.port["https"]
    began = time.monotonic()
    for at in range(0, len(hosts), BATCH):
        platform.routes(api, hosts[at:at + BATCH], "first")
    marked = lambda host, mark: lambda: ask(http_port, host) == (200, mark)
    for host in hosts:
        until(marked(host, "first"), 120, 0.02)
    say(f"{args.hosts:,} hosts added, all in effect after", f"{time.monotonic() - began:.1f} s")
    before, _ = until(lambda: shown(https_port), 60)
    load = Wrk(http_port, 5)
    time.sleep(4)
    calm, p99 = load.end("before")
    say("requests on 64 connections, nothing changes", f"{calm:,}", f"p99 {p99:.1f} ms")

    load, client = Wrk(http_port, 600), Secure(https_port)
    client.start()
    times = []
    for number in range(20):
        host, mark = hosts[1 + number * 7 % (len(hosts) - 1)], f"m{number}"
        platform.routes(api, [host], mark)
        times.append(until(marked(host, mark), 60)[1])
    say("one route changed: in effect after the API's answer", f"{statistics.median(times):.1f} ms", f"longest of {len(times)}: {max(times):.1f} ms")
    began = time.monotonic()
    changed = hosts[1:args.changes + 1]
    for at in range(0, len(changed), BATCH):
        platform.routes(api, changed[at:at + BATCH], "second")
    for host in changed:
        until(marked(host, "second"), 120)
    say(f"{len(changed):,} routes changed, all in effect after", f"{time.monotonic() - began:.1f} s")
    requests, during = load.end("while routes changed")
    say("requests meanwhile", f"{requests:,}", f"p99 {during:.1f} ms")

    load = Wrk(http_port, 600)
    platform.proc.kill()
    platform.proc.wait()
    for _ in range(200):
        if ask(http_port, "h1.shows.example")[0] != 200:
            failures.append("without a control plane: a new connection was not answered")
        time.sleep(0.01)
    say("control plane killed: new connections answered", "200")
    platform.start()
    certificate(platform, 1)
    _, took = until(lambda: shown(https_port) != before, 60)
    say("control plane is back, certificate renewed: shown after", f"{took:.1f} ms")
    began = time.monotonic()
    platform.arco("data-plane", "--hand-over", "--data-dir", str(platform.data))
    say("data plane replaced", f"{time.monotonic() - began:.1f} s")
    time.sleep(4)
    requests, during = load.end("while processes changed")
    client.stopped.set()
    client.join(30)
    say("requests meanwhile", f"{requests:,}", f"p99 {during:.1f} ms")
    say("requests over TLS in all that time", f"{client.answers:,}")

    # With the worker its open connections go: this is about those that come.
    times = []
    for _ in range(3):
        time.sleep(11)  # one that dies sooner than 10 s after it began is started again later and later
        killed = platform.workers()
        for pid in killed:
            os.kill(pid, signal.SIGKILL)
        times.append(until(lambda: ask(http_port, "h0.shows.example")[0] == 200, 60)[1])
        until(lambda: platform.workers() and not set(platform.workers()) & set(killed), 60)
    say("gateway's worker killed: a new connection answered after", f"{statistics.median(times):.1f} ms", f"longest of {len(times)}: {max(times):.1f} ms")
    if max(times) > 1000:
        failures.append(f"gateway killed: a new connection was answered after {max(times):.0f} ms, not within a second")


# The address that two machines share, and how long it may be away.
SHARED, MOST_MS = "10.99.0.10", 3000
CLONE_NEWNET = 0x40000000


def ip(*words):
    done = subprocess.run(["ip", *words], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"ip {' '.join(words)}: {done.stderr}")
    return done.stdout


class Machines:
    """A client with a bridge, and on it two machines `a` and `b` whose gateways share an address: three network namespaces."""

    def __init__(self, work):
        self.work, self.procs, self.made = work, {}, []
        self.names = [f"arco-bench-{os.getpid()}{it}" for it in "abc"]

    def build(self):
        for name in self.names:
            ip("netns", "add", name)
            self.made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        client = self.names[2]
        ip("-n", client, "link", "add", "br0", "type", "bridge")
        ip("-n", client, "address", "add", "10.99.0.1/24", "dev", "br0")
        ip("-n", client, "link", "set", "br0", "up")
        for at, port in enumerate(("va", "vb")):
            ip("-n", client, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", self.names[at])
            ip("-n", client, "link", "set", port, "master", "br0", "up")
            ip("-n", self.names[at], "address", "add", f"10.99.0.{at + 2}/24", "dev", "eth0")
            ip("-n", self.names[at], "link", "set", "eth0", "up")

    def file(self, at):
        return self.work / f"{'ab'[at]}.yaml"

    def start(self, at, priority):
        self.file(at).write_text(
            "listeners: [{name: web, address: '0.0.0.0:80', protocol: http}]\n"
            f"routes: [{{hosts: ['*'], answer: {{status: 200, body: {'ab'[at]}}}}}]\n"
            f"virtual_address: {{address: {SHARED}/24, interface: eth0, router_id: 51, priority: {priority}, peers: [10.99.0.{3 - at}], advert_ms: 250}}\n")
        command = ["nsenter", f"--net=/run/netns/{self.names[at]}", ARCO, "gateway", "--config", str(self.file(at))]
        with open(self.file(at).with_suffix(".log"), "ab") as log:
            self.procs[at] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def check(self):
        for at, proc in self.procs.items():
            if proc.poll() is not None:
                raise SystemExit(f"a gateway ended:\n{self.file(at).with_suffix('.log').read_text()[-2000:]}")

    def kill(self, at, only=""):
        """Ends what runs on a machine, or only what has this word in its command line: all of it at once, so that nobody notices that another one died."""
        for what in (signal.SIGSTOP, signal.SIGKILL):
            for pid in map(int, ip("netns", "pids", self.names[at]).split()):
                with contextlib.suppress(OSError):
                    if only in pathlib.Path(f"/proc/{pid}/cmdline").read_text():
                        os.kill(pid, what)

    def clear(self, at):
        """The machine as it was before its gateway was started."""
        self.kill(at)
        self.procs.pop(at).wait(60)
        ip("-n", self.names[at], "address", "flush", "dev", "eth0")
        ip("-n", self.names[at], "address", "add", f"10.99.0.{at + 2}/24", "dev", "eth0")
        ip("-n", self.names[2], "link", "set", ("va", "vb")[at], "up")

    def close(self):
        for at, name in enumerate(self.made):
            if at < 2:
                self.kill(at)
            subprocess.run(["ip", "netns", "delete", name])
        for proc in self.procs.values():
            proc.wait(60)
        for at in range(2):
            # Where its gateway kept what keepalived is told.
            token = hashlib.sha256(str(self.file(at)).encode()).hexdigest()[:16]
            shutil.rmtree(f"/run/arco-gateway/{token}", ignore_errors=True)


def enter(name):
    """Makes the sockets of this thread those of a network namespace."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}") as it:
        if libc.setns(it.fileno(), CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), f"cannot enter {name}")


def shared():
    """Which machine answers at the shared address."""
    with socket.create_connection((SHARED, 80), 0.2) as it:
        it.sendall(b"GET / HTTP/1.1\r\nHost: shared.example\r\nConnection: close\r\n\r\n")
        text = b""
        while piece := it.recv(4096):
            text += piece
        return text[-1:].decode()


def shared_address():
    if os.geteuid() or not shutil.which("keepalived"):
        why = "it needs root" if os.geteuid() else "keepalived is not installed (apt-get install keepalived)"
        print(f"  SKIPPED: the address that machines share is not measured: {why}", flush=True)
        return
    folder = tempfile.TemporaryDirectory(prefix="arco-bench-shared-")
    machines = Machines(pathlib.Path(folder.name))
    with folder, contextlib.closing(machines):
        machines.build()
        with concurrent.futures.ThreadPoolExecutor(1, initializer=enter, initargs=(machines.names[2],)) as client:
            def answered_by(who):
                def answered():
                    return client.submit(shared).result() == who
                until(answered, 60)

            machines.start(1, 100)
            answered_by("b")
            for what, happens in (
                ("its machine dies", lambda: ip("-n", machines.names[2], "link", "set", "va", "down")),
                ("its gateway dies", lambda: machines.kill(0, "--config")),
                ("its gateway is stopped", lambda: machines.procs[0].terminate()),
            ):
                times = []
                for _ in range(3):
                    machines.start(0, 150)
                    answered_by("a")
                    time.sleep(3)  # it has been asked several times whether it is well
                    machines.check()
                    began = time.monotonic()
                    happens()
                    answered_by("b")
                    times.append((time.monotonic() - began) * 1000)
                    machines.clear(0)
                say(f"shared address, {what}: away for", f"{statistics.median(times):.0f} ms", f"longest of {len(times)}: {max(times):.0f} ms, at most {MOST_MS}")
                if max(times) > MOST_MS:
                    failures.append(f"shared address, {what}: it was away for {max(times):.0f} ms, not at most {MOST_MS}")


def changes():
    for tool in ("wrk", "openssl"):
        if not shutil.which(tool):
            raise SystemExit(f"{tool} is missing: apt-get install wrk openssl")
    if os.geteuid():
        raise SystemExit("this starts containers: run it as root")
    work = pathlib.Path(tempfile.mkdtemp(prefix="arco-bench-shows-"))
    platform = Platform(work)
    try:
        main(platform)
    finally:
        if platform.proc and platform.proc.poll() is not None:
            platform.start()
        if platform.proc:
            platform.stop()
        shutil.rmtree(work, ignore_errors=True)


signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
for part, measure in zip(PARTS, (changes, shared_address)):
    if part in (args.parts or PARTS):
        measure()
for line in failures[:20]:
    print(f"  FAILED {line}")
print(f"  {len(failures) or 'no'} failure(s)")
sys.exit(1 if failures else 0)
