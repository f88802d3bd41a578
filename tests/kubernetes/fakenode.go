package main

// A node that is only an object: its Ready condition and lease are kept fresh, and its pods are said to run (or to have succeeded, when
// they are not to be restarted), and to write nothing: whoever follows their output waits until they have ended or are gone. Deleted pods are
// confirmed. The node's label `kubetest/pods` says how far this goes and may be changed
// while it runs: `ready` (default); `manual`: the test itself writes the status of pods, only deletions are confirmed; or `silent`: the node
// says nothing, as one that has no power, until the label is another one. A node that was deleted is silent until somebody makes it again.

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	coordination "k8s.io/api/coordination/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/workqueue"
)

const (
	podsLabel = "kubetest/pods"
	manual    = "manual"
	silent    = "silent"
)

// How often a node says that it lives: a test cluster with several fake nodes takes one for lost after 20 seconds (parts.py).
const beat = 2 * time.Second

// connect makes a client that is never slowed by its own rate limit.
func connect(kubeconfig string) (*kubernetes.Clientset, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	config.QPS, config.Burst = 2000, 2000
	return kubernetes.NewForConfig(config)
}

// What a node answers the API server with: an address of this machine, and the certificate for it.
type door struct{ address, certificate, key string }

func fakeNode(ctx context.Context, kubeconfig, name string, opens door) error {
	client, err := connect(kubeconfig)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(opens.address, "0"))
	if err != nil {
		return err
	}
	at := listener.Addr().(*net.TCPAddr)
	if err := register(ctx, client, name, at); err != nil {
		return fmt.Errorf("registering node %s: %w", name, err)
	}
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.DefaultTypedControllerRateLimiter[string]())
	onNode := cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "pods", "", fields.OneTermEqualSelector("spec.nodeName", name))
	pods, podLoop := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: onNode, ObjectType: &core.Pod{}, Handler: enqueue(queue)})
	itself := cache.NewListWatchFromClient(client.CoreV1().RESTClient(), "nodes", "", fields.OneTermEqualSelector("metadata.name", name))
	changed := make(chan struct{}, 1)
	nodes, nodeLoop := cache.NewInformerWithOptions(cache.InformerOptions{ListerWatcher: itself, ObjectType: &core.Node{},
		Handler: cache.ResourceEventHandlerFuncs{UpdateFunc: func(before, after any) {
			if before.(*core.Node).Labels[podsLabel] != after.(*core.Node).Labels[podsLabel] {
				for _, key := range pods.ListKeys() {
					queue.Add(key)
				}
				select {
				case changed <- struct{}{}:
				default: // it is told already
				}
			}
		}}})
	itsObject := func() *core.Node {
		if it, found, _ := nodes.GetByKey(name); found {
			return it.(*core.Node)
		}
		return nil
	}
	isTold := func() string {
		if it := itsObject(); it != nil {
			return it.Labels[podsLabel]
		}
		return silent
	}
	go nodeLoop.Run(ctx.Done())
	go podLoop.Run(ctx.Done())
	cache.WaitForCacheSync(ctx.Done(), podLoop.HasSynced, nodeLoop.HasSynced)
	go func() {
		for ctx.Err() == nil {
			if it := itsObject(); it != nil && it.Labels[podsLabel] != silent {
				live(ctx, client, it, at)
			}
			select {
			case <-ctx.Done():
			case <-changed:
			case <-time.After(beat):
			}
		}
	}()
	go func() {
		handler := http.NewServeMux()
		handler.HandleFunc("GET /containerLogs/{namespace}/{pod}/{container}", silence(pods))
		log.Printf("output of pods: %v", http.ServeTLS(listener, handler, opens.certificate, opens.key))
	}()

	for range 8 {
		go func() {
			for {
				key, stopped := queue.Get()
				if stopped {
					return
				}
				told := isTold()
				if it, found, _ := pods.GetByKey(key); found && told != silent {
					if err := settle(ctx, client, it.(*core.Pod), told == manual); err != nil && !errors.IsNotFound(err) && !errors.IsConflict(err) {
						log.Printf("pod %s: %v", key, err)
						queue.AddRateLimited(key)
					} else {
						queue.Forget(key)
					}
				}
				queue.Done(key)
			}
		}()
	}
	<-ctx.Done()
	queue.ShutDown()
	return nil
}

