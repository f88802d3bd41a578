#!/usr/bin/env python3
"""A server inside the cluster builds from source, as docs/guides/cluster.md says it: manifest, base stack, folders, answers.

  cluster.py run --node --internet --kubectl -- builds.py ARCO [EXAMPLE…]

The base stack comes from this machine; the server, which is a user without rights in its pod, makes every toolchain on it by pods. What must hold:
without the base the deploy says which stack is missing and how to mend it; each example is built, deployed and answers through the gateway as
its expect.json says; a toolchain is made once; what npm downloaded for a component is there for its next build and for no other component's;
the uninstallation leaves nothing.
"""

import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ports import free_port

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
KUBECONFIG = Path(os.environ["KUBECONFIG"]).resolve()
NETWORK = KUBECONFIG.read_text().split("https://10.250.")[1].split(".")[0]
# This machine, as pods see it, and the node.
HOST, NODE = f"10.250.{NETWORK}.1", f"10.250.{NETWORK}.2"
NAMESPACE = "arco-system"
BEGAN = time.monotonic()
EXAMPLES = ["node-express", "python-flask"]
IN_POD = ["-n", NAMESPACE, "exec", "-i", "arco-0", "--", "/usr/bin/arco", "--context", "/var/lib/arco/admin.toml"]


def say(text):
    print(f"  {time.monotonic() - BEGAN:6.1f} s  {text}", flush=True)


def done(*words, **options):
    made = subprocess.run([str(it) for it in words], capture_output=True, text=True, **options)
    if made.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}: exit {made.returncode}\n{made.stdout}{made.stderr}")
    return made.stdout


def kubectl(*words, **options):
    return done("kubectl", *words, **options)


def until(what, wanted, seconds=600):
    end, last = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            if found := wanted():
                return found
        except (OSError, ValueError, KeyError, IndexError, http.client.HTTPException) as error:
            last = error
        time.sleep(0.1)
    raise SystemExit(f"not within {seconds} s: {what} ({last})")


class Platform:
    """The command line, through a port that `kubectl` forwards."""

    def __init__(self, arco, work):
        self.arco, self.context, self.forward, self.port = arco, work / "context.toml", None, free_port()

    def open(self, role="operator"):
        own = ["export"] if role == "admin" else ["create", "--name", "me", "--role", role]
        text = kubectl(*IN_POD, "context", *own, "--file", "-", "--address", f"127.0.0.1:{self.port}")
        self.context.touch(0o600)
        self.context.write_text(text)
        self.begin()

    def begin(self):
        """Forwards the port; `kubectl` ends with the first connection that is reset."""
        self.end()
        self.forward = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", "kubectl", "-n", NAMESPACE, "port-forward", "service/arco-api", f"{self.port}:8443"],
                                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until("the API answers", lambda: self.run("list").returncode == 0, 300)

    def run(self, *words):
        environment = {**os.environ, "ARCO_CONTEXT": str(self.context)}
        return subprocess.run([self.arco, *map(str, words), "-o", "json"], capture_output=True, text=True, stdin=subprocess.DEVNULL, env=environment)

    def good(self, *words):
        made = self.run(*words)
        if made.returncode == 3 and words[0] in ("list", "logs", "status"):
            self.begin()  # what only looks is asked again
            made = self.run(*words)
        if made.returncode:
            raise SystemExit(f"arco {' '.join(map(str, words))}: exit {made.returncode}\n{made.stdout}{made.stderr}")
        return json.loads(made.stdout or "null")

    def end(self):
        if self.forward:
            self.forward.kill()
            self.forward.wait()


def install(arco, work, *more):
    done(arco, "cluster", "image", "save", work / "arco.tar")
    done(HERE / "cluster.py", "load", KUBECONFIG, work / "arco.tar")
    (work / "arco.tar").unlink()
    (work / "settings.toml").write_text('[builder]\nmemory_mb = 2048\n')
    manifest = done(arco, "cluster", "manifest", "--domain", "apps.test", "--gateway", "node-port", "--trust-registry", "--no-user-namespaces",
                    "--volume-gb", "5", "--settings", work / "settings.toml", *more)
    (work / "arco.yaml").write_text(manifest)
    kubectl("apply", "--server-side", "-f", work / "arco.yaml")
    kubectl("-n", NAMESPACE, "rollout", "status", "statefulset/arco", "--timeout=600s")
    kubectl("-n", f"{NAMESPACE}-nodes", "rollout", "status", "daemonset/arco-trust-registry", "--timeout=600s")
    say("the server is ready")


def refused_without_base(platform):
    made = platform.run("deploy", ROOT / "examples" / EXAMPLES[0], "--app", "early", "--component", "web")
    found = json.loads(made.stdout)
    if made.returncode != 1 or "`base`" not in found["message"] or "arco stack load" not in found["advice"]:
        raise SystemExit(f"a deploy without the base: exit {made.returncode}, {found}")
    platform.good("delete", "early", "--yes")
    say(f"without the base: {found['message']}; {found['advice']}")


def load_base(arco, work):
    file = work / "base.tar"
    done(arco, "stack", "save", file, "base")
    with open(file, "rb") as content:
        loaded = subprocess.run(["kubectl", *IN_POD, "stack", "load", "-", "-o", "json"], stdin=content, capture_output=True, text=True)
    if loaded.returncode or [it["name"] for it in json.loads(loaded.stdout)["items"]] != ["base"]:
        raise SystemExit(f"arco stack load: exit {loaded.returncode}\n{loaded.stdout}{loaded.stderr}")
    say(f"the base is loaded: {file.stat().st_size >> 20} MB")
    file.unlink()


