// Package controllers are the few controllers that a test needs: Deployment, ReplicaSet, StatefulSet, DaemonSet, Job, EndpointSlice and a
// scheduler. Objects are read live before each decision, so none has to expect what its own cache does not show yet; the
// arithmetic is package rollout's. Garbage collection by owner, default accounts and the like are the API server's.
package controllers

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	core "k8s.io/api/core/v1"
	failure "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

// Cluster is what controllers work on.
type Cluster struct {
	client kubernetes.Interface
	log    *slog.Logger
	shared informers.SharedInformerFactory
}

// queue is one controller: names of objects to look at, and how. reconcile says when to look again, zero if only events matter.
type queue struct {
	kind      string
	names     workqueue.TypedRateLimitingInterface[types.NamespacedName]
	reconcile func(ctx context.Context, namespace, name string) (time.Duration, error)
}

// Run works until the context ends.
func Run(ctx context.Context, client kubernetes.Interface, log *slog.Logger) error {
	cluster := &Cluster{client: client, log: log, shared: informers.NewSharedInformerFactory(client, 0)}
	add := func(kind string, reconcile func(context.Context, string, string) (time.Duration, error)) *queue {
		limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](10*time.Millisecond, 5*time.Second)
		return &queue{kind, workqueue.NewTypedRateLimitingQueue(limiter), reconcile}
	}
	endpoints, err := newEndpoints(ctx, cluster)
	if err != nil {
		return err
	}
	queues := []*queue{
		add("Deployment", cluster.deployment), add("ReplicaSet", cluster.replicaSet), add("StatefulSet", cluster.statefulSet),
		add("DaemonSet", cluster.daemonSet), add("Job", cluster.job), add("Service", endpoints.service),
		add("Pod", cluster.schedule),
	}
	if err := cluster.watch(ctx, queues, endpoints); err != nil {
		return err
	}
	for _, queue := range queues {
		go queue.work(ctx, log)
	}
	log.Info("controllers ready")
	<-ctx.Done()
	for _, queue := range queues {
		queue.names.ShutDown()
	}
	return nil
}

// watch brings every change to the queues that it may concern: an object's own, its owner's; a Pod's Services; a Node's everybody's.
func (cluster *Cluster) watch(ctx context.Context, queues []*queue, endpoints *endpoints) error {
	by := map[string]*queue{}
	for _, queue := range queues {
		by[queue.kind] = queue
	}
	touch := func(kind, namespace, name string) {
		if queue := by[kind]; queue != nil {
			queue.names.Add(types.NamespacedName{Namespace: namespace, Name: name})
		}
	}
	apps, batch, plain := cluster.shared.Apps().V1(), cluster.shared.Batch().V1(), cluster.shared.Core().V1()
	kinds := map[string]cache.SharedIndexInformer{
		"Deployment": apps.Deployments().Informer(), "ReplicaSet": apps.ReplicaSets().Informer(), "StatefulSet": apps.StatefulSets().Informer(),
		"DaemonSet": apps.DaemonSets().Informer(), "Job": batch.Jobs().Informer(), "Service": plain.Services().Informer(),
		"Pod": plain.Pods().Informer(), "Node": plain.Nodes().Informer(),
	}
	for kind, informer := range kinds {
		changed := func(it any) {
			if unknown, is := it.(cache.DeletedFinalStateUnknown); is {
				it = unknown.Obj
			}
			object, is := it.(meta.Object)
			if !is {
				return
			}
			touch(kind, object.GetNamespace(), object.GetName())
			if owner := meta.GetControllerOf(object); owner != nil {
				touch(owner.Kind, object.GetNamespace(), owner.Name)
			}
			switch it := it.(type) {
			case *core.Pod:
				for _, service := range endpoints.of(it) {
					touch("Service", it.Namespace, service)
				}
			case *core.Node:
				cluster.everybody(touch)
			}
		}
		handler := cache.ResourceEventHandlerFuncs{
			AddFunc: changed, DeleteFunc: changed,
			UpdateFunc: func(old, fresh any) {
				changed(fresh)
				if pod, is := old.(*core.Pod); is && !labels.Equals(pod.Labels, fresh.(*core.Pod).Labels) {
					changed(old)
				}
			},
		}
		if _, err := informer.AddEventHandler(handler); err != nil {
			return err
		}
	}
	cluster.shared.Start(ctx.Done())
	for kind, synced := range cluster.shared.WaitForCacheSync(ctx.Done()) {
		if !synced {
			return fmt.Errorf("cannot list %s at the API server", kind)
		}
	}
	return nil
}

