#!/usr/bin/env python3
"""What a request costs in the gateway, beside nginx, HAProxy and Envoy: processor time of the proxy per request, in the same run.

Run as root on a quiet machine: python3 bench/gateway.py [--arco PATH] [--rounds N] [--seconds S] [PART ...]
Each proxy has one thread, pinned to cpu 1; clients (wrk, h2load) and the origin (nginx) are on cpu 0. Per part the proxies run one after the
other, in the other order every second round. What counts is the median of the rounds' ratios to nginx: absolute times move with the machine,
and requests per second say little when the client is the slower one. All have the same task: keep connections, set X-Forwarded-For, -Proto,
-Host, X-Real-IP and X-Request-Id, no access log. It starts and stops everything itself, below a temporary folder. What it cannot measure it says.
"""
import argparse, contextlib, http.client, os, pathlib, re, resource, shutil, signal, socket, ssl, statistics, subprocess, sys, tempfile, threading, time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from gateway_proxies import HSTS, OTHER_CPU, SECURE, STREAMS, Arco, Envoy, Haproxy, Nginx, Proxy, Stored, free_port, wait_for

ROOT = pathlib.Path(__file__).resolve().parent.parent
PARTS = {
    "small": "HTTP/1.1, 128 B", "large": "HTTP/1.1, 16 KiB", "hosts": "HTTP/1.1, 128 B, 10,000 hosts", "tls": "TLS keep-alive, 128 B",
    "https": "TLS keep-alive, redirect, HSTS",
    "handshakes": "new TLS connection, 1 request", "http2": "HTTP/2 over TLS, 128 B", "tcp": "TCP, 16 KiB", "udp": "UDP, 128 B", "memory": "memory", "change": "route change",
}
GOALS = {"small": 0.88, "large": 0.85, "hosts": 0.70, "tls": 0.82, "https": 0.82, "handshakes": 0.50, "http2": 0.78, "tcp": 0.75}
HOSTS = [f"h{n}.bench.example" for n in range(10_000)]
ap = argparse.ArgumentParser()
ap.add_argument("--arco", default=str(ROOT / "target/release/arco"))
ap.add_argument("--envoy")
ap.add_argument("--peers", default="nginx,haproxy,envoy")
ap.add_argument("--rounds", type=int, default=7)
ap.add_argument("--seconds", type=int, default=1)
ap.add_argument("--connections", type=int, default=4000, help="idle connections of the part `memory`")
ap.add_argument("parts", nargs="*", help=" ".join(PARTS) + " (default: all)")
args = ap.parse_args()
args.arco = str(pathlib.Path(args.arco).resolve())  # proxies start in folders of their own
unknown = [it for it in args.parts if it not in PARTS]
if unknown:
    raise SystemExit(f"unknown part {unknown[0]}; there are: {' '.join(PARTS)}")
table, unmeasured = [], []
# Everything but the proxies, the clients of this program among it.
os.sched_setaffinity(0, {int(OTHER_CPU)})
# Answers each datagram with itself.
ECHO = """import socket, sys
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("127.0.0.1", int(sys.argv[1])))
while True: s.sendto(*s.recvfrom(2048))
"""
# 64 clients, each with one datagram on its way; prints how many came back and how many did not.
DATAGRAMS = """import select, socket, sys, time
port, count, back, lost = int(sys.argv[1]), int(sys.argv[2]), 0, 0
poll, all = select.epoll(), {}
for _ in range(64):
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("127.0.0.1", port)); s.send(b"d" * 128)
    all[s.fileno()] = s; poll.register(s, select.EPOLLIN)
while back < count:
    ready = poll.poll(2)
    if not ready:
        lost += 64
        if lost > count: break
        for s in all.values(): s.send(b"d" * 128)
    for number, _ in ready:
        all[number].recv(2048); back += 1; all[number].send(b"d" * 128)
print(back, lost)
"""


def run(*command):
    done = subprocess.run(["taskset", "-c", OTHER_CPU, *command], capture_output=True, text=True)
    if done.returncode != 0:
        raise SystemExit(f"{command[0]} failed: {done.stderr[-500:]}{done.stdout[-500:]}")
    return done.stdout


def wrk(url, *more):
    """Requests that were answered well, and the 99th percentile in milliseconds."""
    out = run("wrk", "-t1", "-c64", f"-d{args.seconds}s", "--latency", *more, url)
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", out), re.search(r"Socket errors:.*", out)
    if any(bad):
        raise SystemExit(f"wrong answers from {url}: {out}")
    number, unit = re.search(r"99%\s+([\d.]+)(us|ms|s)", out).groups()
    return int(re.search(r"(\d+) requests in", out)[1]), float(number) * {"us": 0.001, "ms": 1, "s": 1000}[unit]


