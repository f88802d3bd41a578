// Command older is kubetest without the parts of our own: built with a module file of another version, it is that version's Kubernetes.
package main

import (
	"fmt"
	"os"

	"kubetest/project"
)

func main() {
	if len(os.Args) > 1 {
		os.Args = os.Args[1:]
		project.Run(os.Args[0])
	}
	fmt.Fprintln(os.Stderr, "kubetest: which part? etcd, apiserver, controller-manager, scheduler, kubelet or proxy")
	os.Exit(2)
}