// everybody who looks at Nodes: DaemonSets, and Pods that found none.
func (cluster *Cluster) everybody(touch func(kind, namespace, name string)) {
	sets, _ := cluster.shared.Apps().V1().DaemonSets().Lister().List(labels.Everything())
	for _, set := range sets {
		touch("DaemonSet", set.Namespace, set.Name)
	}
	pods, _ := cluster.shared.Core().V1().Pods().Lister().List(labels.Everything())
	for _, pod := range pods {
		if pod.Spec.NodeName == "" {
			touch("Pod", pod.Namespace, pod.Name)
		}
	}
}

// work until the queue shuts down. One object of a kind at a time is enough for tests, and keeps each decision whole.
func (queue *queue) work(ctx context.Context, log *slog.Logger) {
	for {
		name, shut := queue.names.Get()
		if shut {
			return
		}
		again, err := queue.reconcile(ctx, name.Namespace, name.Name)
		switch {
		case err == nil || failure.IsNotFound(err):
			queue.names.Forget(name)
			if again > 0 {
				queue.names.AddAfter(name, again)
			}
		default:
			if !failure.IsConflict(err) {
				log.Warn("cannot reconcile", "kind", queue.kind, "name", name.String(), "reason", err.Error())
			}
			queue.names.AddRateLimited(name)
		}
		queue.names.Done(name)
	}
}

// owned are the live pods that an object controls.
func (cluster *Cluster) owned(ctx context.Context, owner meta.Object, selector *meta.LabelSelector) ([]*core.Pod, error) {
	options := meta.ListOptions{}
	if selector != nil {
		options.LabelSelector = meta.FormatLabelSelector(selector)
	}
	list, err := cluster.client.CoreV1().Pods(owner.GetNamespace()).List(ctx, options)
	if err != nil {
		return nil, err
	}
	var pods []*core.Pod
	for at := range list.Items {
		if meta.IsControlledBy(&list.Items[at], owner) {
			pods = append(pods, &list.Items[at])
		}
	}
	return pods, nil
}

// spawn makes a pod from a template. Without a name it gets one from its owner's.
func (cluster *Cluster) spawn(ctx context.Context, owner meta.Object, kind schema.GroupVersionKind, template *core.PodTemplateSpec, change func(*core.Pod)) error {
	template = template.DeepCopy()
	pod := &core.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.GenerateName, pod.Namespace = owner.GetName()+"-", owner.GetNamespace()
	pod.OwnerReferences = []meta.OwnerReference{*meta.NewControllerRef(owner, kind)}
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	if change != nil {
		change(pod)
	}
	_, err := cluster.client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, meta.CreateOptions{})
	return err
}

// dismiss deletes a pod, with its own grace.
func (cluster *Cluster) dismiss(ctx context.Context, pod *core.Pod) error {
	err := cluster.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, meta.DeleteOptions{Preconditions: meta.NewUIDPreconditions(string(pod.UID))})
	if failure.IsNotFound(err) || failure.IsConflict(err) {
		return nil
	}
	return err
}

// sooner is the earlier of two waits, of which zero is none.
func sooner(left, right time.Duration) time.Duration {
	if left == 0 || right != 0 && right < left {
		return right
	}
	return left
}
