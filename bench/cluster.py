#!/usr/bin/env python3
"""Measures the platform on Kubernetes: many components at once beside `kubectl apply`, calls per object, what a change and a restart take.

Run as root: python3 bench/cluster.py [--arco PATH] [--components N] [--markdown FILE] [PART ...]
It starts control planes of its own with a fake node (tests/kubernetes/cluster.py; Go), a server on them, and removes all of it. What is told
of calls is read from the API server's audit log, so it is what really came there. Ends with status 1 when a target is missed.
"""
import argparse, collections, concurrent.futures, contextlib, datetime, http.client, json, os, pathlib, re, shutil, signal, ssl, statistics, subprocess, sys, tempfile, time

sys.dont_write_bytecode = True
ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests/kubernetes"))
from figures import Figures, administrator, until
from images import image_tar
from stores import PASSWORD, Stores

CLUSTER = ROOT / "tests/kubernetes/cluster.py"
PER_APPLICATION = 100
PODS = 5000
OURS = "fieldManager=arco"
# `server.leader_lease_s` when nothing is said.
LEASE_S = 10
# What the platform makes for components; pods and replica sets are made by the cluster.
KINDS = "deployments services secrets networkpolicies poddisruptionbudgets".split()

ap = argparse.ArgumentParser()
ap.add_argument("--arco", default=str(ROOT / "target/release/arco"))
ap.add_argument("--components", type=int, default=1000)
ap.add_argument("--kubectl", help="compare with this one instead of one of the cluster's own version")
ap.add_argument("--markdown", help="write the figures to this file as a table")
ap.add_argument("parts", nargs="*", help="deploy restart change apply kubectl takeover pods etcd (default: all; takeover, pods and etcd need no other)")
args = ap.parse_args()
ARCO = str(pathlib.Path(args.arco).resolve())
figures = Figures(2, 66)
row = figures.row


def instant(text):
    """Seconds since 1970 of a time as the API server writes it."""
    return datetime.datetime.fromisoformat(text).timestamp()


class Cluster:
    """A control plane of its own with one fake node, or with nobody who makes pods of Deployments."""

    def __init__(self, work, workloads=True):
        kind = ["--fake-nodes", "1"] if workloads else ["--no-workloads"]
        made = subprocess.run([CLUSTER, "up", *kind, "--folder", work], capture_output=True, text=True)
        if made.returncode:
            raise SystemExit(made.stderr)
        self.kubeconfig = pathlib.Path(made.stdout.split()[-1])
        self.log = self.kubeconfig.parent / "log/audit.log"
        pki = self.kubeconfig.parent / "pki"
        self.address = next(it.split("https://")[1] for it in self.kubeconfig.read_text().split() if "https://" in it).strip('"\',}')
        self.tls = ssl.create_default_context(cafile=pki / "ca.crt")
        self.tls.load_cert_chain(pki / "admin.crt", pki / "admin.key")

    def call(self, method, path, document=None, kind="application/json"):
        with contextlib.closing(http.client.HTTPSConnection(self.address, context=self.tls, timeout=60)) as c:
            c.request(method, path, document and json.dumps(document), {"Content-Type": kind, "User-Agent": "bench"})
            answer = c.getresponse()
            body = answer.read()
            if answer.status >= 300:
                raise SystemExit(f"{method} {path}: {answer.status} {body[:500]!r}")
            return json.loads(body)

    def events(self, since=0):
        """What the audit log has from this byte on, and where it ends now."""
        with open(self.log, "rb") as log:
            log.seek(since)
            text = log.read()
        whole = text[:text.rfind(b"\n") + 1]
        return [json.loads(it) for it in whole.splitlines()], since + len(whole)

    def end(self):
        subprocess.run([CLUSTER, "down", self.kubeconfig], check=True)


def ours(events):
    """Calls of the platform about objects of components: (kind, name) → verbs; the tenant's own objects are apart."""
    writes, reads, times = collections.defaultdict(list), collections.Counter(), []
    for it in events:
        about = it.get("objectRef") or {}
        agent = it.get("userAgent", "")
        if agent.startswith(("kubetest/", "kubectl/", "bench")) or about.get("resource") == "leases":
            continue
        if it["verb"] == "get" and about.get("subresource") == "log":
            continue  # output of instances
        if it["verb"] == "get":
            reads[about.get("resource", it.get("requestURI"))] += 1
        elif about.get("resource") in KINDS and not about.get("name", "").startswith("arco-") and about.get("name") != "arco-registry":
            writes[about["resource"], about["name"]].append(it["verb"])
            times.append((instant(it["requestReceivedTimestamp"]), instant(it["stageTimestamp"])))
    return writes, reads, times


