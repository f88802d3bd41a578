#!/usr/bin/env python3
"""Measures the platform on this machine: start, memory, deploys, first answers, many components.

Run as root: python3 bench/run.py [--arco PATH] [--rounds N] [--components N] [--markdown FILE] [PART ...]
Every figure is the median of its rounds; where a peer is installed it runs interleaved in the same rounds. It starts its own server (own data
dir, free ports) and removes all of it. What cannot be measured here is said, not left out. Ends with status 1 when a target is missed.
"""
import argparse, concurrent.futures, contextlib, http.client, json, os, pathlib, shutil, signal, statistics, subprocess, sys, tempfile, time

sys.dont_write_bytecode = True
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from docker import Docker
from figures import Figures, administrator, until

ROOT = pathlib.Path(__file__).resolve().parent.parent
ap = argparse.ArgumentParser()
ap.add_argument("--arco", default=str(ROOT / "target/release/arco"))
ap.add_argument("--rounds", type=int, default=5)
ap.add_argument("--components", type=int, default=200)
ap.add_argument("--markdown", help="write the figures to this file as a table")
ap.add_argument("parts", nargs="*", help="start idle deploy answer many (default: all)")
args = ap.parse_args()
ARCO = str(pathlib.Path(args.arco).resolve())
figures = Figures(1, 52, remark=f"; medians of {args.rounds}")
row = figures.row