func enqueue(queue workqueue.TypedRateLimitingInterface[string]) cache.ResourceEventHandler {
	add := func(it any) {
		if key, err := cache.MetaNamespaceKeyFunc(it); err == nil {
			queue.Add(key)
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: add, UpdateFunc: func(_, it any) { add(it) }}
}

// silence is the output of a pod that writes none. Who asks is the API server, which has checked everything.
func silence(pods cache.Store) http.HandlerFunc {
	return func(answer http.ResponseWriter, asked *http.Request) {
		answer.WriteHeader(http.StatusOK)
		if asked.URL.Query().Get("follow") != "true" {
			return
		}
		_ = http.NewResponseController(answer).Flush()
		look := time.NewTicker(time.Second)
		defer look.Stop()
		for {
			it, there, _ := pods.GetByKey(asked.PathValue("namespace") + "/" + asked.PathValue("pod"))
			if !there {
				return
			}
			if phase := it.(*core.Pod).Status.Phase; phase == core.PodSucceeded || phase == core.PodFailed {
				return
			}
			select {
			case <-asked.Context().Done():
				return
			case <-look.C:
			}
		}
	}
}

func register(ctx context.Context, client *kubernetes.Clientset, name string, at *net.TCPAddr) error {
	labels := map[string]string{core.LabelHostname: name, core.LabelOSStable: "linux", core.LabelArchStable: "amd64", podsLabel: "ready"}
	node, err := client.CoreV1().Nodes().Create(ctx, &core.Node{ObjectMeta: meta.ObjectMeta{Name: name, Labels: labels}}, meta.CreateOptions{})
	if err != nil {
		return err
	}
	for {
		node.Status = well(name, at)
		_, err = client.CoreV1().Nodes().UpdateStatus(ctx, node, meta.UpdateOptions{})
		if !errors.IsConflict(err) {
			return err
		}
		// The cluster's controllers write to a node as soon as it is there.
		if node, err = client.CoreV1().Nodes().Get(ctx, name, meta.GetOptions{}); err != nil {
			return err
		}
	}
}

// well is the status of a node that is ready.
func well(name string, at *net.TCPAddr) core.NodeStatus {
	room := core.ResourceList{
		core.ResourceCPU: resource.MustParse("1000"), core.ResourceMemory: resource.MustParse("16Ti"),
		core.ResourcePods: resource.MustParse("20000"), core.ResourceEphemeralStorage: resource.MustParse("16Ti"),
	}
	return core.NodeStatus{
		Capacity: room, Allocatable: room,
		Addresses:       []core.NodeAddress{{Type: core.NodeInternalIP, Address: at.IP.String()}, {Type: core.NodeHostName, Address: name}},
		DaemonEndpoints: core.NodeDaemonEndpoints{KubeletEndpoint: core.DaemonEndpoint{Port: int32(at.Port)}},
		NodeInfo:        core.NodeSystemInfo{KubeletVersion: "v1.36.0-fake", OperatingSystem: "linux", Architecture: "amd64"},
		Conditions:      []core.NodeCondition{{Type: core.NodeReady, Status: core.ConditionTrue, Reason: "KubeletReady", LastHeartbeatTime: meta.Now(), LastTransitionTime: meta.Now()}},
	}
}

// live says that the node is there, as a kubelet does: it renews its lease, without which the node would be lost after a while, and says again
// that it is ready when the cluster had given it up, or when somebody made it anew.
func live(ctx context.Context, client *kubernetes.Clientset, node *core.Node, at *net.TCPAddr) {
	leases := client.CoordinationV1().Leases(core.NamespaceNodeLease)
	name, now := node.Name, meta.NewMicroTime(time.Now())
	lease, err := leases.Get(ctx, name, meta.GetOptions{})
	if errors.IsNotFound(err) {
		duration := int32(40)
		lease = &coordination.Lease{ObjectMeta: meta.ObjectMeta{Name: name},
			Spec: coordination.LeaseSpec{HolderIdentity: &name, LeaseDurationSeconds: &duration, RenewTime: &now}}
		_, err = leases.Create(ctx, lease, meta.CreateOptions{})
	} else if err == nil {
		lease.Spec.RenewTime = &now
		_, err = leases.Update(ctx, lease, meta.UpdateOptions{})
	}
	if err != nil {
		log.Printf("lease of %s: %v", name, err)
	}
	for _, it := range node.Status.Conditions {
		if it.Type == core.NodeReady && it.Status == core.ConditionTrue {
			return
		}
	}
	next := node.DeepCopy()
	next.Status = well(name, at)
	if _, err := client.CoreV1().Nodes().UpdateStatus(ctx, next, meta.UpdateOptions{}); err != nil && !errors.IsConflict(err) {
		log.Printf("status of %s: %v", name, err)
	}
}

var addresses atomic.Uint32

// settle brings one pod to where a kubelet would have brought it.
func settle(ctx context.Context, client *kubernetes.Clientset, pod *core.Pod, manual bool) error {
	if pod.DeletionTimestamp != nil {
		now := int64(0)
		return client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, meta.DeleteOptions{
			GracePeriodSeconds: &now, Preconditions: meta.NewUIDPreconditions(string(pod.UID))})
	}
	if manual || pod.Status.Phase == core.PodSucceeded || pod.Status.Phase == core.PodFailed {
		return nil
	}
	address := pod.Status.PodIP
	if address == "" {
		n := addresses.Add(1)
		address = fmt.Sprintf("10.%d.%d.%d", 192+n>>16&15, n>>8&255, n&255)
	}
	status := statusOf(pod, address, meta.Now())
	if equality.Semantic.DeepEqual(status, pod.Status) {
		return nil
	}
	next := pod.DeepCopy()
	next.Status = status
	_, err := client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, next, meta.UpdateOptions{})
	return err
}