def datagrams(port):
    back, lost = map(int, run(sys.executable, "-c", DATAGRAMS, str(port), str(15000 * args.seconds)).split())
    if lost > back // 100:
        raise SystemExit(f"UDP: {lost} of {back} datagrams were lost")
    return back, None


def h2load(*more):
    out = run("h2load", "-t1", *more)
    done, failed = re.search(r"(\d+) succeeded, (\d+) failed", out).groups()
    if int(done) == 0 or int(failed) > int(done) // 100:
        raise SystemExit(f"h2load failed: {out}")
    return int(done), None


class Bench:
    def __init__(self, work):
        self.work, self.running = work, {}
        key, cert = work / "key.pem", work / "cert.pem"
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", str(key), "-out", str(cert),
            "-days", "2", "-subj", "/CN=localhost", "-addext", f"subjectAltName=DNS:localhost,DNS:{SECURE}")
        self.tls = (cert, key)
        self.kinds = [Arco] + [it for it in (Nginx, Haproxy, Envoy) if it.name in args.peers.split(",")]
        self.paths = {"arco": args.arco, "envoy": args.envoy}
        for kind in list(self.kinds):
            path = self.paths.get(kind.name) or kind.found()
            if not path or not pathlib.Path(path).exists():
                if kind is Arco or kind is Nginx:
                    raise SystemExit(f"{kind.name} is missing at {path}: " + ("make build" if kind is Arco else kind.install))
                self.kinds.remove(kind)
                unmeasured.append(f"{kind.name}: not installed ({kind.install})")
        for tool in ("wrk", "h2load", "taskset", "openssl"):
            if not shutil.which(tool):
                raise SystemExit(f"{tool} is missing: apt-get install wrk nghttp2-client util-linux openssl")
        self.start_origin()

    def start_origin(self):
        self.origin, folder = free_port(), self.work / "origin"
        folder.mkdir()
        (folder / "large").write_bytes(b"x" * 16384)
        small = "y" * 128
        (folder / "nginx.conf").write_text(
            "user root; worker_processes 1; pid nginx.pid; error_log stderr error; worker_rlimit_nofile 19000; events { worker_connections 19000; }\n"
            "http { access_log off; keepalive_requests 1000000000; keepalive_timeout 300; open_file_cache max=10 inactive=1h; open_file_cache_valid 1h; tcp_nopush on; sendfile on;\n"
            f"server {{ listen 127.0.0.1:{self.origin} backlog=4096; root {folder}; location = /large {{ }} location / {{ return 200 '{small}'; }} }} }}\n")
        log = folder / "log"
        with open(log, "ab") as out:
            self.origin_proc = subprocess.Popen(["taskset", "-c", OTHER_CPU, Nginx.found(), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"], stdin=subprocess.DEVNULL, stdout=out, stderr=out)
        wait_for(self.origin, self.origin_proc, log)
        Proxy.udp_origin = free_port()
        self.echo_proc = subprocess.Popen([sys.executable, "-c", ECHO, str(Proxy.udp_origin)], stdin=subprocess.DEVNULL)

    def proxies(self, hosts=()):
        for kind in self.kinds:
            if (kind.name, len(hosts)) not in self.running:
                self.running[kind.name, len(hosts)] = kind(self.work, self.origin, self.tls, hosts, self.paths.get(kind.name))
        return [self.running[kind.name, len(hosts)] for kind in self.kinds]

    def stop(self, hosts=None):
        for key in [it for it in self.running if hosts is None or it[1] == hosts]:
            self.running.pop(key).stop()

    def close(self):
        self.stop()
        for proc in (self.origin_proc, self.echo_proc):
            proc.terminate()
            proc.wait()

    def compare(self, part, proxies, load):
        """Interleaved rounds; a row for each proxy."""
        for proxy in proxies:
            load(proxy)
        cost, rate = {it.name: [] for it in proxies}, {it.name: [] for it in proxies}
        for number in range(args.rounds):
            for proxy in proxies if number % 2 == 0 else reversed(proxies):
                before, began = proxy.cpu(), time.monotonic()
                requests, _ = load(proxy)
                rate[proxy.name].append(requests / (time.monotonic() - began))
                cost[proxy.name].append((proxy.cpu() - before) / requests / 1000)
        base = cost.get("nginx")
        for proxy in proxies:
            mine = cost[proxy.name]
            ratios = [a / b for a, b in zip(mine, base)] if base else []
            ratio = statistics.median(ratios) if ratios else None
            goal = GOALS.get(part) if proxy.name == "arco" else None
            mark = "" if goal is None or ratio is None else ("ok" if ratio <= goal else "MISSED")
            spread = f"[{min(ratios):.2f}-{max(ratios):.2f}]" if ratios else ""
            row = (PARTS[part], proxy.name, f"{statistics.median(mine):.2f} us", f"{ratio:.2f}" if ratio else "-", spread, f"{statistics.median(rate[proxy.name]):,.0f}/s", f"<= {goal:.2f}" if goal else "", mark)
            table.append(row)
            print("  {:<30} {:<8} {:>10} {:>6} {:<12} {:>10}  {:<8} {}".format(*row), flush=True)

    def small(self):
        self.compare("small", self.proxies(), lambda it: wrk(f"http://localhost:{it.http}/"))

    def large(self):
        self.compare("large", self.proxies(), lambda it: wrk(f"http://localhost:{it.http}/large"))

    def hosts(self):
        script = self.work / "hosts.lua"
        script.write_text(
            "local r, n = {}, 0\nfunction init() for i = 0, 9999 do r[i] = wrk.format('GET', '/', {Host = 'h' .. (i * 7919 % 10000) .. '.bench.example'}) end end\n"
            "function request() n = (n + 1) % 10000; return r[n] end\n")
        self.compare("hosts", self.proxies(HOSTS), lambda it: wrk(f"http://localhost:{it.http}/", "-s", str(script)))

    def tls_(self):
        self.compare("tls", self.proxies(), lambda it: wrk(f"https://localhost:{it.https}/"))

    def https(self):
        """A host whose plain HTTP is redirected and whose clients are told to stay with TLS, as every proxy really does."""
        for it in self.proxies():
            plain, secure = told(it.led, False), told(it.secure, True)
            if plain[0] not in (301, 308) or secure != (200, HSTS):
                raise SystemExit(f"{it.name} answers {SECURE} with {plain} by plain HTTP and {secure} over TLS")
        self.compare("https", self.proxies(), lambda it: wrk(f"https://localhost:{it.secure}/", "-H", f"Host: {SECURE}"))

    def handshakes(self):
        # The same work: version, cipher, key exchange, certificate. What differs: the gateway sends one session ticket, nginx and HAProxy two.
        agreed = {it.name: re.findall(r"^(?:TLS Protocol|Cipher|Server Temp Key): (.*)$", run("h2load", "--h1", "-n1", "-c1", f"https://localhost:{it.https}/"), re.M) for it in self.proxies()}
        if any(it != agreed["arco"] for it in agreed.values()):
            raise SystemExit(f"new TLS connections cannot be compared: the proxies agree on different things: {agreed}")
        print(f"  new TLS connections: {', '.join(agreed['arco'])} with each", flush=True)
        # A load takes a third of a second: three times as many as the others have seconds, so that all measure about as long.
        load = lambda it: h2load("--h1", "-n1000", "-c1000", f"https://localhost:{it.https}/")
        self.compare("handshakes", self.proxies(), lambda it: (sum(load(it)[0] for _ in range(3 * args.seconds)), None))

    def http2(self):
        self.compare("http2", self.proxies(), lambda it: h2load("-c16", "-m16", f"-n{40000 * args.seconds}", f"https://localhost:{it.https}/"))

    def tcp(self):
        able = [it for it in self.proxies() if it.name != "nginx" or STREAMS.exists()]
        if len(able) < len(self.proxies()):
            unmeasured.append("tcp beside nginx: libnginx-mod-stream is not installed")
        self.compare("tcp", able, lambda it: wrk(f"http://localhost:{it.tcp}/large"))

    def udp(self):
        able = [it for it in self.proxies() if it.udp and (it.name != "nginx" or STREAMS.exists())]
        unmeasured.extend(f"UDP of {it.name}: " + ("it has none" if it.name == "haproxy" else "not compared") for it in self.proxies() if it not in able)
        self.compare("udp", able, lambda it: datagrams(it.udp))

    def memory(self):
        """Of fresh processes with 10,000 hosts, and what each idle connection adds after one request. What a process has of its own (anonymous memory)
        is told apart from the pages of its executable and libraries, which the system shares and may drop."""
        self.stop()
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        count = min(args.connections, hard - 200)
        for proxy in self.proxies(HOSTS):
            base, own = proxy.pss_kib()
            per, kept = {}, []
            for kind, port, n in (("plain", proxy.http, count), ("TLS", proxy.https, count // 4)):
                # The first connections pay for what all share.
                kept += hold(port, kind == "TLS", 200)
                before = proxy.pss_kib()[0]
                # All stay to the end: memory that one kind gives back would hide what the other takes.
                kept += hold(port, kind == "TLS", n)
                per[kind] = (proxy.pss_kib()[0] - before) / n
            for it in kept:
                it.close()
            goals = (("10,000 hosts, own", own / 1024, "MiB", 20), ("10,000 hosts, with pages of files", base / 1024, "MiB", None), ("idle connection", per["plain"], "KiB", 2), ("idle TLS connection", per["TLS"], "KiB", 8))
            for what, value, unit, goal in goals:
                mark = ("ok" if value <= goal else "MISSED") if proxy.name == "arco" and goal else ""
                row = (f"memory: {what}", proxy.name, f"{value:.2f} {unit}", "", "", "", f"<= {goal}" if mark else "", mark)
                table.append(row)
                print("  {:<30} {:<8} {:>10} {:>6} {:<12} {:>10}  {:<8} {}".format(*row), flush=True)
        self.stop()

    def change(self):
        """Time from telling the proxy until a new host of 10,000 answers, with 64 busy connections."""
        for proxy in self.proxies(HOSTS):
            if proxy.name not in ("arco", "nginx"):
                unmeasured.append(f"route change of {proxy.name}: not compared (HAProxy starts a new process, Envoy needs a control plane)")
                continue
            _, calm = wrk(f"http://localhost:{proxy.http}/")
            loaded, times = {}, []
            busy = threading.Thread(target=lambda: loaded.update(p99=wrk(f"http://localhost:{proxy.http}/", f"-d{12 if proxy.name == 'nginx' else 6}s")[1]))
            busy.start()
            for number in range(1 if proxy.name == "nginx" else 5):
                time.sleep(0.5)
                fresh = f"fresh{number}.bench.example"
                began = time.monotonic()
                proxy.reload([*HOSTS, fresh])
                while time.monotonic() - began < 11:
                    if status(proxy.http, fresh) == 200:
                        times.append((time.monotonic() - began) * 1000)
                        break
                    time.sleep(0.001)
            busy.join()
            took = f"{statistics.median(times):.0f} ms" if times else "> 11 s"
            row = ("file change, 10,000 hosts", proxy.name, took, "", f"p99 {calm:.1f}", f"-> {loaded.get('p99', 0):.1f} ms", "", "")
            table.append(row)
            print("  {:<30} {:<8} {:>10} {:>6} {:<12} {:>10}  {:<8} {}".format(*row), flush=True)
        self.stop()
        if shutil.which("etcd"):
            self.one_route()
        else:
            unmeasured.append("a change of one route (<= 10 ms): etcd is not installed (apt-get install etcd-server)")

    def one_route(self):
        """Time from etcd's answer, that it has a changed route of 10,000, until requests are answered by it, with 64 busy connections; and what they notice."""
        stored = Stored(self.work, self.origin, args.arco)
        try:
            stored.hosts(HOSTS, None)
            until_status(stored.http, HOSTS[-1], 200)
            load = lambda seconds: wrk(f"http://localhost:{stored.http}/", "-H", f"Host: {HOSTS[0]}", f"-d{seconds}s")
            load(1)
            times, p99 = [], {"calm": [], "asked": [], "changed": []}

            def changed(number):
                host, mark = HOSTS[1 + number * 7919 % 9999], f"m{number}"
                with socket.create_connection(("127.0.0.1", stored.http), 30) as asking:
                    stored.hosts([host], mark)
                    began = time.monotonic()
                    while mark_of(asking, host) != mark:
                        if time.monotonic() - began > 10:
                            raise SystemExit(f"the route of {host} was not in effect after 10 s")
                    return time.monotonic() - began

            def asked(number):
                """The same work of this program and of etcd, with a key that the gateway does not follow: all that it shares a processor with."""
                until = statistics.median(times) if times else 0.005
                with socket.create_connection(("127.0.0.1", stored.http), 30) as asking:
                    stored.put([("/bench/other", {"number": number})])
                    began = time.monotonic()
                    while time.monotonic() - began < until:
                        mark_of(asking, HOSTS[0])

            def under_load(kind, each):
                failure = []

                def busy():
                    try:
                        p99[kind].append(load(4)[1])
                    except SystemExit as why:
                        failure.append(str(why))
                thread = threading.Thread(target=busy)
                thread.start()
                time.sleep(0.5)
                took = []
                while each and thread.is_alive():
                    took.append(each(len(times) + len(took)))
                    time.sleep(0.05)
                thread.join()
                if failure:
                    raise SystemExit(f"requests failed while routes changed: {failure[0]}")
                return took[:-1]  # the last one ended after the load

            for number in range(args.rounds):
                order = [("calm", None), ("changed", changed), ("asked", asked)]
                for kind, each in order if number % 2 == 0 else reversed(order):
                    took = under_load(kind, each)
                    times += took if kind == "changed" else []
            median = statistics.median(times) * 1000
            loaded, same, calm = (statistics.median(p99[it]) for it in ("changed", "asked", "calm"))
            rows = (("one route changed, 10,000 hosts", f"{median:.1f} ms", f"[{min(times) * 1000:.1f}-{max(times) * 1000:.1f}]", f"{len(times)} times", "<= 10", "ok" if median <= 10 else "MISSED"),
                    ("p99 of requests meanwhile", f"{loaded:.1f} ms", f"[{min(p99['changed']):.1f}-{max(p99['changed']):.1f}]", "", "", ""),
                    ("p99, another key of the store changed", f"{same:.1f} ms", f"[{min(p99['asked']):.1f}-{max(p99['asked']):.1f}]", f"calm {calm:.1f}", "", ""))
            for what, value, spread, note, goal, mark in rows:
                row = (what, "arco", value, "", spread, note, goal, mark)
                table.append(row)
                print("  {:<30} {:<8} {:>10} {:>6} {:<12} {:>10}  {:<8} {}".format(*row), flush=True)
        finally:
            stored.stop()


def told(port, secure):
    """Status and `Strict-Transport-Security` of an answer for the host that is served over TLS alone."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    asking = http.client.HTTPSConnection("localhost", port, context=context, timeout=10) if secure else http.client.HTTPConnection("localhost", port, timeout=10)
    with contextlib.closing(asking):
        asking.request("GET", "/", headers={"Host": SECURE})
        answer = asking.getresponse()
        return answer.status, answer.getheader("strict-transport-security")


def status(port, host):
    with contextlib.suppress(OSError, IndexError, ValueError), socket.create_connection(("127.0.0.1", port), 2) as s:
        s.settimeout(12)
        s.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
        return int(s.recv(4096).split()[1])
    return 0


def until_status(port, host, wanted):
    for _ in range(6000):
        if status(port, host) == wanted:
            return
        time.sleep(0.01)
    raise SystemExit(f"{host} was not served within 60 s")


def mark_of(asking, host):
    """The field `x-mark` of an answer on an open connection."""
    asking.sendall(f"GET / HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
    answer = b""
    while b"\r\n\r\n" not in answer or len(answer.split(b"\r\n\r\n", 1)[1]) < 128:
        piece = asking.recv(4096)
        if not piece:
            raise SystemExit(f"a connection was closed while routes changed: {answer[:200]}")
        answer += piece
    found = re.search(rb"(?i)\r\nx-mark: (\S+)", answer)
    return found and found[1].decode()


def hold(port, tls, count):
    """Connections that have had one answer each and stay."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    held = []
    for _ in range(count):
        it = socket.create_connection(("127.0.0.1", port), 30)
        if tls:
            it = context.wrap_socket(it, server_hostname="localhost")
        it.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        answer = b""
        while b"\r\n\r\n" not in answer or len(answer.split(b"\r\n\r\n", 1)[1]) < 128:
            piece = it.recv(4096)
            if not piece:
                raise SystemExit(f"an idle connection was closed: {answer[:200]}")
            answer += piece
        held.append(it)
    return held


# What was started is stopped also then.
signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
with tempfile.TemporaryDirectory(prefix="arco-bench-gateway-") as folder:
    bench = Bench(pathlib.Path(folder))
    try:
        print(f"ratio: median over {args.rounds} rounds of processor time per request to nginx's in the same round [lowest-highest]")
        for part in args.parts or PARTS:
            getattr(bench, {"tls": "tls_"}.get(part, part))()
    finally:
        bench.close()
for line in dict.fromkeys(unmeasured):
    print(f"  not measured: {line}")
# Never above HAProxy where a goal is set.
cost = {(it[0], it[1]): float(it[3]) for it in table if it[3] not in ("", "-")}
above = [it[0] for it in table if it[1] == "arco" and cost.get((it[0], "haproxy"), 9e9) < cost.get((it[0], "arco"), 0)]
missed = [it[0] for it in table if it[7] == "MISSED"]
print("  " + ("every goal was reached" if not missed and not above else "missed: " + (", ".join(missed) or "none") + "; above HAProxy: " + (", ".join(above) or "none")))