class Server:
    """`arco server` with every role; `meets` says which cluster the next start sees."""

    def __init__(self, work, more=""):
        self.work, self.data, self.proc, self.where = work, work / "data", None, {}
        work.mkdir(exist_ok=True)
        self.config = work / "arco.toml"
        self.config.write_text(f"""{more}[orchestrator]
driver = "kubernetes"
[kubernetes]
kubeconfig = "{work}/kubeconfig"
registry = "registry.invalid:5000"
user_namespaces = false
request_percent = 1
""")

    def meets(self, cluster):
        link = self.work / "kubeconfig"
        link.unlink(missing_ok=True)
        link.symlink_to(cluster.kubeconfig)

    def start(self):
        (self.data / "server.json").unlink(missing_ok=True)
        began = time.monotonic()
        with open(self.work / "server.log", "ab") as log:
            listen = [x for k in ("http", "https", "console", "api", "registry") for x in (f"--{k}-listen", "127.0.0.1:0")]
            words = [ARCO, "server", "--config", self.config, "--data-dir", self.data, "--domain", "bench.localhost", *listen]
            self.proc = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

        def the_server_is_ready():
            if self.proc.poll() is not None:
                raise SystemExit((self.work / "server.log").read_text()[-2000:])
            self.where = json.loads((self.data / "server.json").read_text())
            return self.get(self.where["console"], "/healthz")[0] == 200
        until(the_server_is_ready, 180, 0.02)
        if "api" not in self.where:
            return began
        *_, self.tls = administrator(self.data, self.work)
        return began

    def stop(self, how=signal.SIGTERM):
        if self.proc and self.proc.poll() is None:
            self.proc.send_signal(how)
            self.proc.wait(120)

    def get(self, address, path):
        name, port = address.rsplit(":", 1)
        with contextlib.closing(http.client.HTTPConnection(name, int(port), timeout=30)) as c:
            c.request("GET", path, headers={"Connection": "close"})
            answer = c.getresponse()
            return answer.status, answer.read()

    def ask(self, path):
        """A call of the API as its administrator."""
        name, port = self.where["api"].rsplit(":", 1)
        with contextlib.closing(http.client.HTTPSConnection(name, int(port), context=self.tls, timeout=60)) as c:
            c.request("GET", path)
            answer = c.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise ValueError(f"{path}: {answer.status} {body[:300]!r}")
            return json.loads(body)

    def arco(self, *words):
        r = subprocess.run([ARCO, *map(str, words), "-o", "json"], capture_output=True, text=True, env=dict(os.environ, ARCO_CONTEXT=str(self.data / "admin.toml")), stdin=subprocess.DEVNULL)
        if r.returncode == 3:
            raise ValueError(f"nobody answered in time: {r.stderr}")  # whoever waits asks again
        if r.returncode:
            raise SystemExit(f"arco {' '.join(map(str, words))}: exit {r.returncode}\n{r.stderr}{r.stdout}")
        return json.loads(r.stdout or "null")

    def statuses(self):
        """`application/component` → what `arco list` says of it."""
        return {f"{it['application']}/{c['component']}": c for it in self.arco("list")["items"] for c in it["components"]}

    def all_run(self, count, replicas=1):
        def every_component_runs():
            found = self.statuses().values()
            return len(found) == count and all(it["status"] == "running" and it.get("ready_replicas", replicas) == replicas for it in found)
        return every_component_runs

    def push(self):
        """One image that every component runs; its nodes run nothing, so a program of this machine will do."""
        image_tar(self.work / "image.tar", "bench:1", {"bin/true": pathlib.Path("/bin/true")}, ["/bin/true"])
        token = self.ask("/v1/registry/token?repository=default/bench/web")["token"]
        target = f"docker://{self.where['registry']}/default/bench/web:1"
        subprocess.run(["skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "--dest-creds", f"t:{token}", f"docker-archive:{self.work}/image.tar", target], check=True)


def names():
    return [(f"app{n // PER_APPLICATION}", f"c{n % PER_APPLICATION}") for n in range(args.components)]


def describe(server, replicas):
    """A file per application."""
    apps = collections.defaultdict(dict)
    for app, name in names():
        apps[app][name] = {
            "source": "image:default/bench/web:1", "replicas": replicas, "env": {"PLACE": f"{app}-{name}"},
            "ports": [{"port": 8080, "protocol": "http"}], "resources": {"memory_mb": 32},
        }
    files = []
    for app, components in apps.items():
        files.append(server.work / f"{app}.yaml")
        files[-1].write_text(json.dumps({"application": app, "components": components}))
    return files


def apply_all(server, replicas):
    files = describe(server, replicas)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda it: server.arco("apply", "-f", it, "--detach"), files))


