"""The metrics API of a test cluster: what metrics-server needs, as its own manifest has it. Pure: documents, and where each is posted."""

IMAGE = "kubetest.local/metrics-server:1"
NAME, NAMESPACE = "metrics-server", "kube-system"
RESOLUTION_S = 10  # the shortest that it takes
PORT = 10250


def objects():
    """Path → document, in the order of their making."""
    metadata = {"name": NAME, "namespace": NAMESPACE, "labels": {"k8s-app": NAME}}
    account = {"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}
    core, rights = f"/api/v1/namespaces/{NAMESPACE}", "/apis/rbac.authorization.k8s.io/v1"
    rbac = {"apiVersion": "rbac.authorization.k8s.io/v1"}
    role = lambda kind, name: {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": name}
    yield f"{core}/serviceaccounts", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata}
    yield f"{rights}/clusterroles", {
        **rbac, "kind": "ClusterRole", "metadata": {"name": "system:metrics-server"},
        "rules": [{"apiGroups": [""], "resources": ["nodes/metrics"], "verbs": ["get"]},
                  {"apiGroups": [""], "resources": ["pods", "nodes"], "verbs": ["get", "list", "watch"]}],
    }
    for name, of in (("system:metrics-server", "system:metrics-server"), ("metrics-server:system:auth-delegator", "system:auth-delegator")):
        yield f"{rights}/clusterrolebindings", {
            **rbac, "kind": "ClusterRoleBinding", "metadata": {"name": name}, "roleRef": role("ClusterRole", of), "subjects": [account],
        }
    yield f"{rights}/namespaces/{NAMESPACE}/rolebindings", {
        **rbac, "kind": "RoleBinding", "metadata": {"name": "metrics-server-auth-reader", "namespace": NAMESPACE},
        "roleRef": role("Role", "extension-apiserver-authentication-reader"), "subjects": [account],
    }
    yield f"{core}/services", {
        "apiVersion": "v1", "kind": "Service", "metadata": metadata,
        "spec": {"selector": {"k8s-app": NAME}, "ports": [{"name": "https", "port": 443, "targetPort": "https", "protocol": "TCP"}]},
    }
    yield f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments", {
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata,
        "spec": {"selector": {"matchLabels": {"k8s-app": NAME}},
                 "template": {"metadata": {"labels": {"k8s-app": NAME}}, "spec": pod()}},
    }
    yield "/apis/apiregistration.k8s.io/v1/apiservices", {
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService", "metadata": {"name": "v1beta1.metrics.k8s.io"},
        # It makes its own certificate, as in its own manifest.
        "spec": {"group": "metrics.k8s.io", "version": "v1beta1", "groupPriorityMinimum": 100, "versionPriority": 100,
                 "insecureSkipTLSVerify": True, "service": {"name": NAME, "namespace": NAMESPACE}},
    }


def pod():
    probe = lambda path: {"httpGet": {"path": path, "port": "https", "scheme": "HTTPS"}, "periodSeconds": 2, "timeoutSeconds": 10, "failureThreshold": 30}
    return {
        "serviceAccountName": NAME,
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "containers": [{
            "name": NAME, "image": IMAGE, "imagePullPolicy": "Never",
            "args": ["--cert-dir=/tmp", f"--secure-port={PORT}", "--kubelet-preferred-address-types=InternalIP", "--kubelet-use-node-status-port",
                     f"--metric-resolution={RESOLUTION_S}s", "--kubelet-request-timeout=5s",
                     # The kubelet's certificate is of the cluster's authority.
                     "--kubelet-certificate-authority=/var/run/secrets/kubernetes.io/serviceaccount/ca.crt"],
            "ports": [{"name": "https", "containerPort": PORT, "protocol": "TCP"}],
            "readinessProbe": probe("/readyz"),
            "securityContext": {"readOnlyRootFilesystem": True, "runAsNonRoot": True, "runAsUser": 1000, "allowPrivilegeEscalation": False,
                                "seccompProfile": {"type": "RuntimeDefault"}, "capabilities": {"drop": ["ALL"]}},
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
        }],
    }
