#!/usr/bin/env python3
"""Runs a command against `arco server` on a test cluster with a real node: the acceptance of the main job, with pods.

  cluster.py run --node --internet -- with_settings.py COMMAND…     in COMMAND, `{config}` is the settings' file for `--config`

The server itself runs on this machine, which reaches the pods; nodes pull from its registry by a name that only containerd's `hosts.toml` knows,
with TLS by the authority that the server makes at its first start: it is handed to containerd as soon as it is there.
"""

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

NAME = "registry.arco.test:5000"


def settings(kubeconfig: Path, network: str) -> str:
    return f"""[builder]
without_user_namespace = "allow"
[orchestrator]
driver = "kubernetes"
[kubernetes]
kubeconfig = "{kubeconfig}"
registry = "{NAME}"
registry_listen = "10.250.{network}.1:5000"
gateway_networks = ["10.250.{network}.1/32"]
cluster_networks = ["10.96.0.0/16", "10.251.{network}.0/24"]
user_namespaces = false
request_percent = 5
"""


def hosts(network: str, ca: str) -> str:
    return f"""server = "https://10.250.{network}.1:5000"
[host."https://10.250.{network}.1:5000"]
  capabilities = ["pull", "resolve"]
  ca = "{ca}"
"""


def trust(work: Path, folder: Path, ended: threading.Event):
    """Hands over the server's authority, also that of a server with another data folder."""
    known = None
    while not ended.wait(0.1):
        for it in work.glob("*/data/pki/ca.pem"):
            if (found := it.read_bytes()) and found != known:
                known = found
                (folder / "part").write_bytes(found)
                os.replace(folder / "part", folder / "ca.pem")


def main() -> int:
    kubeconfig = Path(os.environ["KUBECONFIG"]).resolve()
    network = kubeconfig.read_text().split("https://10.250.")[1].split(".")[0]
    # What the node's mount namespace has as /etc/containerd.
    folder = kubeconfig.parent / "host/etc/containerd/certs.d" / NAME
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "hosts.toml").write_text(hosts(network, f"/etc/containerd/certs.d/{NAME}/ca.pem"))
    with tempfile.TemporaryDirectory(prefix="arco-cluster-") as work:
        config = Path(work) / "cluster.toml"
        config.write_text(settings(kubeconfig, network))
        ended = threading.Event()
        watch = threading.Thread(target=trust, args=(Path(work), folder, ended))
        watch.start()
        try:
            words = [it.replace("{config}", str(config)) for it in sys.argv[1:]]
            return subprocess.run(words, env={**os.environ, "TMPDIR": work}).returncode
        finally:
            ended.set()
            watch.join()


if __name__ == "__main__":
    sys.exit(main())
