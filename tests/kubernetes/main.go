// Command kubetest is a whole Kubernetes in one file, for tests: etcd, the control plane, the kubelet and kube-proxy, each from the
// packages of its own project, started as `kubetest PART FLAGS…`, one process each; and two parts of our own, `fake-node` and `storage`.
// `cluster.py` puts them together.
//
// Not here: certificates, addresses, order of start and clean-up (cluster.py).
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	parts := map[string]func() *cobra.Command{
		"apiserver":          apiserver.NewAPIServerCommand,
		"controller-manager": controllers.NewControllerManagerCommand,
		"scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
		"kubelet":            func() *cobra.Command { return kubelet.NewKubeletCommand(context.Background()) },
		"proxy":              proxy.NewProxyCommand,
	}
	if len(os.Args) < 2 {
		fail("which part? etcd, apiserver, controller-manager, scheduler, kubelet, proxy, fake-node KUBECONFIG NAME ADDRESS CERTIFICATE KEY or storage KUBECONFIG FOLDER")
	}
	part := os.Args[1]
	// Each part parses os.Args itself, as if it were an executable of its own.
	os.Args = append([]string{part}, os.Args[2:]...)
	switch {
	case part == "etcd":
		etcdmain.Main(os.Args)
		return
	case part == "fake-node" && len(os.Args) == 6:
		must(fakeNode(context.Background(), os.Args[1], os.Args[2], door{os.Args[3], os.Args[4], os.Args[5]}))
		return
	case part == "storage" && len(os.Args) == 3:
		must(provideStorage(context.Background(), os.Args[1], os.Args[2]))
		return
	}
	build, known := parts[part]
	if !known {
		fail("no part " + part)
	}
	os.Exit(cli.Run(build()))
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
