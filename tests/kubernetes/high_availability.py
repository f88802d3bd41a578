#!/usr/bin/env python3
"""The installation with pods for each role, on a real node, as docs/guides/cluster.md says it: what is killed and deleted costs nothing.

  cluster.py run --node --kubectl -- high_availability.py ARCO

Etcd, PostgreSQL and an S3 server run on this machine, where pods reach them. While an application is asked without a pause and others are
deployed and scaled, the leading controller is killed and a pod of each role deleted. What must hold: no request is lost, every operation
succeeds, no component is made twice, another controller leads within its lease and a second, and the uninstallation leaves nothing.
Volumes are made by the controller that leads: what is in them outlives instances and leaders, and goes with its component.
"""

import contextlib
import datetime
import http.client
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from builds import HERE, HOST, KUBECONFIG, NAMESPACE, done, free_port, kubectl, say, tell, until
from images import image_tar
from load import Load
from stores import PASSWORD, Stores

LEASE_S = 10
LONG = "long " + "1234567890" * 4000


def flags(stores):
    return ["--metadata", stores.metadata, "--coordination", stores.coordination, "--blobs", stores.blobs,
            "--store-secret", "arco-stores", "--credentials", "metadata-password,secret.key,blobs-credentials"]


def credentials(work):
    (work / "metadata-password").write_text(PASSWORD)
    (work / "secret.key").write_text(f"k1 {secrets.token_hex(32)}\n")
    (work / "blobs-credentials").write_text("[default]\naws_access_key_id = testing\naws_secret_access_key = testing\n")
    files = [f"--from-file={work / it}" for it in ("metadata-password", "secret.key", "blobs-credentials")]
    kubectl("-n", NAMESPACE, "create", "secret", "generic", "arco-stores", *files)


class Forward:
    """`kubectl port-forward` to a service, begun again when its pod is gone."""

    def __init__(self, service, port):
        self.local = free_port()
        self.words, self.process = ["kubectl", "-n", NAMESPACE, "port-forward", f"service/{service}", f"{self.local}:{port}"], None

    def open(self):
        if self.process is None or self.process.poll() is not None or not self.answers():
            self.end()
            self.process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *self.words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            until(f"{self.words[-2]} is forwarded", self.answers, 300)

    def answers(self):
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.local), 1).close()
            return True

    def end(self):
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None


class Platform:
    """The command line, through whichever API pod is there."""

    def __init__(self, arco, work):
        self.program, self.context, self.api = arco, work / "context.toml", Forward("arco-api", 8443)

    def arco(self, *words):
        """Its document; asked again when nobody answered, as a person would."""
        for _ in range(60):
            self.api.open()
            environment = {**os.environ, "ARCO_CONTEXT": str(self.context)}
            made = subprocess.run([self.program, *map(str, words), "-o", "json"], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)
            if made.returncode == 0:
                return json.loads(made.stdout or "null")
            # 3: nobody answered. A forward whose pod has just ended says so, too.
            if made.returncode != 3:
                raise SystemExit(f"arco {' '.join(map(str, words))}: exit {made.returncode}\n{made.stdout}{made.stderr}")
            self.api.end()
            time.sleep(1)
        raise SystemExit(f"arco {' '.join(map(str, words))}: nobody answers\n{made.stderr}")

    def begun(self, *words):
        found = self.arco(*words, "--detach")
        return found.get("operation") or found["id"]

    def ended(self, operations):
        def all_ended():
            found = {it["id"]: it for it in self.arco("operations")["items"]}
            return [found[it] for it in operations] if all(found[it]["status"] in ("succeeded", "failed", "cancelled") for it in operations) else None
        for it in until("operations end", all_ended, 900):
            if it["status"] != "succeeded":
                raise SystemExit(f"an operation did not succeed: {it}")


