package main

// The StorageClass `standard`: folders of this machine, made for a claim when its first pod is scheduled, removed with the claim, grown by
// a word. It stands for the provisioner that every real cluster has.

import (
	"context"
	"log"
	"os"
	"path/filepath"
	"time"

	core "k8s.io/api/core/v1"
	storage "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
)

const (
	class       = "standard"
	provisioner = "kubetest/folders"
	provisioned = "pv.kubernetes.io/provisioned-by"
	chosenNode  = "volume.kubernetes.io/selected-node"
)

func provideStorage(ctx context.Context, kubeconfig, folder string) error {
	client, err := connect(kubeconfig)
	if err != nil {
		return err
	}
	_, err = client.StorageV1().StorageClasses().Create(ctx, &storage.StorageClass{
		ObjectMeta:           meta.ObjectMeta{Name: class, Annotations: map[string]string{"storageclass.kubernetes.io/is-default-class": "true"}},
		Provisioner:          provisioner,
		VolumeBindingMode:    ptr.To(storage.VolumeBindingWaitForFirstConsumer),
		AllowVolumeExpansion: ptr.To(true),
	}, meta.CreateOptions{})
	if err != nil && !errors.IsAlreadyExists(err) {
		return err
	}
	bell := make(chan struct{}, 1)
	ring := func() {
		select {
		case bell <- struct{}{}:
		default:
		}
	}
	handler := cache.ResourceEventHandlerFuncs{AddFunc: func(any) { ring() }, UpdateFunc: func(_, _ any) { ring() }}
	informed := informers.NewSharedInformerFactory(client, 0)
	claims, volumes := informed.Core().V1().PersistentVolumeClaims(), informed.Core().V1().PersistentVolumes()
	for _, it := range []cache.SharedIndexInformer{claims.Informer(), volumes.Informer()} {
		if _, err := it.AddEventHandler(handler); err != nil {
			return err
		}
	}
	informed.Start(ctx.Done())
	informed.WaitForCacheSync(ctx.Done())
	for {
		failed := false
		for _, it := range claims.Informer().GetStore().List() {
			failed = report(settleClaim(ctx, client, it.(*core.PersistentVolumeClaim), folder)) || failed
		}
		for _, it := range volumes.Informer().GetStore().List() {
			failed = report(settleVolume(ctx, client, it.(*core.PersistentVolume))) || failed
		}
		if failed {
			time.AfterFunc(time.Second, ring)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-bell:
		}
	}
}

// report says whether this is worth another look; conflicts bring their own.
func report(err error) bool {
	if err == nil || errors.IsConflict(err) || errors.IsNotFound(err) || errors.IsAlreadyExists(err) {
		return false
	}
	log.Print(err)
	return true
}

func settleClaim(ctx context.Context, client *kubernetes.Clientset, claim *core.PersistentVolumeClaim, folder string) error {
	if claim.DeletionTimestamp != nil || claim.Spec.StorageClassName == nil || *claim.Spec.StorageClassName != class {
		return nil
	}
	wanted := claim.Spec.Resources.Requests[core.ResourceStorage]
	if claim.Spec.VolumeName == "" {
		node := claim.Annotations[chosenNode]
		if node == "" {
			return nil
		}
		name := "pvc-" + string(claim.UID)
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(path, 0o777); err != nil {
			return err
		}
		// Pods may run as anybody; the umask is not theirs.
		if err := os.Chmod(path, 0o777); err != nil {
			return err
		}
		_, err := client.CoreV1().PersistentVolumes().Create(ctx, &core.PersistentVolume{
			ObjectMeta: meta.ObjectMeta{Name: name, Annotations: map[string]string{provisioned: provisioner}},
			Spec: core.PersistentVolumeSpec{
				Capacity: core.ResourceList{core.ResourceStorage: wanted}, AccessModes: claim.Spec.AccessModes, VolumeMode: claim.Spec.VolumeMode,
				PersistentVolumeReclaimPolicy: core.PersistentVolumeReclaimDelete, StorageClassName: class,
				ClaimRef:               &core.ObjectReference{APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: claim.UID},
				PersistentVolumeSource: core.PersistentVolumeSource{HostPath: &core.HostPathVolumeSource{Path: path}},
				NodeAffinity: &core.VolumeNodeAffinity{Required: &core.NodeSelector{NodeSelectorTerms: []core.NodeSelectorTerm{{
					MatchExpressions: []core.NodeSelectorRequirement{{Key: core.LabelHostname, Operator: core.NodeSelectorOpIn, Values: []string{node}}}}}}},
			},
		}, meta.CreateOptions{})
		return err
	}
	has := claim.Status.Capacity[core.ResourceStorage]
	if claim.Status.Phase != core.ClaimBound || wanted.Cmp(has) <= 0 {
		return nil
	}
	volume, err := client.CoreV1().PersistentVolumes().Get(ctx, claim.Spec.VolumeName, meta.GetOptions{})
	if err != nil || volume.Annotations[provisioned] != provisioner {
		return err
	}
	volume.Spec.Capacity[core.ResourceStorage] = wanted
	if _, err := client.CoreV1().PersistentVolumes().Update(ctx, volume, meta.UpdateOptions{}); err != nil {
		return err
	}
	next := claim.DeepCopy()
	next.Status.Capacity[core.ResourceStorage] = wanted
	_, err = client.CoreV1().PersistentVolumeClaims(claim.Namespace).UpdateStatus(ctx, next, meta.UpdateOptions{})
	return err
}

func settleVolume(ctx context.Context, client *kubernetes.Clientset, volume *core.PersistentVolume) error {
	if volume.Status.Phase != core.VolumeReleased || volume.Annotations[provisioned] != provisioner || volume.DeletionTimestamp != nil {
		return nil
	}
	if err := os.RemoveAll(volume.Spec.HostPath.Path); err != nil {
		return err
	}
	return client.CoreV1().PersistentVolumes().Delete(ctx, volume.Name, meta.DeleteOptions{})
}