def pss_mib(pid):
    for line in pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024


def deploy_part(s):
    s.cluster = Cluster(s.work)
    s.server.meets(s.cluster)
    s.server.start()
    s.server.push()
    began = time.monotonic()
    apply_all(s.server, 1)
    until(s.server.all_run(args.components), 900, 1)
    row(f"{args.components} components deployed by `arco apply`, until all run", time.monotonic() - began, "s")
    once(s.cluster.events()[0], "deployed one by one")


def once(events, how):
    writes, reads, times = ours(events)
    more = {it: verbs for it, verbs in writes.items() if len(verbs) != 1}
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(collections.Counter(it[0] for it in writes).items()))
    found = sum(map(len, writes.values())) / max(1, len(writes))
    row(f"calls per object that is made, {how}", found, "", "1", not more and len(writes) > 0, f"({kinds}; reads: {dict(reads) or 'none'})")
    for it, verbs in list(more.items())[:5]:
        print(f"    {it}: {verbs}")
    return times


def apply_part(s):
    """A server that knows its components meets an empty cluster. Nobody makes pods of what is applied: two cores would be busy with them alone."""
    s.server.stop()
    cluster = Cluster(s.work, workloads=False)
    try:
        s.server.meets(cluster)
        s.server.start()
        seen, found = 0, collections.Counter()

        def everything_is_applied():
            nonlocal seen
            more, seen = cluster.events(seen)
            found.update({kind: sum(map(len, (v for (k, _), v in ours(more)[0].items() if k == kind))) for kind in KINDS})
            return all(found[it] >= args.components for it in ("deployments", "services", "secrets", "networkpolicies"))
        until(everything_is_applied, 900, 0.5)
        times = once(settle(cluster, 0), "all at once")
        s.applied = max(it[1] for it in times) - min(it[0] for it in times)
        s.count = len(times)
        row(f"{s.count} objects of {args.components} components applied to an empty cluster", s.applied, "s")
        s.manifests = s.work / "manifests"
        s.manifests.mkdir()
        for kind, path in (("Deployment", "apps/v1"), ("Service", "v1"), ("Secret", "v1"), ("NetworkPolicy", "networking.k8s.io/v1"), ("PodDisruptionBudget", "policy/v1")):
            plural = {"NetworkPolicy": "networkpolicies"}.get(kind, kind.lower() + "s")
            root = "/api/v1" if path == "v1" else f"/apis/{path}"
            found = cluster.call("GET", f"{root}/namespaces/arco-default/{plural}?labelSelector=arco.internal/component")["items"]
            if found:
                (s.manifests / f"{plural}.json").write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [plain(it, path, kind) for it in found]}))
    finally:
        s.server.stop()
        cluster.end()


def plain(it, version, kind):
    """An object as somebody would write it."""
    meta = it["metadata"]
    it = {"apiVersion": version, "kind": kind, **{k: v for k, v in it.items() if k not in ("status", "metadata")}}
    it["metadata"] = {k: meta[k] for k in ("name", "labels") if k in meta} | {"namespace": "bench"}
    it["metadata"]["annotations"] = {k: v for k, v in meta.get("annotations", {}).items() if k.startswith("arco.internal/")}
    if kind == "Service":
        for field in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            it["spec"].pop(field, None)
    return it