def processes(*needles):
    """Processes whose command line holds one of the texts."""
    found = []
    for p in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (p / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if any(it in line for it in needles) and int(p.name) != os.getpid():
                found.append((int(p.name), line))
    return found


def pss_kib(pid):
    with contextlib.suppress(OSError):
        for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0


def instances_processes(ids):
    """For each instance the process ids of its program, and of what the platform runs for it: shim and init."""
    found = {it: ([], []) for it in ids}
    for p in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (p / "cmdline").read_bytes().split(b"\0")
            variables = (p / "environ").read_bytes().split(b"\0")
            for it in ids:
                if len(words) > 3 and words[1] == b"shim" and words[3].endswith(it.encode()):
                    found[it][1].append(int(p.name))
                elif f"ARCO_INSTANCE={it}".encode() in variables:
                    found[it][1 if words[0].startswith(b"/.arco/") else 0].append(int(p.name))
    return found


def cpu_ticks(pid):
    with contextlib.suppress(OSError):
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return int(fields[11]) + int(fields[12])
    return 0


class Platform:
    def __init__(self):
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="arco-bench-"))
        self.data, self.proc, self.where = self.work / "data", None, {}

    def start(self):
        (self.data / "server.json").unlink(missing_ok=True)
        began = time.monotonic()
        with open(self.work / "server.log", "ab") as log:
            listen = [x for k in ("http", "https", "console", "api", "registry") for x in (f"--{k}-listen", "127.0.0.1:0")]
            self.proc = subprocess.Popen([ARCO, "server", "--data-dir", str(self.data), "--domain", "bench.localhost", *listen], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

        def ready():
            if self.proc.poll() is not None:
                raise SystemExit((self.work / "server.log").read_text()[-2000:])
            self.where = json.loads((self.data / "server.json").read_text())
            return self.ask(self.where["console"], "/healthz", "x")[0] == 200
        until(ready, 120)
        return time.monotonic() - began

    def stop(self):
        if self.proc and self.proc.poll() is None:
            self.proc.send_signal(signal.SIGTERM)
            self.proc.wait(60)

    def ask(self, address, path, host):
        name, port = address.rsplit(":", 1)
        with contextlib.closing(http.client.HTTPConnection(name, int(port), timeout=10)) as c:
            c.request("GET", path, headers={"Host": host, "Connection": "close"})
            r = c.getresponse()
            return r.status, r.read()

    def answers(self, name, app="bench"):
        return self.ask(self.where["http"], "/", f"{name}.{app}.bench.localhost")[0] == 200

    def arco(self, *words):
        began = time.monotonic()
        r = subprocess.run([ARCO, *words, "-o", "json"], capture_output=True, text=True, env=dict(os.environ, ARCO_CONTEXT=str(self.data / "admin.toml")), stdin=subprocess.DEVNULL)
        if r.returncode:
            raise SystemExit(f"arco {' '.join(words)}: exit {r.returncode}\n{r.stderr}{r.stdout}")
        return time.monotonic() - began, json.loads(r.stdout or "null")

    def credential(self, repository):
        """A registry credential, asked at the API with the administrator's certificate."""
        host, port, tls = administrator(self.data, self.work)
        with contextlib.closing(http.client.HTTPSConnection(host, port, context=tls, timeout=10)) as c:
            c.request("GET", f"/v1/registry/token?repository={repository}")
            return json.loads(c.getresponse().read())["token"]

    def clean(self):
        with contextlib.suppress(SystemExit, OSError, KeyError):
            for app in {it["application"] for it in self.arco("list")[1]["items"]}:
                self.arco("delete", app, "--yes")
        self.stop()
        shutil.rmtree(self.work, ignore_errors=True)


def start_part(p):
    empty = []
    for _ in range(args.rounds):
        one = Platform()
        empty.append(one.start())
        one.stop()
        shutil.rmtree(one.work, ignore_errors=True)
    again = []
    for _ in range(args.rounds):
        p.stop()
        again.append(p.start())
    row("start on an empty data dir", statistics.median(empty) * 1000, "ms", "<= 2000 ms", statistics.median(empty) <= 2)
    row("start on an existing data dir", statistics.median(again) * 1000, "ms", "<= 1000 ms", statistics.median(again) <= 1)


def idle_part(p):
    time.sleep(3)
    pids = [pid for pid, line in processes(str(p.data)) if " shim" not in line]
    before = sum(map(cpu_ticks, pids))
    time.sleep(20)
    used = (sum(map(cpu_ticks, pids)) - before) / os.sysconf("SC_CLK_TCK") / 20 * 100
    memory = sum(map(pss_kib, pids)) / 1024
    row("memory, idle, all roles (PSS)", memory, "MiB", "<= 100 MB", memory <= 95)
    row("CPU when nothing happens", used, "% of a core", "<= 0.5 %", used <= 0.5)


def deploy_part(p):
    for example, file, old, new in [("node-express", "server.js", None, None), ("python-flask", "app.py", None, None)]:
        source = ROOT / "examples" / example
        if not source.exists():
            row(f"{example}", "-", "", "", None, "no such example")
            continue
        copy = p.work / example
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("node_modules", ".venv"))
        first = p.arco("deploy", str(copy), "--app", "bench", "--component", example)[0]
        same, changed = [], []
        for n in range(args.rounds):
            same.append(p.arco("deploy", str(copy), "--app", "bench", "--component", example)[0])
            main = next(it for it in (copy / file, *sorted(copy.glob("*.*"))) if it.exists())
            main.write_text(main.read_text() + ("\n// " if main.suffix == ".js" else "\n# ") + f"round {n}\n")
            changed.append(p.arco("deploy", str(copy), "--app", "bench", "--component", example)[0])
        row(f"{example}: first deploy", first, "s", "")
        row(f"{example}: redeploy, unchanged", statistics.median(same), "s", "<= 1.5 s", statistics.median(same) <= 1.5)
        row(f"{example}: redeploy, one line changed", statistics.median(changed), "s", "<= 5 s", statistics.median(changed) <= 5)


def answer_part(p):
    p.arco("deploy", str(ROOT / "examples" / "go-http"), "--app", "bench", "--component", "go")
    engine, theirs, ours = Docker(p.work), [], []
    try:
        missing = engine.start()
        if not missing:
            missing = engine.load(p.where["registry"], "default/bench/go", "r1", p.credential("default/bench/go"))
        for _ in range(args.rounds):
            p.arco("stop", "bench/go")
            began = time.monotonic()
            p.arco("start", "bench/go", "--detach")
            until(lambda: p.answers("go"), 30, 0.002)
            ours.append(time.monotonic() - began)
            if not missing:
                theirs.append(engine.first_answer(8080, []))
    finally:
        engine.stop()
    own = statistics.median(ours)
    row("new instance of a built revision: first answer", own * 1000, "ms", "")
    if theirs:
        ratio = own / statistics.median(theirs)
        row("  docker run, the same image: first answer", statistics.median(theirs) * 1000, "ms", "")
        row("  ratio", ratio, "x", "<= 0.5 x", ratio <= 0.5)
    else:
        row("  docker run, the same image", "-", "", "<= 0.5 x", None, f"not measured: {missing}")
    ids = [it["id"] for it in p.arco("status", "bench/go")[1]["instances"]]
    beside = [sum(map(pss_kib, ours)) / 1024 for _, ours in instances_processes(ids).values()]
    row("memory beside the application, one instance (PSS)", statistics.median(beside), "MiB", "<= 5 MB", 0 < statistics.median(beside) <= 4.75)


