"""What each part of a test cluster is started with. Pure: from the folder and the addresses of a cluster to command lines and files."""

import json
from dataclasses import dataclass
from pathlib import Path

SERVICES = "10.96.0.0/16"
DNS = "10.96.0.10"


@dataclass
class Plan:
    """Where one cluster lives. `node` is None for a control plane alone; without `workloads` nobody makes pods of Deployments; `kubernetes` is
    the program with Kubernetes' own parts, where that is another one than that with ours."""
    folder: Path
    binary: Path
    address: str
    port: int
    pods: str
    node: str | None
    fake_nodes: int = 0
    workloads: bool = True
    kubernetes: Path | None = None

    @property
    def project(self):
        return str(self.kubernetes or self.binary)

    @property
    def server(self):
        return f"https://{self.address}:{self.port}"

    def file(self, name):
        return str(self.folder / name)

    def pki(self, name):
        return str(self.folder / "pki" / name)


# Changes and single reads by everybody but the cluster's own parts, so that the calls of a client can be counted.
AUDIT_POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "None", "users": ["system:kube-controller-manager", "system:kube-scheduler", "system:apiserver", "system:kube-proxy"]},
        {"level": "None", "userGroups": ["system:nodes"]},
        {"level": "None", "userGroups": ["system:serviceaccounts:kube-system"]},
        {"level": "None", "verbs": ["list", "watch"]},
        {"level": "None", "resources": [{"group": "coordination.k8s.io", "resources": ["leases"]}]},
        {"level": "Metadata"},
    ],
}


def control_plane(plan: Plan) -> dict[str, list[str]]:
    """Name of a part → its command line, in the order of their start."""
    kubetest, pki, file = plan.project, plan.pki, plan.file
    own = lambda name: [f"--{it}kubeconfig={file(name + '.kubeconfig')}" for it in ("", "authentication-", "authorization-")]
    etcd = f"unix://{file('etcd.sock')}"
    nowhere = "http://127.0.0.1:1"  # a single member is never asked where it is
    return {
        "etcd": [
            kubetest, "etcd", "--data-dir", file("etcd"), "--listen-client-urls", etcd, "--advertise-client-urls", nowhere,
            "--listen-peer-urls", f"unix://{file('etcd-peer.sock')}", "--initial-advertise-peer-urls", nowhere,
            "--initial-cluster", f"default={nowhere}",
            # What tests keep for minutes need not survive a power failure.
            "--unsafe-no-fsync", "--log-level", "warn", "--snapshot-count", "100000",
        ],
        "apiserver": [
            kubetest, "apiserver", f"--etcd-servers={etcd}", f"--bind-address={plan.address}", f"--secure-port={plan.port}",
            "--permit-port-sharing", f"--advertise-address={plan.address}", f"--service-cluster-ip-range={SERVICES}",
            *(aggregation(plan) if plan.node else ["--endpoint-reconciler-type=none"]),
            f"--tls-cert-file={pki('apiserver.crt')}", f"--tls-private-key-file={pki('apiserver.key')}", f"--client-ca-file={pki('ca.crt')}",
            "--service-account-issuer=https://kubernetes.default.svc", f"--service-account-key-file={pki('service-accounts.pub')}",
            f"--service-account-signing-key-file={pki('service-accounts.key')}",
            "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
            f"--kubelet-client-certificate={pki('kubelet-client.crt')}", f"--kubelet-client-key={pki('kubelet-client.key')}",
            f"--kubelet-certificate-authority={pki('ca.crt')}", "--kubelet-preferred-address-types=InternalIP",
            f"--audit-policy-file={file('audit.json')}", f"--audit-log-path={file('log/audit.log')}", "--audit-log-maxsize=500",
            "--profiling=false", "--v=1",
        ],
        "controller-manager": [
            kubetest, "controller-manager", *own("controller-manager"), "--secure-port=0", "--leader-elect=false",
            f"--root-ca-file={pki('ca.crt')}", f"--service-account-private-key-file={pki('service-accounts.key')}",
            f"--cluster-signing-cert-file={pki('ca.crt')}", f"--cluster-signing-key-file={pki('ca.key')}",
            # The allocator of node ranges is off: the one real node has its range in its CNI configuration.
            "--use-service-account-credentials=true", "--allocate-node-cidrs=false",
            # Its own default of 20 calls a second would be what a test of 1,000 components measures.
            "--kube-api-qps=1000", "--kube-api-burst=2000", "--concurrent-deployment-syncs=20", "--concurrent-replicaset-syncs=20", "--v=1",
            *([] if plan.workloads else ["--controllers=*,-deployment-controller"]),
            *patience(plan),
        ],
        "scheduler": [
            kubetest, "scheduler", *own("scheduler"), "--secure-port=0", "--leader-elect=false",
            "--kube-api-qps=1000", "--kube-api-burst=2000", "--v=1",
        ],
    }


