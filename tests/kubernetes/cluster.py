#!/usr/bin/env python3
"""A real Kubernetes for tests: etcd and the control plane, on request with a real node or with fake ones.

  cluster.py up [--node] [--fake-nodes N] [--internet] [--metrics] [--gateway-api] [--kubernetes VERSION]
                                                         starts one, prints the path of its KUBECONFIG when it is ready
  cluster.py down KUBECONFIG                             ends it and removes everything it made
  cluster.py run [options of up] -- COMMAND…             up, COMMAND with KUBECONFIG and ARCO_TEST_KUBECONFIG set, down in any case
  cluster.py load KUBECONFIG IMAGE.tar…                  puts images into the real node's containerd
  cluster.py enter KUBECONFIG -- COMMAND…                runs COMMAND in the real node's namespaces
  cluster.py binary                                      builds what is missing, prints the folder of the programs
  cluster.py kubectl                                     builds kubectl of the cluster's version when it is missing, prints where it is

All processes of a cluster live in a PID namespace whose first process is `supervise` below: when that one ends, for whatever reason, the
kernel ends the rest and drops their mounts. `down` then removes the network namespace, control groups and the folder. Any number of clusters
can run beside each other. A control plane alone listens on loopback, on a free port; a real node has a network of its own, 10.250.N.0/30,
and pods in 10.251.N.0/24, which this machine can reach. Pods see the outside world only with --internet (forwarding is then switched on).
With --kubectl the COMMAND of `run` finds a kubectl of the cluster's version, whatever is installed.
With --metrics the real node's figures are served by metrics-server, which runs in a pod and is built the first time that somebody asks for it.
With --gateway-api the Gateway API's own definitions are installed (its kinds, nobody who serves them).
With --kubernetes 1.31.4 (or ARCO_TEST_KUBERNETES) etcd and Kubernetes' own parts are of that version, built the first time that somebody asks for it.
"""

import argparse
import ctypes
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import certificates
import gateway_api
import metrics
import older
import parts
from images import image_tar

HERE = Path(__file__).resolve().parent
CACHE = Path(os.environ.get("ARCO_TEST_TOOLS", "/var/cache/arco/test-tools"))
PREFIX = "kubetest-"
VERSION = "1.36.3"
READY_WITHIN_S = 300
PAUSE, BUSYBOX = "kubetest.local/pause:1", "kubetest.local/busybox:1"
METRICS = HERE / "metrics"
KUBECTL = HERE / "kubectl"


class Failure(Exception):
    """What went wrong and what to do, for the person who runs this."""


# --- programs -------------------------------------------------------------------------------------------------------------------------

def programs() -> Path:
    """The folder with `kubetest`, `coredns` and `pause`."""
    packages = ((HERE, "./pause", "pause"), (HERE / "coredns", ".", "coredns"), (HERE, ".", "kubetest"))
    return built("kubernetes", [it for it in sources() if not {METRICS, KUBECTL} & set(it.parents)], packages)


def metrics_server() -> Path:
    """The program, which only clusters with --metrics need."""
    return built("metrics-server", [it for it in sources() if METRICS in it.parents], ((METRICS, ".", "metrics-server"),)) / "metrics-server"


def parts_of(version: str) -> Path:
    """The program with the parts of another version of Kubernetes."""
    files = [HERE / it for it in ("go.mod", "older.py", "older/main.go", "project/project.go")]
    module = lambda: ["-mod=mod", f"-modfile={older.written(HERE / 'go.mod', version, CACHE / f'older-{version}.mod')}"]
    return built(f"older-{version}", files, ((HERE, "./older", "kubetest"),), version, module) / "kubetest"


def kubectl() -> Path:
    """The folder with `kubectl` of the cluster's version."""
    return built("kubectl", [it for it in sources() if KUBECTL in it.parents], ((KUBECTL, ".", "kubectl"),))