// statusOf is the status of a pod all of whose containers are well. Pure; what was already said is kept, so that it settles.
func statusOf(pod *core.Pod, address string, now meta.Time) core.PodStatus {
	status := *pod.Status.DeepCopy()
	ends := pod.Spec.RestartPolicy != core.RestartPolicyAlways
	began := now
	if status.StartTime != nil {
		began = *status.StartTime
	}
	status.StartTime, status.HostIP, status.PodIP = &began, "192.0.2.1", address
	status.HostIPs, status.PodIPs = []core.HostIP{{IP: status.HostIP}}, []core.PodIP{{IP: address}}
	status.ObservedGeneration = pod.Generation
	status.Phase = core.PodRunning
	if ends {
		status.Phase = core.PodSucceeded
	}
	running := core.ContainerState{Running: &core.ContainerStateRunning{StartedAt: began}}
	ended := core.ContainerState{Terminated: &core.ContainerStateTerminated{Reason: "Completed", StartedAt: began, FinishedAt: began}}
	say := func(container core.Container, ends bool) core.ContainerStatus {
		started, state := !ends, running
		if ends {
			state = ended
		}
		return core.ContainerStatus{Name: container.Name, Image: container.Image, ImageID: container.Image, Ready: true, Started: &started,
			State: state, ContainerID: fmt.Sprintf("fake://%s/%s", pod.UID, container.Name)}
	}
	status.InitContainerStatuses, status.ContainerStatuses = nil, nil
	for _, it := range pod.Spec.InitContainers {
		sidecar := it.RestartPolicy != nil && *it.RestartPolicy == core.ContainerRestartPolicyAlways
		status.InitContainerStatuses = append(status.InitContainerStatuses, say(it, !sidecar || ends))
	}
	for _, it := range pod.Spec.Containers {
		status.ContainerStatuses = append(status.ContainerStatuses, say(it, ends))
	}
	ready, why := core.ConditionTrue, ""
	if ends {
		ready, why = core.ConditionFalse, "PodCompleted"
	} else if gate := closedGate(pod); gate != "" {
		ready, why = core.ConditionFalse, "ReadinessGatesNotReady"
	}
	containers := core.ConditionTrue
	if ends {
		containers = core.ConditionFalse
	}
	set(&status, core.PodInitialized, core.ConditionTrue, "", now)
	set(&status, core.ContainersReady, containers, "", now)
	set(&status, core.PodReady, ready, why, now)
	return status
}

// closedGate is the first readiness gate that is not true.
func closedGate(pod *core.Pod) string {
	for _, gate := range pod.Spec.ReadinessGates {
		open := false
		for _, it := range pod.Status.Conditions {
			open = open || it.Type == gate.ConditionType && it.Status == core.ConditionTrue
		}
		if !open {
			return string(gate.ConditionType)
		}
	}
	return ""
}

func set(status *core.PodStatus, kind core.PodConditionType, value core.ConditionStatus, reason string, now meta.Time) {
	for i := range status.Conditions {
		if it := &status.Conditions[i]; it.Type == kind {
			if it.Status != value {
				it.Status, it.LastTransitionTime = value, now
			}
			it.Reason = reason
			return
		}
	}
	status.Conditions = append(status.Conditions, core.PodCondition{Type: kind, Status: value, Reason: reason, LastTransitionTime: now})
}