def patience(plan: Plan) -> list[str]:
    """When a node that says nothing is lost: soon only where another one can take what it has. A machine under load must not look like that."""
    if plan.fake_nodes > 1:
        return ["--node-monitor-grace-period=20s", "--node-monitor-period=2s"]
    return [] if plan.node else ["--node-monitor-grace-period=10m"]


def aggregation(plan: Plan) -> list[str]:
    """How the API server says for whom it asks an API that another program serves."""
    return [
        f"--requestheader-client-ca-file={plan.pki('front-proxy-ca.crt')}", "--requestheader-allowed-names=front-proxy",
        "--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={plan.pki('front-proxy.crt')}", f"--proxy-client-key-file={plan.pki('front-proxy.key')}",
    ]


def worker(plan: Plan) -> dict[str, list[str]]:
    """The parts of the real node, in the order of their start; paths are those inside the node's mount namespace."""
    kubetest = plan.project
    return {
        "containerd": ["containerd"],
        "kubelet": [
            kubetest, "kubelet", f"--config={plan.file('kubelet.json')}", f"--kubeconfig={plan.file('kubelet.kubeconfig')}",
            f"--hostname-override={plan.node}", f"--node-ip={plan.address}", "--cert-dir=/var/lib/kubelet/pki", "--v=2",
        ],
        "proxy": [kubetest, "proxy", f"--config={plan.file('proxy.json')}", "--v=1"],
        "dns": [str(plan.binary.parent / "coredns"), "-conf", plan.file("Corefile")],
    }


def dns_objects(plan: Plan):
    """Where the cluster's DNS is found: the well-known service, whose one endpoint is the program beside the kubelet."""
    labels = {"k8s-app": "kube-dns", "kubernetes.io/name": "CoreDNS"}
    ports = [{"name": "dns", "protocol": "UDP", "port": 53}, {"name": "dns-tcp", "protocol": "TCP", "port": 53}]
    yield "/api/v1/namespaces/kube-system/services", {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "kube-dns", "labels": labels}, "spec": {"clusterIP": DNS, "ports": ports},
    }
    yield "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices", {
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": ports,
        "metadata": {"name": "kube-dns-1", "labels": {"kubernetes.io/service-name": "kube-dns"}},
        "endpoints": [{"addresses": [plan.address], "conditions": {"ready": True}}],
    }


def files(plan: Plan, cgroup: str, pause: str, resolver: str) -> dict[str, str]:
    """File below the folder → content."""
    made = {"audit.json": json.dumps(AUDIT_POLICY)}
    if not plan.node:
        return made
    made["resolv.conf"] = resolver
    forward = f"forward . {plan.file('resolv.conf')}" if "nameserver" in resolver else ""
    made["Corefile"] = f"""cluster.local in-addr.arpa {{
  bind {plan.address}
  errors
  kubernetes cluster.local in-addr.arpa {{
    kubeconfig {plan.file('kubeconfig')}
    pods insecure
  }}
}}
. {{
  bind {plan.address}
  errors
  {forward}
}}
"""
    made["cni/10-bridge.conflist"] = json.dumps({
        "cniVersion": "1.0.0", "name": "kubetest",
        "plugins": [
            {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True, "hairpinMode": True,
             "ipam": {"type": "host-local", "ranges": [[{"subnet": plan.pods}]], "routes": [{"dst": "0.0.0.0/0"}]}},
            {"type": "portmap", "capabilities": {"portMappings": True}},
        ],
    })
    made["containerd.toml"] = f"""version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{plan.file('cni')}"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      BinaryName = "/usr/sbin/runc"
"""
    made["kubelet.json"] = json.dumps({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "address": plan.address,
        "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": True}, "x509": {"clientCAFile": plan.pki("ca.crt")}},
        "authorization": {"mode": "Webhook"},
        "tlsCertFile": plan.pki("kubelet.crt"), "tlsPrivateKeyFile": plan.pki("kubelet.key"),
        "cgroupDriver": "cgroupfs", "cgroupRoot": cgroup, "failCgroupV1": False, "failSwapOn": False,
        "clusterDomain": "cluster.local", "clusterDNS": [DNS], "resolvConf": plan.file("resolv.conf"),
        "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
        # The machine under test may be full; nobody's pods are to be evicted for that.
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%"},
        "imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
        "healthzPort": 0, "syncFrequency": "10s", "registryPullQPS": 0, "eventRecordQPS": 0,
    })
    made["proxy.json"] = json.dumps({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": plan.file("proxy.kubeconfig")},
        "clusterCIDR": plan.pods, "hostnameOverride": plan.node, "mode": "nftables",
        "metricsBindAddress": "127.0.0.1:10249", "healthzBindAddress": "127.0.0.1:10256",
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpCloseWaitTimeout": "0s", "tcpEstablishedTimeout": "0s"},
    })
    return made