def many_part(p):
    count = args.components
    p.arco("deploy", str(ROOT / "examples" / "go-http"), "--app", "bench", "--component", "go")
    names = [(f"many{n // 10}", f"c{n % 10}") for n in range(count)]

    def deploy(name):
        p.arco("deploy", "image:bench/go:r1", "--app", name[0], "--component", name[1], "--memory-mb", "32", "--port", "8080")
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(deploy, names))
    row(f"{count} components deployed, 4 at a time", (time.monotonic() - began) * 1000 / count, "ms each", "")
    lists = [p.arco("list")[0] for _ in range(args.rounds * 2)]
    listed = sum(len(it["components"]) for it in p.arco("list")[1]["items"] if it["application"].startswith("many"))
    row(f"arco list with {listed} components", statistics.median(lists) * 1000, "ms", "<= 100 ms", statistics.median(lists) <= 0.1 and listed == count)
    pids = [pid for pid, line in processes(str(p.data)) if " shim" not in line]
    memory = sum(map(pss_kib, pids)) / 1024
    row(f"control plane with {count} components (PSS)", memory, "MiB", "<= 250 MB", memory <= 238)
    ids = [p.arco("status", f"{app}/{name}")[1]["instances"][0]["id"] for app, name in names[:20]]
    found = instances_processes(ids)
    beside = [sum(map(pss_kib, ours)) / 1024 for _, ours in found.values()]
    row(f"memory beside the application, {count} instances (PSS)", statistics.median(beside), "MiB", "<= 5 MB", 0 < statistics.median(beside) <= 4.75)
    # All components are looked at once in 30 s: a shorter time would tell more or less than what it costs.
    before = sum(map(cpu_ticks, pids))
    time.sleep(30)
    row(f"CPU with {count} calm components", (sum(map(cpu_ticks, pids)) - before) / os.sysconf("SC_CLK_TCK") / 30 * 100, "% of a core", "")

    seen = []
    for app, name in names[:args.rounds]:
        began = time.monotonic()
        p.arco("stop", f"{app}/{name}", "--detach")
        until(lambda: p.arco("status", f"{app}/{name}")[1]["status"] in ("stopping", "stopped"), 10)
        seen.append(time.monotonic() - began)
    row("a stop that was asked is visible after", statistics.median(seen) * 1000, "ms", "<= 1000 ms", statistics.median(seen) <= 1)
    seen = []
    for (app, name), it in list(zip(names, ids))[args.rounds:args.rounds * 2]:
        began = time.monotonic()
        for pid in found[it][0]:
            os.kill(pid, signal.SIGKILL)
        until(lambda: p.arco("status", f"{app}/{name}")[1]["instances"][0]["status"] != "running", 10)
        seen.append(time.monotonic() - began)
    row("a killed program is visible after", statistics.median(seen) * 1000, "ms", "<= 1000 ms", statistics.median(seen) <= 1)


def main():
    if os.geteuid() != 0:
        raise SystemExit("containers need root: sudo make bench")
    parts = {"start": start_part, "idle": idle_part, "deploy": deploy_part, "answer": answer_part, "many": many_part}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that what was started is removed
    platform = Platform()
    try:
        platform.start()
        for name in args.parts or parts:
            print(f"{name}:")
            parts[name](platform)
    finally:
        platform.clean()
    figures.end(args.markdown)


main()