def sources() -> list[Path]:
    return sorted(it for it in HERE.glob("**/*") if it.suffix == ".go" or it.name in ("go.mod", "go.sum"))


def built(what: str, files: list[Path], packages, kubernetes=VERSION, flags=list) -> Path:
    """The folder with a program of each package, built when the content of `files` has changed since. `flags` is asked when it is built."""
    digest = hashlib.sha256()
    for it in files:
        digest.update(f"{os.path.relpath(it, HERE)}\0{it.stat().st_size}\0".encode() + it.read_bytes())
    folder = CACHE / f"{what}-{digest.hexdigest()[:16]}"
    names = [name for _, _, name in packages]
    if (folder / names[-1]).exists():
        return folder
    if not shutil.which("go"):
        raise Failure("Go is missing: install 1.26 or newer from go.dev; the test cluster is built from Kubernetes' own packages")
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / "kubernetes.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / names[-1]).exists():
            print(f"building {', '.join(names)} from Kubernetes' packages ({kubernetes}; the first time takes some minutes)", file=sys.stderr)
            version = "k8s.io/component-base/version"
            stamp = " ".join(f"-X {version}.{k}={v}" for k, v in
                             {"gitVersion": f"v{kubernetes}", "gitMajor": "1", "gitMinor": kubernetes.split(".")[1]}.items())
            further = flags()
            with tempfile.TemporaryDirectory(dir=CACHE) as made:
                for module, package, name in packages:
                    subprocess.run(["go", "build", *further, "-trimpath", "-buildvcs=false", "-ldflags", f"-s -w {stamp}", "-o", f"{made}/{name}", package],
                                   cwd=module, check=True, env={**os.environ, "CGO_ENABLED": "0"}, stdout=sys.stderr)
                folder.mkdir(exist_ok=True)
                for name in names:  # the last says that all are there
                    os.replace(f"{made}/{name}", folder / name)
            for old in CACHE.glob(f"{what}-*"):
                # Other clones of the repository may be at another state of this module; theirs are kept for a week.
                if old != folder and time.time() - old.stat().st_mtime > 7 * 86400:
                    shutil.rmtree(old)
    return folder


def require(node: bool):
    if os.geteuid() != 0:
        raise Failure("a test cluster makes namespaces of its own and needs root: run this with sudo")
    wanted = ["openssl"] + (["containerd", "ctr", "runc", "ip", "nft", "conntrack", "mount"] if node else [])
    missing = [it for it in wanted if not shutil.which(it)]
    if node and not Path("/usr/lib/cni/bridge").exists():
        missing.append("/usr/lib/cni/bridge")
    if missing:
        raise Failure(f"{', '.join(missing)} missing: install the packages of deploy/packages-cluster.txt (`make test-cluster` does)")


# --- namespaces -----------------------------------------------------------------------------------------------------------------------

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNS, CLONE_NEWPID, CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000


def checked(result: int, what: str):
    if result != 0:
        raise Failure(f"{what}: {os.strerror(ctypes.get_errno())}")


