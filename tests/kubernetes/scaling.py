#!/usr/bin/env python3
"""Scaling by load on real figures, as docs/guides/scaling.md says it: metrics-server measures, the cluster's own autoscaler decides.

  cluster.py run --node --metrics --kubectl -- scaling.py ARCO

An application spends CPU on each request. What must hold: under load one instance becomes three, without load three become one, `arco status` says
why each time, no request is lost meanwhile, and without figures the number stays and `arco status` says what is missing.
"""

import json
import shutil
import subprocess
import time

from builds import gateway_ports, install, kubectl, say, trial, uninstall, until
from load import Load

HOST = "burner-demo.apps.test"
CPU_MILLI, CPU_PERCENT, DOWN_AFTER_S = 100, 50, 15
PAGE = """#!/bin/busybox sh
printf 'Content-Type: text/plain\\r\\n\\r\\n'
busybox dd if=/dev/zero bs=64k count=160 2>/dev/null | busybox md5sum
"""
DOCKERFILE = """FROM scratch
COPY . /
ENV PATH=/bin
EXPOSE 8080
CMD ["/bin/busybox", "httpd", "-f", "-p", "8080", "-h", "/www"]
"""


def source(work):
    folder = work / "burner"
    (folder / "bin").mkdir(parents=True)
    (folder / "www/cgi-bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "bin/busybox")
    (folder / "www/index.html").write_text("<h1>burner</h1>\n")
    (folder / "www/cgi-bin/burn").write_text(PAGE)
    (folder / "www/cgi-bin/burn").chmod(0o755)
    (folder / "Dockerfile").write_text(DOCKERFILE)
    return folder


def scaled(platform, wanted, why):
    """When there are so many instances, all ready, and the status says why: that reason."""
    it = platform.good("status", "demo/burner")
    counts = (it["replicas"], it["ready_replicas"], len(it["instances"]))
    reason = it["scaling"]["reason"]
    return counts == (wanted,) * 3 and it["status"] == "running" and why in reason and reason


def figures():
    """What the cluster's autoscaler saw last."""
    status = json.loads(kubectl("-n", "arco-default", "get", "hpa", "-o", "json"))["items"][0]["status"]
    found = [it["resource"]["current"].get("averageValue") for it in status.get("currentMetrics") or [] if it.get("resource", {}).get("name") == "cpu"]
    return found[0] if found else None


def the_cluster_is_fit(arco):
    made = subprocess.run([arco, "doctor", "--cluster"], capture_output=True, text=True)
    if "the metrics API tells what pods use" not in made.stdout + made.stderr:
        raise SystemExit(f"arco doctor --cluster does not see the metrics API: {made.stdout}{made.stderr}")


def main():
    with trial("scaling", ["-n", "arco-default", "describe", "hpa"]) as (arco, work, platform):
        the_cluster_is_fit(arco)
        install(arco, work)
        platform.open()
        platform.good("deploy", source(work), "--app", "demo", "--component", "burner", "--port", "8080", "--cpu-milli", CPU_MILLI, "--memory-mb", "64")
        port = gateway_ports()["http"]
        platform.good("scale", "demo/burner", "--min", "1", "--max", "3", "--cpu", CPU_PERCENT, "--down-after", DOWN_AFTER_S)
        people = Load(port, HOST, pause_s=0.2)
        idle = until("the autoscaler has figures", figures, 600)
        say(f"one instance follows load; at rest the autoscaler sees {idle} of CPU")

        began, load = time.monotonic(), Load(port, HOST, "/cgi-bin/burn", pause_s=0, threads=4, limit_s=60)
        reason = until("load makes three of one", lambda: scaled(platform, 3, "to 3: CPU is at"), 600)
        say(f"three instances after {time.monotonic() - began:.0f} s of load: {reason} (the autoscaler sees {figures()} per instance)")
        load.end()

        began = time.monotonic()
        reason = until("rest makes one of three", lambda: scaled(platform, 1, "to 1: CPU is at"), 600)
        say(f"one instance after {time.monotonic() - began:.0f} s of rest: {reason}")

        kubectl("-n", "kube-system", "scale", "deployment/metrics-server", "--replicas", "0")
        told = until("the status says that figures are missing", lambda: platform.good("status", "demo/burner")["scaling"].get("problem"), 600)
        if "install metrics-server" not in told or platform.good("status", "demo/burner")["status"] != "running":
            raise SystemExit(f"without figures: {told}, {platform.good('status', 'demo/burner')}")
        people.end()
        say(f"without figures: {told}; {people.good} requests of others were answered all the while, none lost")
        # The cluster deletes no namespace while an API of its own does not answer.
        kubectl("-n", "kube-system", "scale", "deployment/metrics-server", "--replicas", "1")
        until("figures are back", lambda: not platform.good("status", "demo/burner")["scaling"].get("problem"), 600)

        platform.good("delete", "demo", "--yes")
        uninstall(work, "hpa,componentscales,deployments,pods")


if __name__ == "__main__":
    main()
