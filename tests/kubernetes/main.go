// Command kubetest is a whole Kubernetes in one file, for tests: etcd, the control plane, the kubelet and kube-proxy (package project),
// started as `kubetest PART FLAGS…`, one process each; and two parts of our own, `fake-node` and `storage`. `cluster.py` puts them together.
//
// Not here: certificates, addresses, order of start and clean-up (cluster.py).
package main

import (
	"context"
	"fmt"
	"os"

	"kubetest/project"
)

func main() {
	if len(os.Args) < 2 {
		fail("which part? etcd, apiserver, controller-manager, scheduler, kubelet, proxy, fake-node KUBECONFIG NAME ADDRESS CERTIFICATE KEY or storage KUBECONFIG FOLDER")
	}
	os.Args = os.Args[1:]
	switch part := os.Args[0]; {
	case part == "fake-node" && len(os.Args) == 6:
		must(fakeNode(context.Background(), os.Args[1], os.Args[2], door{os.Args[3], os.Args[4], os.Args[5]}))
	case part == "storage" && len(os.Args) == 3:
		must(provideStorage(context.Background(), os.Args[1], os.Args[2]))
	default:
		project.Run(part)
		fail("no part " + part)
	}
}

func must(err error) {
	if err != nil {
		fail(err.Error())
	}
}

func fail(why string) {
	fmt.Fprintln(os.Stderr, "kubetest: "+why)
	os.Exit(2)
}
