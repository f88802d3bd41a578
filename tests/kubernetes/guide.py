#!/usr/bin/env python3
"""docs/guides/cluster.md, followed word by word: each command of its blocks marked `sh` runs as it is written, in its order, in one shell.

  cluster.py run --node --internet --kubectl -- guide.py ARCO

A server of one machine is the registry that the guide calls registry.example.com. What a reader has to put in the place of something is in
`placeholders`, all of it. What must hold: each command succeeds; nodes pull the platform's image, and one that is not there is refused; containerd is seen
to read the registry's `hosts.toml`; why a server does not start is seen at its pod; what is deployed answers, and runs on through the upgrade; the
uninstallation leaves nothing.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path

from builds import HERE, KUBECONFIG, NAMESPACE, NODE, ROOT, answers, free_port, gateway_ports, kubectl, say, trial, until
from images import image_tar
from moving import Machine

GUIDE = ROOT / "docs/guides/cluster.md"
HOST = f"{NODE.rsplit('.', 1)[0]}.1"
HOSTS = KUBECONFIG.parent / "host/etc/containerd/certs.d"
IMAGE = "default/platform/arco"
# The longest are a build with its stacks, and the deletion of namespaces.
ENDS_WITHIN_S = 1200


def commands():
    """Commands of the guide with their lines."""
    found, inside = [], False
    for number, line in enumerate(GUIDE.read_text().splitlines(), 1):
        if line.startswith("```"):
            inside = not inside and line == "```sh"
        elif inside and found and found[-1][1].endswith("\\"):
            found[-1] = (found[-1][0], f"{found[-1][1]}\n{line}")
        elif inside:
            found.append((number, line))
    return found


def placeholders(registry, api, own):
    """What the guide says → what it means here: addresses, ports that are free, and what its lists of flags say about such a cluster."""
    return {
        "registry.example.com/platform/arco:": f"127.0.0.1:{registry}/{IMAGE}:",
        "arco doctor --cluster": "arco doctor --cluster --config doctor.toml",
        " --trust-registry >": " --trust-registry --no-user-namespaces --gateway node-port --volume-gb 5 --settings settings.toml >",
        "127.0.0.1:18443": f"127.0.0.1:{api}",
        " 18443:8443": f" {api}:8443",
        " 15000:5000": f" {own}:5000",
        "127.0.0.1:15000": f"127.0.0.1:{own}",
        "skopeo copy ": "skopeo copy --insecure-policy ",
    }


class Shell:
    """One shell that keeps its variables and what it runs behind it."""

    def __init__(self, folder, environment):
        self.folder, self.count, self.forwards = folder, 0, {}
        self.bash = subprocess.Popen(["setpriv", "--pdeathsig", "TERM", "--", "bash", "--norc"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                     cwd=folder, env=environment, start_new_session=True)

    def run(self, command):
        """Its exit status and what it said."""
        forwarded = re.search(r"port-forward (\S+) .*&$", command)
        if forwarded and (earlier := self.forwards.pop(forwarded[1], None)):
            self.tell(f"kill {earlier}; wait {earlier}")  # it may have ended with its pod
        status, pid, said = self.tell(command)
        if forwarded:
            self.forwards[forwarded[1]] = pid
            until(f"`{command}` forwards", lambda: "Forwarding from" in said.read_text(), 300)
        return status, said.read_text(errors="replace")

    def tell(self, command):
        self.count += 1
        said = self.folder / f"said-{self.count}"
        late = threading.Timer(ENDS_WITHIN_S, self.end)
        late.start()
        try:
            self.bash.stdin.write(f"{{\n{command}\n}} </dev/null >{said} 2>&1\necho $? $!\n")
            self.bash.stdin.flush()
            answer = self.bash.stdout.readline().split()
        finally:
            late.cancel()
        if not answer:
            raise SystemExit(f"`{command}` did not end within {ENDS_WITHIN_S} s: {said.read_text(errors='replace')}")
        return int(answer[0]), answer[-1], said

    def end(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.bash.pid, signal.SIGKILL)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.end()
        self.bash.wait()


def registry_of_the_guide(machine, folder):
    """Its port, with a login in `token.txt`; the node finds it by the same name, with that login."""
    server = json.loads((machine.data / "server.json").read_text())
    port, token = server["registry"].rsplit(":", 1)[1], machine.good("registry", "token", IMAGE.removeprefix("default/"))["token"]
    (folder / "token.txt").write_text(token)
    place = HOSTS / f"127.0.0.1:{port}"
    place.mkdir(parents=True)
    at = f"http://{HOST}:{port}"
    (place / "hosts.toml").write_text(f'server = "{at}"\n[host."{at}"]\n  capabilities = ["pull", "resolve"]\n  [host."{at}".header]\n    Authorization = ["Bearer {token}"]\n')
    return port


def folder_of_the_reader(arco, work):
    folder = work / "guide"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/arco").symlink_to(arco)
    (folder / "examples").symlink_to(ROOT / "examples")
    # What the guide says to run on each node.
    (folder / "bin/ctr").write_text(f'#!/bin/bash\nfor word; do [ -f "$word" ] && word=$PWD/$word; words+=("$word"); done\n'
                                    f'exec {HERE}/cluster.py enter {KUBECONFIG} -- {shutil.which("ctr")} "${{words[@]}}"\n')
    (folder / "bin/ctr").chmod(0o755)
    (folder / "doctor.toml").write_text("[kubernetes]\nuser_namespaces = false\n")
    (folder / "settings.toml").write_text('[builder]\nmemory_mb = 2048\n')
    (folder / "index.html").write_text("<h1>from an image</h1>\n")
    image_tar(folder / "web.tar", "web:1", {"bin/busybox": Path("/bin/busybox"), "www/index.html": folder / "index.html"},
              ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"], busybox=True)
    return folder


def findings(arco, folder, *more):
    """Exit status and findings of `arco doctor --cluster`, by what was looked at."""
    words = [arco, "doctor", "--cluster", "--config", folder / "doctor.toml", *more, "-o", "json"]
    made = subprocess.run([str(it) for it in words], capture_output=True, text=True)
    try:
        return made.returncode, {it["check"]: it for it in json.loads(made.stdout)["findings"]}
    except ValueError:
        raise SystemExit(f"arco doctor --cluster: exit {made.returncode}\n{made.stdout}{made.stderr}") from None


def an_image_that_is_not_there_is_refused(arco, folder, registry):
    status, found = findings(arco, folder, "--image", f"127.0.0.1:{registry}/{IMAGE}:none")
    it = found["registry"]
    if status != 1 or it["level"] != "bad" or "cannot pull" not in it["found"] or not it["advice"]:
        raise SystemExit(f"an image that is not there: exit {status}, {it}")
    if left := kubectl("-n", "default", "get", "pods", "-l", "app.kubernetes.io/component=preflight", "-o", "name", "--ignore-not-found"):
        until("the pods of the preflight are gone", lambda: not kubectl("-n", "default", "get", "pods", "-l", "app.kubernetes.io/component=preflight", "-o", "name"), 300)
        say(f"{left.split()} went")
    say(f"an image that is not there: {it['found']}")


def a_server_that_is_refused_something_says_why(shell, command):
    """Without the flag that these nodes need, the reason is where the guide says; true when it was so."""
    handlers = [it["status"].get("runtimeHandlers", []) for it in json.loads(kubectl("get", "nodes", "-o", "json"))["items"]]
    if all(any(it.get("features", {}).get("userNamespaces") for it in of_node) for of_node in handlers):
        say("SKIPPED: nodes give user namespaces, so the server is refused nothing")
        return False
    for it in (command.replace(" --no-user-namespaces", "").replace(">arco.yaml", ">refused.yaml"), "kubectl apply --server-side -f refused.yaml"):
        status, output = shell.run(it)
        if status:
            raise SystemExit(f"`{it}`: exit {status}\n{output}")

    def told():
        pod = json.loads(kubectl("-n", NAMESPACE, "get", "pod", "arco-0", "-o", "json", "--ignore-not-found") or "{}")
        states = [it.get(when, {}).get("terminated", {}) for it in pod.get("status", {}).get("containerStatuses", []) for when in ("state", "lastState")]
        return next((it["message"] for it in states if "--no-user-namespaces" in it.get("message", "")), None)
    say(f"a pod's last words: {until('the pod says why it does not start', told, 300).strip()[-200:]}")
    return True


def containerd_reads_our_hosts(arco, folder):
    kubectl("-n", f"{NAMESPACE}-nodes", "rollout", "status", "daemonset/arco-trust-registry", "--timeout=600s")

    def told():
        status, found = findings(arco, folder)
        return status == 0 and found.get("trust", {}).get("level") == "good" and found["trust"]
    it = until("doctor says that containerd reads what the DaemonSet writes", told, 300)
    if "/etc/containerd/config.toml" not in it["found"]:
        raise SystemExit(f"doctor does not say where `config_path` is: {it}")
    say(it["found"])


def running():
    """Pods of components, and how often their programs began anew."""
    pods = json.loads(kubectl("-n", "arco-default", "get", "pods", "-l", "arco.internal/component", "-o", "json"))["items"]
    return {it["metadata"]["uid"]: [c["restartCount"] for c in it["status"].get("containerStatuses", [])] for it in pods if "deletionTimestamp" not in it["metadata"]}


def everything_answers():
    port = gateway_ports()["http"]
    for wanted in json.loads((ROOT / "examples/node-express/expect.json").read_text())["requests"]:
        until(f"node-express answers {wanted}", lambda: answers("node-express-demo.apps.example.com", port, wanted), 300)
    until("web answers", lambda: answers("web-demo.apps.example.com", port, {"path": "/", "contains": "from an image"}), 300)


def nothing_is_left():
    names = kubectl("get", "namespaces,clusterroles,clusterrolebindings,customresourcedefinitions", "-o", "name").split()
    left = [it for it in names if NAMESPACE in it or (it.startswith("customresourcedefinition") and it.endswith("arco.internal"))]
    left += kubectl("get", "namespaces", "-l", "app.kubernetes.io/managed-by=arco", "-o", "name").split()
    left += [str(it) for it in HOSTS.iterdir() if it.name.startswith("arco-registry.")]
    if left:
        raise SystemExit(f"left over: {left}")


def main():
    with trial("guide") as (arco, work, _), contextlib.ExitStack() as ends:
        folder = folder_of_the_reader(arco, work)
        machine = ends.enter_context(Machine(arco, work, registry="0.0.0.0:0"))
        registry, api, own = registry_of_the_guide(machine, folder), free_port(), free_port()
        logins = folder / "logins.json"
        logins.write_text("{}")
        environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "NO_COLOR": "1", "REGISTRY_AUTH_FILE": str(logins)}
        shell = ends.enter_context(Shell(folder, environment))
        table, told = placeholders(registry, api, own), commands()
        if unused := [it for it in table if not any(it in command for _, command in told)]:
            raise SystemExit(f"{GUIDE} does not say {unused}")
        if len(told) < 25:
            raise SystemExit(f"{GUIDE} has {len(told)} commands in blocks marked `sh`")
        before, refused = None, None
        for line, command in told:
            for said, meant in table.items():
                command = command.replace(said, meant)
            if refused is None and "arco cluster manifest" in command:
                refused = a_server_that_is_refused_something_says_why(shell, command)
            status, output = shell.run(command)
            if status:
                raise SystemExit(f"{GUIDE}:{line}: `{command}`: exit {status}\n{output}")
            say(f"line {line}: {command.splitlines()[0][:120]}")
            if "doctor" in command and "--image" in command:
                an_image_that_is_not_there_is_refused(arco, folder, registry)
            elif refused and "kubectl apply" in command:
                kubectl("-n", NAMESPACE, "delete", "pod", "arco-0")  # as the guide says of one that was never ready
                refused = False
            elif "rollout status" in command and before is None:
                containerd_reads_our_hosts(arco, folder)
            elif "arco deploy image:" in command:
                everything_answers()
                before = running()
            elif "rollout status" in command:
                everything_answers()
                if len(before) != 2 or running() != before:
                    raise SystemExit(f"the upgrade changed instances: {before} became {running()}")
                say("instances ran on through the upgrade, and answer")
        nothing_is_left()
        say("deleted and uninstalled; nothing is left")


if __name__ == "__main__":
    main()