def kubectl_part(s):
    program = args.kubectl or subprocess.run([CLUSTER, "kubectl"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    cluster = Cluster(s.work, workloads=False)
    try:
        run = lambda *words: subprocess.run([program, "--kubeconfig", cluster.kubeconfig, *words], check=True, stdout=subprocess.DEVNULL)
        run("create", "namespace", "bench")
        began = time.monotonic()
        run("apply", "-f", s.manifests)
        took = time.monotonic() - began
    finally:
        cluster.end()
    row(f"  the same {s.count} manifests by `kubectl apply -f`", took, "s")
    row("  ratio", s.applied / took, "x", "<= 0.6 x", s.applied / took <= 0.6)


def settle(cluster, since):
    """Waits until nothing of ours has come to the API server for three seconds; what came since."""
    last, quiet = None, time.monotonic()
    while time.monotonic() - quiet < 3:
        found = sum(map(len, ours(cluster.events(since)[0])[0].values()))
        if found != last:
            last, quiet = found, time.monotonic()
        time.sleep(0.2)
    return cluster.events(since)[0]


def restart_part(s):
    # Three pods fail while no server looks, so that a status from before is not taken for one of now.
    settle(s.cluster, 0)
    s.server.stop()
    changed = [names()[0], names()[len(names()) // 2], names()[-1]]
    manual(s.cluster, True)
    for app, name in changed:
        label = f"arco.internal/application={app},arco.internal/name={name}"
        pod = s.cluster.call("GET", f"/api/v1/namespaces/arco-default/pods?labelSelector={label.replace('=', '%3D').replace(',', '%2C')}")["items"][0]
        conditions = [{**it, "status": "False"} if it["type"] in ("Ready", "ContainersReady") else it for it in pod["status"]["conditions"]]
        status = {"conditions": conditions, "containerStatuses": [{**it, "ready": False} for it in pod["status"]["containerStatuses"]]}
        s.cluster.call("PATCH", f"/api/v1/namespaces/arco-default/pods/{pod['metadata']['name']}/status", {"status": status}, "application/merge-patch+json")
    _, since = s.cluster.events()
    wanted = {"/".join(it) for it in changed}

    def those_are_told():
        return all(s.server.ask(f"/v1/tenants/default/applications/{app}/components/{name}")["status"] != "running" for app, name in changed)
    began = s.server.start()
    until(those_are_told, 120, 0.02)
    took = time.monotonic() - began
    found = s.server.statuses()
    others = {it for it, c in found.items() if c["status"] != "running"} ^ wanted
    if others or len(found) != args.components:
        raise SystemExit(f"after {took:.1f} s the status is wrong of {others}, or not all of {len(found)} are told")
    row(f"status of {args.components} components after a restart, from its start", took, "s", "<= 5 s", took <= 5)
    manual(s.cluster, False)
    until(s.server.all_run(args.components), 120, 0.2)
    writes, reads, _ = ours(settle(s.cluster, since))
    row("calls that write, when nothing changed", sum(map(len, writes.values())), "", "0", not writes, f"(reads: {dict(reads) or 'none'})")
    for it in list(writes.items())[:5]:
        print(f"    {it}")


def manual(cluster, on):
    """Whether pods of the fake node stay as somebody else wrote them."""
    cluster.call("PATCH", "/api/v1/nodes/fake-1", {"metadata": {"labels": {"kubetest/pods": "manual" if on else "ready"}}}, "application/merge-patch+json")


def is_workload_of(app, name, event):
    about = event.get("objectRef") or {}
    return about.get("resource") == "deployments" and about.get("name", "").startswith(f"{app}-{name}-") and OURS in event.get("requestURI", "")


def change_part(s):
    took = []
    for app, name in names()[:20]:
        _, since = s.cluster.events()
        began = time.time()
        s.server.arco("env", "set", f"{app}/{name}", "COLOUR=green", "--detach")

        def the_change_is_there():
            found = [it for it in s.cluster.events(since)[0] if is_workload_of(app, name, it)]
            return found and instant(found[0]["requestReceivedTimestamp"])
        took.append((until(the_change_is_there, 30, 0.01) - began) * 1000)
    row("a change of the spec reaches the API server, median of 20", statistics.median(took), "ms", "<= 300 ms", statistics.median(took) <= 300, f"(slowest {max(took):.0f} ms; with the command line's own time)")


@contextlib.contextmanager
def on_shared_stores(s, cluster, **roles):
    """A server for each name with these roles, on etcd and PostgreSQL of their own."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=s.work))
    folder.chmod(0o711)
    stores, servers = Stores(folder, "127.0.0.1"), []
    try:
        (folder / "password").touch(0o600)
        (folder / "password").write_text(PASSWORD)
        for name, own in roles.items():
            servers.append(Server(folder / name, f"""[server]
roles = {json.dumps(own)}
[store]
metadata = "{stores.metadata}"
metadata_password_file = "{folder}/password"
coordination = "{stores.coordination}"
blobs = "file:{folder}/blobs"
secret_key = "{folder}/shared.key"
"""))
            servers[-1].meets(cluster)
            servers[-1].start()
        yield servers
    finally:
        for it in servers:
            it.stop()
        stores.end()


def takeover_part(s):
    """kill -9 of the leader of two controllers on shared stores, three times."""
    every = ["api", "controller", "builder", "eventlog", "registry", "console"]
    cluster = Cluster(s.work)
    try:
        with on_shared_stores(s, cluster, one=every, two=every) as servers:
            took = [taken_over(servers) for _ in range(3)]
    finally:
        cluster.end()
    row(f"kill -9 of the leader, until another one leads, slowest of {len(took)}", max(took), "s", f"<= lease + 1 s = {LEASE_S + 1} s", max(took) <= LEASE_S + 1, f"({', '.join(f'{it:.1f}' for it in took)})")


def leads(server):
    role = json.loads(server.get(server.where["console"], "/healthz")[1])["roles"]["controller"]
    return role["ready"] and not role["detail"]


def taken_over(servers):
    def one_leads():
        found = [it for it in servers if leads(it)]
        return found[0] if len(found) == 1 else None
    old = until(one_leads, 120, 0.02)
    other = next(it for it in servers if it is not old)
    began = time.monotonic()
    old.stop(signal.SIGKILL)

    def the_other_one_leads():
        return leads(other)
    until(the_other_one_leads, 120, 0.02)
    took = time.monotonic() - began
    old.start()
    return took


def etcd_part(s):
    """The driver beside a bare client, in one process: built optimised, the first time in some minutes."""
    words = "cargo test --release --locked -p arco-store --lib -- --ignored --nocapture latency_of_the_etcd_driver_beside_bare_calls".split()
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    found = re.search(r"put (\d+) bare (\d+) get (\d+) bare (\d+)", ran.stdout + ran.stderr)
    if ran.returncode or not found:
        raise SystemExit(f"{' '.join(words)}: exit {ran.returncode}\n{ran.stdout[-2000:]}{ran.stderr[-2000:]}")
    put, bare_put, get, bare_get = map(int, found.groups())
    for what, driver, bare in (("write", put, bare_put), ("read", get, bare_get)):
        row(f"etcd driver, a {what} beside a bare gRPC call ({driver} and {bare} us)", driver / bare, "x", "<= 1.1 x", driver <= 1.1 * bare)


def pods_part(s):
    """Many pods, with the controller in a process of its own as an installation has it."""
    s.server.stop()
    replicas, cluster = max(1, PODS // args.components), Cluster(s.work)
    try:
        with on_shared_stores(s, cluster, rest=["api", "builder", "eventlog", "registry", "console"], leader=["controller", "console"]) as (rest, leader):
            rest.push()
            apply_all(rest, replicas)
            until(rest.all_run(args.components, replicas), 900, 1)
            pods = cluster.call("GET", "/api/v1/namespaces/arco-default/pods?limit=1")
            count = 1 + pods["metadata"].get("remainingItemCount", 0)
            settle(cluster, cluster.events()[1])
            for when in ("", ", after a restart"):
                if when:
                    leader.stop()
                    leader.start()
                    until(lambda: leads(leader), 120, 0.2)
                    settle(cluster, cluster.events()[1])
                found = pss_mib(leader.proc.pid)
                row(f"controller, {count} pods watched (PSS){when}", found, "MiB", "<= 150 MB", found <= 143)
            row("  API, logs, registry beside it (PSS)", pss_mib(rest.proc.pid), "MiB")
    finally:
        cluster.end()


class State:
    """What parts leave for later ones."""
    cluster = None


def main():
    if os.geteuid() != 0:
        raise SystemExit("the server needs root: sudo make bench-cluster")
    parts = {"deploy": deploy_part, "restart": restart_part, "change": change_part, "apply": apply_part, "kubectl": kubectl_part, "takeover": takeover_part, "pods": pods_part, "etcd": etcd_part}
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # so that what was started is removed
    state = State()
    state.work = pathlib.Path(tempfile.mkdtemp(prefix="arco-bench-"))
    state.work.chmod(0o711)  # PostgreSQL runs as a user of its own
    state.server = Server(state.work)
    try:
        for name in args.parts or parts:
            print(f"{name}:", flush=True)
            parts[name](state)
    finally:
        state.server.stop()
        for folder in state.work.glob("kubetest-*"):
            subprocess.run([CLUSTER, "down", folder / "kubeconfig"])
        shutil.rmtree(state.work, ignore_errors=True)
    figures.end(args.markdown)


main()