def command(*words, quiet=False):
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0 and not quiet:
        raise Failure(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.returncode == 0


def make_network(internet: bool) -> int:
    """A network namespace, a link to it and a route to its pods. Returns N of its addresses."""
    for number in range(1, 250):
        # Making the namespace is what claims the number.
        if not command("ip", "netns", "add", f"{PREFIX}{number}", quiet=True):
            continue
        try:
            inside = ["ip", "-n", f"{PREFIX}{number}"]
            command("ip", "link", "add", f"kt{number}h", "type", "veth", "peer", "name", f"kt{number}n", "netns", f"{PREFIX}{number}")
            command("ip", "addr", "add", f"10.250.{number}.1/30", "dev", f"kt{number}h")
            command("ip", "link", "set", f"kt{number}h", "up")
            command(*inside, "link", "set", "lo", "up")
            command(*inside, "addr", "add", f"10.250.{number}.2/30", "dev", f"kt{number}n")
            command(*inside, "link", "set", f"kt{number}n", "up")
            command(*inside, "route", "add", "default", "via", f"10.250.{number}.1")
            command("ip", "route", "add", f"10.251.{number}.0/24", "via", f"10.250.{number}.2")
            if internet:
                Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
                command("nft", f"add table ip kubetest_{number}; "
                        f"add chain ip kubetest_{number} out {{ type nat hook postrouting priority srcnat; }}; "
                        f"add rule ip kubetest_{number} out ip saddr {{ 10.250.{number}.0/30, 10.251.{number}.0/24 }} "
                        f"oifname != kt{number}h masquerade")
            return number
        except Failure:
            remove_network(number)
            raise
    raise Failure("all 249 test networks are taken: end clusters with `cluster.py down`")


def remove_network(number: int):
    command("nft", "delete", "table", "ip", f"kubetest_{number}", quiet=True)
    command("ip", "link", "del", f"kt{number}h", quiet=True)
    command("ip", "netns", "del", f"{PREFIX}{number}", quiet=True)


def enter_network(number: int):
    with open(f"/run/netns/{PREFIX}{number}") as it:
        checked(LIBC.setns(it.fileno(), CLONE_NEWNET), "entering the network namespace")


def cgroup_folders(name: str):
    """The control group of that name in each hierarchy of this machine (one on v2, several on v1)."""
    root = Path("/sys/fs/cgroup")
    if (root / "cgroup.controllers").exists():
        return [root / name]
    return [it / name for it in root.iterdir() if it.is_dir() and not it.is_symlink()]


def remove_cgroups(name: str, deadline: float):
    for folder in cgroup_folders(name):
        while folder.exists():
            for it, _, _ in os.walk(folder, topdown=False):
                try:
                    os.rmdir(it)
                except OSError:
                    pass  # a process in it is just ending
            if time.monotonic() > deadline:
                raise Failure(f"{folder} cannot be removed: processes are left in it")
            if folder.exists():
                time.sleep(0.05)


# --- the first process of a cluster ---------------------------------------------------------------------------------------------------

class Supervisor:
    """PID 1 of a cluster: starts the parts, says when they are ready, reaps, and ends with the first part that ends."""

    def __init__(self, plan: parts.Plan, options):
        self.plan, self.options, self.running = plan, options, {}

    def start(self, name: str, words: list[str]):
        with open(self.plan.folder / "log" / f"{name}.log", "wb") as log:
            environment = {**os.environ, "HOME": self.plan.file("home"), "GOGC": "50"}
            environment.pop("NOTIFY_SOCKET", None)
            it = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd=self.plan.folder)
        self.running[it.pid] = name

    def reap(self, block: bool):
        """Takes ended processes; orphans of containers end up here too."""
        while True:
            try:
                pid, status = os.waitpid(-1, 0 if block else os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if name := self.running.pop(pid, None):
                log = self.plan.folder / "log" / f"{name}.log"
                tail = b"\n".join(log.read_bytes().splitlines()[-8:]).decode(errors="replace")
                raise Failure(f"{name} ended with status {os.waitstatus_to_exitcode(status)}; {log} ends with:\n{tail}")

    def call(self, method: str, path: str, document=None, timeout=60) -> tuple[int, bytes]:
        """One call as the administrator. A document that is bytes is YAML."""
        context = ssl.create_default_context(cafile=self.plan.pki("ca.crt"))
        context.load_cert_chain(self.plan.pki("admin.crt"), self.plan.pki("admin.key"))
        connection = http.client.HTTPSConnection(self.plan.address, self.plan.port, context=context, timeout=timeout)
        plain = isinstance(document, bytes)
        body = document if plain or document is None else json.dumps(document)
        connection.request(method, path, body, {"Content-Type": "application/yaml" if plain else "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()

    def until(self, what: str, attempt):
        """Attempts until nothing is in the way any more (None); what fails on the way is in the way."""
        deadline, last = time.monotonic() + READY_WITHIN_S, "no answer"
        while time.monotonic() < deadline:
            self.reap(block=False)
            try:
                last = attempt()
                if last is None:
                    return
            except (OSError, http.client.HTTPException) as error:
                last = str(error) or type(error).__name__
            time.sleep(0.1)
        raise Failure(f"{what} was not ready within {READY_WITHIN_S} s: {last}; logs are in {self.plan.folder}/log")

    def wait_for(self, what: str, path: str, good):
        def attempt():
            status, body = self.call("GET", path, timeout=10)
            return None if status == 200 and good(body) else f"{status} {body[-300:]!r}"

        self.until(what, attempt)

    def make(self, what: str, path: str, document):
        """Makes an object. Whose answer was lost is there already, and a server without time is asked again."""
        def attempt():
            status, body = self.call("POST", path, document)
            if status in (201, 409):
                return None
            # What it lies in may be made in a moment (404).
            if status < 500 and status not in (404, 429):
                raise Failure(f"{what} was refused: {status} {body!r}")
            return f"{status} {body[-300:]!r}"

        self.until(what, attempt)

    def wait_for_etcd(self):
        """The API server gives up soon when nobody serves. Whoever answers serves, whatever the answer is."""
        def attempt():
            with socket.socket(socket.AF_UNIX) as it:
                it.settimeout(10)
                it.connect(self.plan.file("etcd.sock"))
                it.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                it.recv(1)

        self.until("etcd", attempt)

    def prepare_mounts(self):
        checked(LIBC.mount(b"none", b"/", None, 0x4000 | 0x80000, None), "making mounts slaves of the machine's")  # MS_REC | MS_SLAVE
        checked(LIBC.mount(b"none", b"/", None, 0x4000 | 0x100000, None), "sharing mounts among pods")  # MS_REC | MS_SHARED
        command("mount", "-t", "proc", "proc", "/proc")
        if not self.plan.node:
            return
        # What the node's programs write below these stays theirs; nothing lands in the machine's own folders.
        command("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
        for name in ("var/lib", "var/log", "etc/containerd"):
            own = self.plan.folder / "host" / name
            own.mkdir(parents=True)
            command("mount", "--bind", str(own), f"/{name}")
        for name in ("/run/netns", "/run/lock", "/etc/containerd/certs.d"):
            os.makedirs(name)
        shutil.copy(self.plan.file("containerd.toml"), "/etc/containerd/config.toml")

    def prepare_node(self):
        for name in ("ipv4/ip_forward", "ipv4/conf/all/route_localnet", "bridge/bridge-nf-call-iptables"):
            try:
                Path(f"/proc/sys/net/{name}").write_text("1")
            except FileNotFoundError:
                pass  # no br_netfilter in this kernel
        self.start("containerd", parts.worker(self.plan)["containerd"])
        deadline = time.monotonic() + READY_WITHIN_S
        for name in ("pause", "busybox", *(["metrics-server"] if self.options.metrics else [])):
            load = ["ctr", "-n", "k8s.io", "images", "import", self.plan.file(f"{name}.tar")]
            while (done := subprocess.run(load, capture_output=True, text=True)).returncode != 0:
                if time.monotonic() > deadline:
                    raise Failure(f"{' '.join(load)}: {done.stderr}; {self.plan.folder}/log/containerd.log says more")
                time.sleep(0.1)

    def run(self, report):
        self.prepare_mounts()
        control = parts.control_plane(self.plan)
        self.start("etcd", control.pop("etcd"))
        self.wait_for_etcd()
        self.start("apiserver", control.pop("apiserver"))
        if self.plan.node:
            self.prepare_node()
        self.wait_for("the API server", "/readyz", lambda _: True)
        for name, words in control.items():
            self.start(name, words)
        kubetest, admin = str(self.plan.binary), self.plan.file("kubeconfig")
        self.start("storage", [kubetest, "storage", admin, self.plan.file("volumes")])
        for number in range(1, self.options.fake_nodes + 1):
            # It answers where the API server does, so that one's certificate is good for it.
            door = [self.plan.address, self.plan.pki("apiserver.crt"), self.plan.pki("apiserver.key")]
            self.start(f"fake-{number}", [kubetest, "fake-node", admin, f"fake-{number}", *door])
        if self.plan.node:
            for name in ("kubelet", "proxy", "dns"):
                self.start(name, parts.worker(self.plan)[name])
        self.wait_for("the default service account", "/api/v1/namespaces/default/serviceaccounts/default", lambda _: True)
        if self.plan.node:
            for path, document in parts.dns_objects(self.plan):
                self.make("the address of the cluster's DNS", path, document)
        for plural, definition in self.options.definitions.items():
            self.make(f"the Gateway API's definition of {plural}", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions", definition)
        for plural in self.options.definitions:
            self.wait_for(plural, f"/apis/gateway.networking.k8s.io/v1/{plural}", lambda _: True)
        names = [f"fake-{it}" for it in range(1, self.options.fake_nodes + 1)] + ([self.plan.node] if self.plan.node else [])
        for name in names:
            self.wait_for(f"node {name}", f"/api/v1/nodes/{name}", node_is_ready)
        if self.options.metrics:
            for path, document in metrics.objects():
                self.make(f"{document['kind']} {document['metadata']['name']} of metrics-server", path, document)
            self.wait_for("figures of the node", "/apis/metrics.k8s.io/v1beta1/nodes", lambda body: json.loads(body)["items"])
        report("ready")
        self.reap(block=True)


def node_is_ready(body: bytes) -> bool:
    node = json.loads(body)
    conditions = {it["type"]: it["status"] for it in node.get("status", {}).get("conditions", [])}
    return conditions.get("Ready") == "True" and not node["spec"].get("taints")


def supervise(plan: parts.Plan, options, network: int | None, report_to: int, keeper: tuple[int, int] | None):
    """Runs in a child of `up`; never returns."""
    report = lambda text: os.write(report_to, (text + "\n").encode())
    try:
        os.setsid()
        with open(plan.folder / "log" / "supervisor.log", "ab") as log, open(os.devnull) as nothing:
            for target, source in ((0, nothing), (1, log), (2, log)):
                os.dup2(source.fileno(), target)
        if network:
            enter_network(network)
        checked(LIBC.unshare(CLONE_NEWNS | CLONE_NEWPID), "making namespaces")
        if first := os.fork():
            report(f"pid {first}")
            os._exit(0)
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if keeper is not None:
            # `run` alone holds the other end: when it dies, even by SIGKILL, the read ends and so does the cluster.
            os.close(keeper[1])
            threading.Thread(target=lambda: (os.read(keeper[0], 1), os._exit(0)), daemon=True).start()
        Supervisor(plan, options).run(report)
    except BaseException as error:  # the last word of this process
        print(f"the cluster ends: {error}", flush=True)
        try:
            report(f"failed {error}")
        except OSError:
            pass  # nobody listens after `up` has ended
    os._exit(1)


# --- commands -------------------------------------------------------------------------------------------------------------------------

def started_at(pid: int) -> str | None:
    """When a process that lives started, in clock ticks: with its pid it names a process for good."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        return None


def up(options, keeper=None) -> Path:
    require(options.node)
    if options.metrics and not options.node:
        raise Failure("--metrics measures a real node: add --node")
    another = options.kubernetes if options.kubernetes not in (None, "", VERSION) else None
    if another and older.minor(another) < older.OLDEST_WITH_NODE and options.node:
        raise Failure(f"a real node needs Kubernetes 1.{older.OLDEST_WITH_NODE} or newer, not {another}: leave --node out")
    sweep()
    tools, measurer = programs(), metrics_server() if options.metrics else None
    kubernetes = parts_of(another) if another else None
    options.definitions = gateway_api.definitions() if options.gateway_api else {}
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=options.folder))
    network = None
    try:
        network = make_network(options.internet) if options.node else None
        (folder / "log").mkdir()
        (folder / "home").mkdir()
        (folder / "cni").mkdir()
        address = f"10.250.{network}.2" if network else "127.0.0.1"
        # Both this socket and the API server's say SO_REUSEPORT, so that no other program gets the port between now and then.
        reserved = socket.socket()
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if not network:
            reserved.bind((address, 0))
        port = 6443 if network else reserved.getsockname()[1]
        plan = parts.Plan(
            folder, tools / "kubetest", address, port, f"10.251.{network}.0/24", "node-1" if network else None, options.fake_nodes, not options.no_workloads,
            kubernetes)
        state = {"network": network, "cgroup": folder.name if network else None}
        certificates.make(folder / "pki", address, plan.node)
        for name in ("admin", "controller-manager", "scheduler") + (("kubelet", "proxy") if network else ()):
            target = folder / ("kubeconfig" if name == "admin" else f"{name}.kubeconfig")
            certificates.kubeconfig(folder / "pki", name, plan.server, target)
        resolver = Path("/etc/resolv.conf").read_text() if options.internet else ""
        for name, text in parts.files(plan, f"/{folder.name}", PAUSE, resolver).items():
            (folder / name).write_text(text)
        if network:
            image_tar(folder / "pause.tar", PAUSE, {"pause": tools / "pause"}, ["/pause"])
            image_tar(folder / "busybox.tar", BUSYBOX, {"bin/busybox": Path("/bin/busybox")}, ["/bin/sh"], busybox=True)
            if measurer:
                image_tar(folder / "metrics-server.tar", metrics.IMAGE, {"metrics-server": measurer}, ["/metrics-server"])
            for it in cgroup_folders(folder.name):
                it.mkdir()
        read, write = os.pipe()
        sys.stdout.flush()
        if (child := os.fork()) == 0:
            os.close(read)
            supervise(plan, options, network, write, keeper)
        os.close(write)
        reserved.close()
        with open(read) as lines:
            os.waitpid(child, 0)
            for line in lines:
                word, _, rest = line.rstrip("\n").partition(" ")
                if word == "pid":
                    state |= {"pid": int(rest), "started_at": started_at(int(rest))}
                    # Whole or not at all: other clusters look at it.
                    (folder / "state.new").write_text(json.dumps(state))
                    os.replace(folder / "state.new", folder / "state.json")
                elif word == "ready":
                    return folder / "kubeconfig"
                elif word == "failed":
                    raise Failure(rest + "".join("\n" + it.rstrip("\n") for it in lines))
        raise Failure(f"the cluster's first process ended without a word: see {folder}/log/supervisor.log")
    except BaseException:
        if (folder / "state.json").exists():
            end(folder, keep_folder=True)
        elif network:
            remove_network(network)
            remove_cgroups(folder.name, time.monotonic() + 120)
        print(f"logs are kept in {folder}/log", file=sys.stderr)
        raise


def state_of(kubeconfig: str) -> tuple[Path, dict]:
    folder = Path(kubeconfig)
    folder = folder.parent if folder.is_file() else folder
    if not (folder / "state.json").exists():
        raise Failure(f"{kubeconfig} is not of a cluster that `cluster.py up` made")
    return folder, json.loads((folder / "state.json").read_text())


def end(folder: Path, keep_folder=False, state=None):
    state = state or state_of(str(folder))[1]
    lives = lambda: state["started_at"] is not None and started_at(state["pid"]) == state["started_at"]
    for number, patience_s in ((signal.SIGTERM, 10), (signal.SIGKILL, 120)):
        patience = time.monotonic() + patience_s
        while lives() and time.monotonic() < patience:
            try:
                os.kill(state["pid"], number)
            except ProcessLookupError:
                break
            time.sleep(0.05)
    if lives():
        raise Failure(f"the cluster in {folder} does not end: its first process is {state['pid']}")
    if state["cgroup"]:
        remove_cgroups(state["cgroup"], time.monotonic() + 120)
    if state["network"]:
        remove_network(state["network"])
    if keep_folder:
        (folder / "state.json").unlink(missing_ok=True)
    else:
        remove_folder(folder)


def remove_folder(folder: Path):
    """Removes it, also while somebody else removes it as well."""
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except FileNotFoundError:
            pass


def sweep():
    """Removes what clusters left whose first process is gone, as after a power failure."""
    for it in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/state.json"):
        try:
            state = json.loads(it.read_text())
        except FileNotFoundError:
            continue  # whoever ended it removes it just now
        if started_at(state["pid"]) != state["started_at"]:
            end(it.parent, state=state)


def run(options, words) -> int:
    path = os.environ.get("PATH", os.defpath)
    if options.kubectl:
        path = f"{kubectl()}:{path}"
    keeper = os.pipe()
    kubeconfig = up(options, keeper)
    os.close(keeper[0])
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, lambda number, _: sys.exit(128 + number))
        environment = {**os.environ, "PATH": path, "KUBECONFIG": str(kubeconfig), "ARCO_TEST_KUBECONFIG": str(kubeconfig)}
        return subprocess.run(words, env=environment).returncode
    finally:
        end(kubeconfig.parent)


def enter(kubeconfig: str, words: list[str], **options) -> int:
    _, state = state_of(kubeconfig)
    return subprocess.run(["nsenter", "-t", str(state["pid"]), "-m", "-n", "-p", "--", *words], **options).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("up", "run"):
        it = commands.add_parser(name)
        it.add_argument("--node", action="store_true", help="a real node: kubelet, containerd, runc, kube-proxy")
        it.add_argument("--fake-nodes", type=int, default=0, metavar="N", help="nodes that only say that their pods run")
        it.add_argument("--internet", action="store_true", help="pods of the real node reach outside through this machine")
        it.add_argument("--metrics", action="store_true", help="the metrics API, by metrics-server on the real node")
        it.add_argument("--gateway-api", action="store_true", help="the definitions of the Gateway API")
        it.add_argument("--kubernetes", default=os.environ.get("ARCO_TEST_KUBERNETES"), metavar="VERSION", help=f"instead of {VERSION}: 1.{older.OLDEST} or newer")
        it.add_argument("--no-workloads", action="store_true", help="nobody makes pods of Deployments: what a client alone takes can be measured")
        it.add_argument("--folder", default=tempfile.gettempdir(), help="where the cluster's own folder is made")
        if name == "run":
            it.add_argument("--kubectl", action="store_true", help="COMMAND finds kubectl of the cluster's version in PATH (built the first time)")
            it.add_argument("words", nargs="+", metavar="COMMAND")
    commands.add_parser("down").add_argument("kubeconfig")
    for name, rest in (("load", "images"), ("enter", "words")):
        it = commands.add_parser(name)
        it.add_argument("kubeconfig")
        it.add_argument(rest, nargs="+")
    commands.add_parser("binary")
    commands.add_parser("kubectl")
    options = parser.parse_args()
    try:
        if options.command == "up":
            print(up(options))
        elif options.command == "down":
            end(state_of(options.kubeconfig)[0])
        elif options.command == "run":
            return run(options, options.words)
        elif options.command == "load":
            for it in options.images:
                with open(it, "rb") as tar:
                    if enter(options.kubeconfig, ["ctr", "-n", "k8s.io", "images", "import", "-"], stdin=tar):
                        return 1
        elif options.command == "enter":
            return enter(options.kubeconfig, options.words)
        elif options.command == "kubectl":
            print(kubectl() / "kubectl")
        else:
            print(programs())
        return 0
    except (Failure, gateway_api.Failure, subprocess.CalledProcessError, OSError, ValueError) as error:
        print(f"cluster.py: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
