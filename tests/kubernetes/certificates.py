"""Certificates and kubeconfigs of a test cluster: one CA, a leaf for each part, all made by openssl, all thrown away with the cluster."""

import base64
import json
import subprocess
from pathlib import Path

# Leaf → subject. The subjects are what Kubernetes' built-in roles are bound to.
CLIENTS = {
    "admin": "/O=system:masters/CN=admin",
    "kubelet-client": "/O=system:masters/CN=kube-apiserver-kubelet-client",
    "controller-manager": "/CN=system:kube-controller-manager",
    "scheduler": "/CN=system:kube-scheduler",
    "proxy": "/CN=system:kube-proxy",
}
EC = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]


def openssl(*arguments, directory):
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


def authority(directory: Path, name: str, subject: str):
    openssl("req", "-x509", *EC, "-days", "30", "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.crt", directory=directory)


def leaf(directory: Path, name: str, subject: str, names: str, ca="ca"):
    openssl("req", *EC, "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr", directory=directory)
    extensions = directory / f"{name}.ext"
    extensions.write_text(
        "keyUsage=digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n" + (f"subjectAltName={names}\n" if names else "")
    )
    openssl("x509", "-req", "-in", f"{name}.csr", "-CA", f"{ca}.crt", "-CAkey", f"{ca}.key", "-CAcreateserial", "-days", "30",
            "-extfile", extensions.name, "-out", f"{name}.crt", directory=directory)


def make(directory: Path, address: str, node: str | None):
    """Everything below `directory`; `address` is where the API server listens, `node` the name of the real node, if any."""
    directory.mkdir(mode=0o700)
    authority(directory, "ca", "/CN=kubernetes-ca")
    services = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"]
    names = ",".join([f"DNS:{it}" for it in services] + [f"IP:{it}" for it in {"127.0.0.1", "10.96.0.1", address}])
    leaf(directory, "apiserver", "/CN=kube-apiserver", names)
    for name, subject in CLIENTS.items():
        leaf(directory, name, subject, "")
    if node:
        leaf(directory, "kubelet", f"/O=system:nodes/CN=system:node:{node}", f"DNS:{node},IP:127.0.0.1,IP:{address}")
        # The API server says by an authority of its own for whom it asks APIs that are not its own (metrics).
        authority(directory, "front-proxy-ca", "/CN=front-proxy-ca")
        leaf(directory, "front-proxy", "/CN=front-proxy", "", ca="front-proxy-ca")
    openssl("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "service-accounts.key", directory=directory)
    openssl("ec", "-in", "service-accounts.key", "-pubout", "-out", "service-accounts.pub", directory=directory)


def kubeconfig(directory: Path, name: str, server: str, target: Path):
    """A self-contained kubeconfig (JSON is YAML) of the client certificate `name`."""
    read = lambda file: base64.b64encode((directory / file).read_bytes()).decode()
    target.touch(mode=0o600)
    target.write_text(json.dumps({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "kubetest", "cluster": {"server": server, "certificate-authority-data": read("ca.crt")}}],
        "users": [{"name": name, "user": {"client-certificate-data": read(f"{name}.crt"), "client-key-data": read(f"{name}.key")}}],
        "contexts": [{"name": "kubetest", "context": {"cluster": "kubetest", "user": name}}],
        "current-context": "kubetest",
    }, indent=1))