def pods(part, namespace=NAMESPACE):
    found = json.loads(kubectl("-n", namespace, "get", "pods", "-l", f"app.kubernetes.io/component={part}", "-o", "json"))["items"]
    return [it for it in found if "deletionTimestamp" not in it["metadata"]]


def leader():
    """The pod whose controller leads, by its own word."""
    for it in pods("controller"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            with contextlib.closing(http.client.HTTPConnection(it["status"]["podIP"], 7070, timeout=2)) as c:
                c.request("GET", "/healthz")
                role = json.loads(c.getresponse().read())["roles"]["controller"]
            if role["ready"] and not role.get("detail"):
                return it
    return None


def lease():
    """The process that leads, and since when."""
    spec = json.loads(kubectl("-n", NAMESPACE, "get", "lease", "arco-controller", "-o", "json"))["spec"]
    return spec.get("holderIdentity"), datetime.datetime.fromisoformat(spec["acquireTime"]).timestamp()


def process_of(pod):
    """The platform's process of a pod, on this machine."""
    mark = f"HOSTNAME={pod['metadata']['name']}".encode()
    for it in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (it / "cmdline").read_bytes().split(b"\0")
            if words[0].endswith(b"/arco") and words[1] in (b"server", b"cluster") and mark in (it / "environ").read_bytes().split(b"\0"):
                return int(it.name)
    raise SystemExit(f"no process of {pod['metadata']['name']}")


PARTS = {"api": "deployment/arco-api", "builder": "deployment/arco-builder", "controller": "deployment/arco-controller",
         "eventlog": "statefulset/arco-eventlog", "gateway": "deployment/arco-gateway"}


def ready():
    for it in PARTS.values():
        kubectl("-n", NAMESPACE, "rollout", "status", it, "--timeout=600s")


def install(arco, work, stores):
    done(arco, "cluster", "image", "save", work / "arco.tar")
    done(HERE / "cluster.py", "load", KUBECONFIG, work / "arco.tar")
    (work / "arco.tar").unlink()
    say("the platform's image is on the node")
    kubectl("create", "namespace", NAMESPACE)
    credentials(work)
    manifest = done(arco, "cluster", "manifest", "--domain", "apps.test", "--gateway", "node-port", "--trust-registry", "--no-user-namespaces",
                    "--high-availability", "--node-logs", "--local-storage", "--volume-gb", "1", *flags(stores))
    (work / "arco.yaml").write_text(manifest)
    kubectl("apply", "--server-side", "-f", work / "arco.yaml")
    ready()
    kubectl("-n", f"{NAMESPACE}-nodes", "rollout", "status", "daemonset/arco-trust-registry", "--timeout=600s")
    kubectl("-n", f"{NAMESPACE}-nodes", "rollout", "status", "daemonset/arco-node-logs", "--timeout=600s")
    say("two pods of each role are ready, and the node has its own")


def access(platform):
    text = kubectl("-n", NAMESPACE, "exec", "deployment/arco-api", "--", "/usr/bin/arco", "--context", "/var/lib/arco/admin.toml",
                   "context", "create", "--name", "me", "--role", "operator", "--file", "-", "--address", f"127.0.0.1:{platform.api.local}")
    platform.context.touch(0o600)
    platform.context.write_text(text)


def push(platform, work):
    """An image whose program answers and writes lines: to standard error, longer than a runtime's, and numbered ones."""
    (work / "index.html").write_text("<h1>shared</h1>\n")
    (work / "serve").write_text(f"#!/bin/sh\necho oops >&2\necho {LONG}\n(n=0; while :; do echo line $n; n=$((n+1)); sleep 0.2; done) &\nexec busybox httpd -f -p 8080 -h /www\n")
    image_tar(work / "web.tar", "web:1", {"bin/busybox": Path("/bin/busybox"), "www/index.html": work / "index.html", "bin/serve": work / "serve"}, ["/bin/serve"], busybox=True)
    token = platform.arco("registry", "token", "demo/web")["token"]
    registry = Forward("arco-registry", 5000)
    registry.open()
    try:
        done("skopeo", "copy", "--quiet", "--insecure-policy", "--dest-tls-verify=false", "--dest-creds", f"t:{token}", f"docker-archive:{work}/web.tar",
             f"docker://127.0.0.1:{registry.local}/default/demo/web:1")
    finally:
        registry.end()


def truth(platform, names, replicas):
    """Every component runs as asked, was made once, and nothing else is there."""
    for name in names:
        def it_runs():
            found = platform.arco("status", f"demo/{name}")
            return found["status"] == "running" and found["ready_replicas"] == replicas == len(found["instances"])
        until(f"demo/{name} runs with {replicas}", it_runs)
        revisions = platform.arco("revisions", f"demo/{name}")
        if len(revisions.get("items", revisions)) != 1:
            raise SystemExit(f"demo/{name} was made more than once: {revisions}")
    made = json.loads(kubectl("-n", "arco-default", "get", "deployments", "-o", "json"))["items"]
    found = sorted(it["metadata"]["labels"]["arco.internal/name"] for it in made)
    if found != sorted(["web", *names]):
        raise SystemExit(f"workloads are {found}")


def lines(platform):
    """What each instance of the application wrote until now: every line is there, and once."""
    def all_is_there():
        written, last = {}, {}
        for it in platform.arco("logs", "demo/web", "--tail", "100000")["lines"]:
            if it["text"].startswith("line "):
                written.setdefault(it["instance"], []).append(int(it["text"].split()[1]))
                last[it["instance"]] = datetime.datetime.fromisoformat(it["at"]).timestamp()
        found.update(written)
        return len(written) == 2 and min(last.values()) > now and all(it == list(range(len(it))) for it in written.values())
    found, now = {}, time.time()
    try:
        until("every line of the instances is kept once", all_is_there, 600)
    except SystemExit:
        for name, it in found.items():
            gaps = [(a, b) for a, b in zip(it, it[1:]) if b != a + 1]
            print(f"  {name}: {len(it)} lines from {it[0]}, breaks {gaps[:5]}")
        raise
    say(f"{sum(map(len, found.values()))} lines of {len(found)} instances are kept, each once")


def forms(platform):
    """Lines longer than those of the runtime's files come whole, in pieces, and standard error is told from output."""
    kept = platform.arco("logs", "demo/web", "--tail", "100000")["lines"]
    for instance in {it["instance"] for it in kept}:
        own = [it for it in kept if it["instance"] == instance]
        errors = [it["text"] for it in own if it["origin"] == "stderr"]
        long = [it["text"] for it in own if it["text"].startswith("long ") or len(it["text"]) > 1000]
        if errors != ["oops"] or "".join(long) != LONG:
            raise SystemExit(f"{instance} wrote {errors} to standard error, and a line of {list(map(len, long))}")


def forwarded(platform):
    """A port of an instance through API and cluster."""
    platform.api.open()
    words = [platform.program, "port-forward", "demo/web", ":8080", "-o", "json"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env={**os.environ, "ARCO_CONTEXT": str(platform.context)}) as process:
        try:
            address, port = json.loads(process.stdout.readline())["forwards"][0]["local"].rsplit(":", 1)
            for _ in range(3):
                with contextlib.closing(http.client.HTTPConnection(address, int(port), timeout=30)) as c:
                    c.request("GET", "/", headers={"Connection": "close"})
                    answer = c.getresponse()
                    if (body := answer.read()) != b"<h1>shared</h1>\n" or answer.status != 200:
                        raise SystemExit(f"a forwarded port answered {answer.status} {body!r}")
        finally:
            process.terminate()
    say("a port of an instance was forwarded")


def deploy(platform, name, *more):
    return platform.begun("deploy", "image:default/demo/web:1", "--app", "demo", "--component", name, "--port", "8080", "--memory-mb", "32", *more)


VOLUME = ["--volume", "files:/data:16"]


def provided():
    """Volumes that the platform made: claim → (name, path of the folder on its node)."""
    found = json.loads(kubectl("get", "pv", "-l", "app.kubernetes.io/managed-by=arco", "-o", "json"))["items"]
    return {f"{it['spec']['claimRef']['namespace']}/{it['spec']['claimRef']['name']}": (it["metadata"]["name"], it["spec"]["local"]["path"]) for it in found}


def on_node(*words):
    return done(HERE / "cluster.py", "enter", KUBECONFIG, "--", *words)


def only_these_folders(volumes):
    """No other volume, no other folder, and no pod that works on one."""
    def as_wanted():
        folders = on_node("ls", "/var/lib/arco/volumes").split()
        work = kubectl("-n", f"{NAMESPACE}-nodes", "get", "pods", "-l", "arco.internal/role=volume-folder", "-o", "name")
        return set(provided()) == set(volumes) and sorted(folders) == sorted(name for name, _ in volumes.values()) and not work
    until(f"only volumes of {sorted(volumes)} are left", as_wanted)


def kept_in_a_volume(platform):
    """What an instance wrote is there for the next one, and goes with the component."""
    def instance():
        found = json.loads(kubectl("-n", "arco-default", "get", "pods", "-l", "arco.internal/name=keeper", "-o", "json"))["items"]
        ready = lambda it: any(c["type"] == "Ready" and c["status"] == "True" for c in it["status"].get("conditions", []))
        return [it["metadata"]["name"] for it in found if "deletionTimestamp" not in it["metadata"] and ready(it)]
    own = provided()
    if sorted(own) != [f"{NAMESPACE}/state-arco-eventlog-{it}" for it in range(2)]:
        raise SystemExit(f"the keepers of logs have the volumes {own}")
    platform.ended([deploy(platform, "keeper", *VOLUME)])
    [first] = until("an instance has its volume", instance)
    kubectl("-n", "arco-default", "exec", first, "--", "sh", "-c", "echo kept >/data/file")
    kubectl("-n", "arco-default", "delete", "pod", first, "--wait=true")
    [second] = until("another instance has it", instance)
    _, folder = next(it for claim, it in provided().items() if claim.startswith("arco-default/files-"))
    said = kubectl("-n", "arco-default", "exec", second, "--", "cat", "/data/file"), on_node("cat", f"{folder}/file")
    if second == first or said != ("kept\n", "kept\n") or on_node("stat", "-c", "%a", "/var/lib/arco/volumes").strip() != "700":
        raise SystemExit(f"after {first} came {second}, in {folder} is {said}")
    platform.arco("delete", "demo/keeper", "--yes")
    only_these_folders(own)
    say("content of a volume outlived its instance and went with its component")
    return own


def refused_unconfined(platform, work):
    """Pods have no user namespace here, and nobody allowed builds to be root of the node: none of a step's pods is made."""
    folder = work / "unconfined"
    folder.mkdir()
    (folder / "Dockerfile").write_text("FROM debian:12\nRUN id\n")
    operation = platform.begun("deploy", folder, "--app", "unconfined", "--component", "web")

    def ended():
        [found] = [it for it in platform.arco("operations")["items"] if it["id"] == operation]
        return found if found["status"] in ("succeeded", "failed", "cancelled") else None
    problem = until("the build is refused", ended, 300).get("problem") or {}
    if problem.get("code") != "build_unconfined" or "line 2" not in problem["message"] or "builder.without_user_namespace" not in problem["advice"]:
        raise SystemExit(f"a build as root of the node: {problem}")
    platform.arco("delete", "unconfined", "--yes")
    say(f"a build as root of the node is refused: {problem['message']}")


def main():
    arco = str(Path(sys.argv[1]).resolve())
    work = Path(tempfile.mkdtemp(prefix="arco-ha-"))
    stores = platform = None
    try:
        stores = Stores(work, HOST, s3=True)
        say("etcd, PostgreSQL and S3 answer")
        install(arco, work, stores)
        platform = Platform(arco, work)
        access(platform)
        refused_unconfined(platform, work)
        push(platform, work)
        platform.ended([deploy(platform, "web")])
        platform.ended([platform.begun("scale", "demo/web", "--replicas", "2")])
        service = json.loads(kubectl("-n", NAMESPACE, "get", "service", "arco-gateway", "-o", "json"))
        port = next(it["nodePort"] for it in service["spec"]["ports"] if it["name"] == "http")
        load = Load(port, "web-demo.apps.test")
        say("an image is deployed, and its two instances answer through the gateways")

        own = kept_in_a_volume(platform)
        names = [f"c{it}" for it in range(3)]
        operations = [deploy(platform, it, *VOLUME) for it in names]
        old = until("one controller leads", leader)
        before, _ = lease()
        killed = time.time()
        os.kill(process_of(old), 9)
        until("another controller leads", lambda: lease()[0] not in ("", before), 300)
        took = lease()[1] - killed
        platform.ended(operations)
        truth(platform, names, 1)
        load.check(f"the leading controller was killed, another one led after {took:.1f} s (lease {LEASE_S} s)")
        if took > LEASE_S + 1:
            raise SystemExit(f"another controller led only after {took:.1f} s")

        lines(platform)
        forms(platform)
        forwarded(platform)

        replicas = 1
        for part in PARTS:
            replicas = 3 - replicas
            operations = [platform.begun("scale", f"demo/{it}", "--replicas", replicas) for it in names]
            gone = until("one controller leads", leader) if part == "controller" else until(f"a pod of {part} is there", lambda: pods(part))[0]
            kubectl("-n", NAMESPACE, "delete", "pod", gone["metadata"]["name"], "--wait=true")
            ready()
            platform.ended(operations)
            truth(platform, names, replicas)
            load.check(f"a pod of {part} was deleted while components were scaled")

        kubectl("-n", f"{NAMESPACE}-nodes", "delete", "pod", "-l", "app.kubernetes.io/component=node-logs", "--wait=true")
        lines(platform)
        killed = [*pods("eventlog")[:1], *pods("api")[:1], *pods("node-logs", f"{NAMESPACE}-nodes")]
        for pod in killed:
            os.kill(process_of(pod), 9)
        ready()
        lines(platform)
        load.check(f"a keeper of logs, an API and the reader of the node were killed ({len(killed)} processes)")

        operations = [platform.begun("restart", f"demo/{it}") for it in names]
        kubectl("-n", NAMESPACE, "rollout", "restart", *PARTS.values())
        ready()
        platform.ended(operations)
        truth(platform, names, replicas)
        load.check("the pods of all parts were replaced at once")
        load.end()
        lines(platform)

        platform.arco("delete", "demo", "--yes")
        only_these_folders(own)
        kubectl("delete", "-f", work / "arco.yaml")
        kubectl("delete", "pv", *(name for name, _ in own.values()))  # as the guide says: nobody is left who could
        left = json.loads(kubectl("get", "namespaces,clusterroles,clusterrolebindings", "-o", "json"))["items"]
        left = [it["metadata"]["name"] for it in left if it["metadata"]["name"].startswith(NAMESPACE)]
        components = kubectl("-n", "arco-default", "get", "deployments,services,secrets,pods", "-l", "arco.internal/component", "-o", "name")
        if left or components:
            raise SystemExit(f"left after the uninstallation: {left} {components}")
        say("the uninstallation left nothing")
    except BaseException:
        tell(*(["-n", NAMESPACE, "logs", "-l", f"app.kubernetes.io/component={it}", "--prefix", "--tail", "30"] for it in PARTS))
        raise
    finally:
        if platform:
            platform.api.end()
        if stores:
            stores.end()
        shutil.rmtree(work, ignore_errors=True)


main()
