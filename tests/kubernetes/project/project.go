// Package project has the parts of Kubernetes, and etcd, each from the packages of its own project. What it uses of them is the same from 1.28
// on, so that a module file with other versions is all that an older cluster needs (older.py). Not here: parts of our own.
package project

import (
	"context"
	"os"
	"reflect"

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

// Run runs a part to its end by os.Args, which it parses itself as if it were an executable of its own; it returns when there is no such part.
func Run(part string) {
	if part == "etcd" {
		etcdmain.Main(os.Args)
		os.Exit(0)
	}
	makers := map[string]any{
		"apiserver":          apiserver.NewAPIServerCommand,
		"controller-manager": controllers.NewControllerManagerCommand,
		"scheduler":          scheduler.NewSchedulerCommand,
		"kubelet":            kubelet.NewKubeletCommand,
		"proxy":              proxy.NewProxyCommand,
	}
	if maker, known := makers[part]; known {
		os.Exit(cli.Run(command(maker)))
	}
}

// command calls what makes a part's command. The kubelet's takes a context in newer versions and nothing in older ones.
func command(maker any) *cobra.Command {
	function := reflect.ValueOf(maker)
	var words []reflect.Value
	if kind := function.Type(); kind.NumIn() == 1 && !kind.IsVariadic() {
		words = append(words, reflect.ValueOf(context.Background()))
	}
	return function.Call(words)[0].Interface().(*cobra.Command)
}
