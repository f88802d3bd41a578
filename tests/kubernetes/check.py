#!/usr/bin/env python3
"""Checks the test cluster itself: a real node runs, serves, resolves, keeps, ends for memory; and nothing is left of it, also after SIGKILL."""

import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from base64 import b64decode
from pathlib import Path

HERE = Path(__file__).resolve().parent
CLUSTER = str(HERE / "cluster.py")
BUSYBOX = "kubetest.local/busybox:1"
DEADLINE_S = 300


class Api:
    """The API server, by a kubeconfig of cluster.py (which is JSON)."""

    def __init__(self, kubeconfig: str):
        config = json.loads(Path(kubeconfig).read_text())
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.address = cluster["server"].removeprefix("https://")
        self.context = ssl.create_default_context(cadata=b64decode(cluster["certificate-authority-data"]).decode())
        with tempfile.NamedTemporaryFile() as pair:
            pair.write(b64decode(user["client-certificate-data"]) + b64decode(user["client-key-data"]))
            pair.flush()
            self.context.load_cert_chain(pair.name)

    def call(self, method, path, document=None):
        connection = http.client.HTTPSConnection(self.address, context=self.context, timeout=60)
        connection.request(method, path, document and json.dumps(document), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status < 300, f"{method} {path}: {answer.status} {body.decode()}"
        return json.loads(body) if body[:1] == b"{" else body.decode()

    def pod(self, name, script, volumes=(), **container):
        spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "nodeName": "node-1" if not volumes else None,
                "nodeSelector": {"kubernetes.io/hostname": "node-1"}, "volumes": list(volumes),
                "containers": [{"name": "c", "image": BUSYBOX, "command": ["sh", "-c", script], **container}]}
        document = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"name": name}},
                    "spec": {key: it for key, it in spec.items() if it is not None}}
        self.call("POST", "/api/v1/namespaces/default/pods", document)

    def until(self, path, good, what):
        return until(lambda: (lambda it: good(it) and it)(self.call("GET", path)), what)


def until(condition, what):
    end = time.monotonic() + DEADLINE_S
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(f"not within {DEADLINE_S} s: {what}")


def page(address, port):
    try:
        connection = http.client.HTTPConnection(address, port, timeout=2)
        connection.request("GET", "/")
        return connection.getresponse().read().decode()
    except OSError:
        return ""


def pods(api: Api):
    of = lambda name: f"/api/v1/namespaces/default/pods/{name}"
    api.call("POST", "/api/v1/namespaces/default/persistentvolumeclaims", {
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}})
    api.pod("web", "echo begun; echo served > /data/index.html; exec httpd -f -p 8080 -h /data",
            volumes=[{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}], volumeMounts=[{"name": "data", "mountPath": "/data"}],
            securityContext={"runAsUser": 1000, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}})
    api.pod("glutton", "a=x; while true; do a=$a$a; done", resources={"limits": {"memory": "32Mi"}})
    api.call("POST", "/api/v1/namespaces/default/services", {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"type": "NodePort", "selector": {"name": "web"}, "ports": [{"port": 80, "targetPort": 8080}]}})
    web = api.until(of("web"), lambda it: it["status"].get("podIP") and it["status"]["phase"] == "Running", "the pod runs")
    until(lambda: page(web["status"]["podIP"], 8080) == "served\n", "the pod answers this machine")
    service = api.call("GET", "/api/v1/namespaces/default/services/web")
    until(lambda: page(web["status"]["hostIP"], service["spec"]["ports"][0]["nodePort"]) == "served\n", "the node port answers")
    assert api.call("GET", of("web") + "/log") == "begun\n"
    # The cluster's DNS is asked from a pod, over TCP: the answer to one query (web.default.svc.cluster.local, A) ends with the service's address.
    octal = lambda octets: "".join(f"\\{it:03o}" for it in octets)
    name = b"".join(bytes([len(it)]) + it.encode() for it in "web default svc cluster local".split()) + b"\0"
    query = b"\0\1\1\0\0\1\0\0\0\0\0\0" + name + b"\0\1\0\1"
    address = bytes(int(it) for it in service["spec"]["clusterIP"].split("."))
    api.pod("asker", f"printf '{octal(bytes([0, len(query)]) + query)}' | timeout 5 nc 10.96.0.10 53 > /tmp/answer; printf '{octal(address)}' > /tmp/wanted; "
            "[ $(tail -c 4 /tmp/answer | md5sum | cut -c1-32) = $(md5sum < /tmp/wanted | cut -c1-32) ]")
    ended = lambda it: it["status"]["phase"] in ("Succeeded", "Failed")
    assert api.until(of("asker"), ended, "the asker ends")["status"]["phase"] == "Succeeded", "the cluster's DNS does not know the service"
    glutton = api.until(of("glutton"), ended, "the glutton ends")
    assert glutton["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "OOMKilled", glutton["status"]


def left() -> set[str]:
    """What clusters leave where they are not ended well: links, namespaces, control groups, processes, folders."""
    links = {it for it in os.listdir("/sys/class/net") if it.startswith("kt") and it.endswith("h")}
    spaces = {str(it) for it in Path("/run/netns").glob("kubetest-*")}
    groups = {str(it) for it in Path("/sys/fs/cgroup").glob("**/kubetest-*")}
    folders = {str(it) for it in Path(tempfile.gettempdir()).glob("kubetest-*/state.json")}
    mounts = {it.split()[1] for it in Path("/proc/mounts").read_text().splitlines() if "/kubetest-" in it}
    return links | spaces | groups | folders | mounts


def processes(kubeconfig: str) -> list[str]:
    """Processes whose command line names the cluster's folder."""
    folder = str(Path(kubeconfig).parent).encode() + b"/"
    found = []
    for it in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if folder in it.read_bytes():
                found.append(it.parent.name)
        except OSError:
            pass  # it ended meanwhile
    return found


def main():
    before = left()
    kubeconfig = subprocess.run([CLUSTER, "up", "--node"], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    try:
        assert processes(kubeconfig), "a check that finds nothing while the cluster runs proves nothing"
        pods(Api(kubeconfig))
    finally:
        subprocess.run([CLUSTER, "down", kubeconfig], check=True)
    assert left() <= before and not processes(kubeconfig), (left() - before, processes(kubeconfig))
    print("ok: a real node runs pods, and leaves nothing")

    # SIGKILL of `run`: the cluster ends by itself, and the next start sweeps what is left.
    run = subprocess.Popen([CLUSTER, "run", "--", "sh", "-c", "echo $KUBECONFIG; exec sleep 600"], stdout=subprocess.PIPE, text=True)
    kubeconfig = run.stdout.readline().strip()
    assert processes(kubeconfig)
    child = int(Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text())
    run.send_signal(signal.SIGKILL)
    run.wait()
    os.kill(child, signal.SIGKILL)
    first = json.loads((Path(kubeconfig).parent / "state.json").read_text())["pid"]
    until(lambda: not processes(kubeconfig) and not Path(f"/proc/{first}").exists(), "the cluster ends with the command that started it")
    subprocess.run([CLUSTER, "run", "--", "true"], check=True)
    assert left() <= before, left() - before
    print("ok: nothing outlives the command that started it")


if __name__ == "__main__":
    sys.exit(main())