def answers(host, port, wanted, at=NODE):
    """Whether one request of an example's expect.json is answered as it says."""
    with contextlib.closing(http.client.HTTPConnection(at, port, timeout=10)) as c:
        c.request(wanted.get("method", "GET"), wanted["path"], body=wanted.get("body"), headers={**wanted.get("headers", {}), "Host": host, "Connection": "close"})
        answer = c.getresponse()
        text, parts = answer.read().decode(errors="replace"), wanted.get("contains", [])
    return answer.status == wanted.get("status", 200) and all(it in text for it in ([parts] if isinstance(parts, str) else parts))


def deploy(platform, example, port):
    made = platform.good("deploy", ROOT / "examples" / example, "--app", "demo", "--component", example, "--memory-mb", "128")
    host = f"{example}-demo.apps.test"
    for wanted in json.loads((ROOT / "examples" / example / "expect.json").read_text())["requests"]:
        until(f"{host} answers {wanted}", lambda: answers(host, port, wanted), 300)
    say(f"{example}: built in {made['build_ms'] / 1000:.1f} s, rolled out in {made['rollout_ms'] / 1000:.1f} s, answers through the gateway")


def from_the_cache(platform, source):
    """npm installs again without a network: all that it takes is in the component's cache, and in no other component's."""
    def deploy(component, *more):
        return platform.run("deploy", source, "--app", "demo", "--component", component, "--memory-mb", "128", "--build-env", "npm_config_offline=true", *more)

    made = deploy("node-express")
    log = [it["text"] for it in platform.good("logs", "demo/node-express", "--build")["lines"]]
    restored = [it for it in log if it.startswith("cache: ") and it.endswith(" restored")]
    if made.returncode or not restored or not any(it.startswith("install dependencies: done") for it in log):
        raise SystemExit(f"a build that npm may not download for: exit {made.returncode}\n{made.stdout}{made.stderr}" + "\n".join(log))
    say(f"node-express: installed without a network; {restored[0]}")
    for component, *more in (["other"], ["node-express", "--no-cache"]):
        made = deploy(component, *more)
        if made.returncode != 1 or json.loads(made.stdout)["code"] != "step_failed":
            raise SystemExit(f"npm found packages without a network and with an empty cache: {component} {more}: exit {made.returncode}\n{made.stdout}{made.stderr}")
    say("another component, and one without its caches, have nothing to install from")


def gateway_ports():
    """Each port of the gateway's service by its name, as the node has it."""
    service = json.loads(kubectl("-n", NAMESPACE, "get", "service", "arco-gateway", "-o", "json"))
    return {it["name"]: it["nodePort"] for it in service["spec"]["ports"]}


def uninstall(work, kinds):
    """Takes the platform out of the cluster; nothing of these kinds may be left of a component."""
    left = kubectl("-n", "arco-default", "get", kinds, "-l", "arco.internal/component", "-o", "name")
    kubectl("delete", "-f", work / "arco.yaml")
    if left:
        raise SystemExit(f"left over: {left}")
    say("deleted and uninstalled; nothing is left")


def tell(*questions):
    """What `kubectl` says of the cluster and to each of these, for whoever looks why something failed."""
    for words in (["get", "pods", "-A"], ["get", "events", "-A", "--sort-by=.lastTimestamp"], *questions):
        shown = subprocess.run(["kubectl", *words], capture_output=True, text=True)
        print("\n".join((shown.stdout + shown.stderr).splitlines()[-60:]), file=sys.stderr)


@contextlib.contextmanager
def trial(name, *telling):
    """The program to test, a folder, and the command line for what is installed from it. When it fails, what helps to see why is told: also what
    `kubectl` says to the words of `telling`."""
    arco, work = str(Path(sys.argv[1]).resolve()), Path(tempfile.mkdtemp(prefix=f"arco-{name}-"))
    platform = Platform(arco, work)
    try:
        yield arco, work, platform
    except BaseException:
        tell(["-n", NAMESPACE, "logs", "arco-0", "--tail", "60"], *telling)
        raise
    finally:
        platform.end()
        shutil.rmtree(work, ignore_errors=True)


def main():
    examples = sys.argv[2:] or EXAMPLES
    with trial("builds") as (arco, work, platform):
        install(arco, work)
        platform.open()
        refused_without_base(platform)
        load_base(arco, work)
        port = gateway_ports()["http"]
        for example in examples:
            deploy(platform, example, port)
        kept = {it["name"]: it["digest"] for it in platform.good("stack", "list")["items"]}
        say(f"the platform keeps {', '.join(kept)}")
        changed = work / "changed"
        shutil.copytree(ROOT / "examples" / examples[0], changed)
        (changed / "CHANGED").write_text("so that it is built again\n")
        again = platform.good("deploy", changed, "--app", "demo", "--component", examples[0])
        if {it["name"]: it["digest"] for it in platform.good("stack", "list")["items"]} != kept:
            raise SystemExit(f"a changed source: {again}; stacks were {kept}")
        say(f"{examples[0]} changed: built in {again['build_ms'] / 1000:.1f} s, with the same stacks")
        if "node-express" in examples:
            from_the_cache(platform, ROOT / "examples" / "node-express")
        platform.good("delete", "demo", "--yes")
        uninstall(work, "deployments,services,secrets,pods")


if __name__ == "__main__":
    main()
