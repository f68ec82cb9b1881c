package node

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	failure "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"dev.meshwright/tests/kube-node/network"
	"dev.meshwright/tests/kube-node/order"
)

const (
	// graceMin is the least time between a container's SIGTERM and its SIGKILL, whatever was asked, as the kubelet has it.
	graceMin = 2 * time.Second
	// retry after the API server or a volume failed.
	retry = time.Second
)

// worker runs one pod. Its own goroutine decides and writes the status; hooks, probes and stops run beside it and kick it.
type worker struct {
	node  *Node
	name  string
	uid   types.UID
	born  time.Time
	kicks chan struct{}

	// Of the worker's goroutine alone.
	facts     *facts
	sandbox   *network.Sandbox
	netns     *os.File
	folder    string
	volumes   *volumes
	order     order.Pod
	reported  *core.PodStatus
	refreshAt time.Time
	// trouble is why the pod cannot start yet.
	trouble error

	lock sync.Mutex
	// pod as last seen, by the lock; gone if it is not in the API any more.
	pod        *core.Pod
	gone       bool
	containers []*container
	// ending: the pod is being deleted, or all its main containers are done.
	ending bool
}

func newWorker(node *Node, pod *core.Pod) *worker {
	worker := &worker{node: node, name: pod.Namespace + "/" + pod.Name, uid: pod.UID, born: pod.CreationTimestamp.Time, kicks: make(chan struct{}, 1), pod: pod, order: order.Of(&pod.Spec)}
	worker.folder = filepath.Join(node.options.State, "pods", string(pod.UID))
	worker.volumes = &volumes{node, filepath.Join(worker.folder, "volumes"), map[string]token{}}
	for at := range worker.order.Containers {
		it := worker.order.Containers[at]
		spec := at
		list := pod.Spec.InitContainers
		if it.Kind == order.Main {
			spec, list = at-len(list), pod.Spec.Containers
		}
		backoff := order.Backoff{First: node.options.Backoff, Max: 5 * time.Minute, ResetAfter: 10 * time.Minute}
		worker.containers = append(worker.containers, &container{worker: worker, spec: &list[spec], kind: it.Kind, backoff: backoff})
	}
	return worker
}

func (worker *worker) log(event string, about ...any) {
	worker.node.log.Info(event, append([]any{"pod", worker.name, "uid", worker.uid}, about...)...)
}

// kick makes the worker look again soon.
func (worker *worker) kick() {
	select {
	case worker.kicks <- struct{}{}:
	default:
	}
}

// see takes a newer version of the pod; only what may change counts: deletion, labels, annotations, conditions of others.
func (worker *worker) see(pod *core.Pod, gone bool) {
	worker.lock.Lock()
	seen := pod.DeepCopy()
	seen.Spec = worker.pod.Spec
	worker.pod, worker.gone = seen, worker.gone || gone
	worker.lock.Unlock()
	worker.kick()
}

// run until the pod is gone, or the node ends.
func (worker *worker) run(ctx context.Context) {
	defer worker.clear()
	for {
		wake, done := worker.step(ctx)
		if done {
			return
		}
		timer := time.NewTimer(wake)
		select {
		case <-worker.kicks:
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			worker.kill()
			return
		}
		timer.Stop()
	}
}

// step does what is to do now and says how long it may rest.
func (worker *worker) step(ctx context.Context) (time.Duration, bool) {
	worker.lock.Lock()
	pod, gone := worker.pod, worker.gone
	worker.lock.Unlock()
	rest := worker.node.options.Refresh
	switch {
	case gone:
		worker.end(0)
	case pod.DeletionTimestamp != nil:
		worker.end(time.Duration(valueOr(pod.DeletionGracePeriodSeconds, 30)) * time.Second)
	case pod.Status.Phase == core.PodSucceeded || pod.Status.Phase == core.PodFailed:
		return rest, false
	case worker.ending:
	default:
		if worker.trouble = worker.prepare(ctx); worker.trouble != nil {
			worker.log("waits", "reason", worker.trouble.Error())
			rest = retry
		} else {
			rest = min(rest, worker.advance(ctx))
		}
	}
	if !worker.report(ctx) {
		rest = min(rest, retry)
	}
	worker.lock.Lock()
	ended := worker.ending && worker.stopped()
	worker.lock.Unlock()
	if !ended {
		return rest, false
	}
	worker.clear()
	if pod.DeletionTimestamp == nil && !gone {
		return rest, false
	}
	return retry, gone || worker.remove(ctx, pod)
}

// prepare makes the pod's namespace and volumes, once, and keeps the volumes fresh. The namespace comes first, as the kubelet's sandbox: a CNI
// plugin would be called right after Plug, and before it returns no container runs.
func (worker *worker) prepare(ctx context.Context) error {
	node := worker.node
	if worker.netns == nil {
		if err := os.MkdirAll(worker.folder, 0o755); err != nil {
			return fmt.Errorf("cannot make the pod's folder: %w", err)
		}
		facts := &facts{hostIPs: node.addresses(), podIPs: node.addresses(), capacity: node.capacity()}
		if worker.pod.Spec.HostNetwork {
			netns, err := os.Open("/proc/self/ns/net")
			if err != nil {
				return err
			}
			worker.netns = netns
		} else {
			sandbox, err := node.fabric.Plug()
			if err != nil {
				return err
			}
			worker.sandbox, worker.netns = sandbox, sandbox.Netns
			facts.podIPs = []string{sandbox.Addresses[0].String(), sandbox.Addresses[1].String()}
		}
		worker.facts = facts
	}
	worker.lock.Lock()
	worker.facts.pod = worker.pod
	worker.lock.Unlock()
	if now := time.Now(); !now.Before(worker.refreshAt) {
		if err := worker.volumes.refresh(ctx, worker.facts); err != nil {
			if worker.begun() {
				worker.log("keeps old volumes", "reason", err.Error())
				return nil
			}
			return err
		}
		worker.refreshAt = now.Add(node.options.Refresh)
	}
	return nil
}

// advance asks the order what is next until nothing is, and does it.
func (worker *worker) advance(ctx context.Context) time.Duration {
	for {
		now := time.Now()
		worker.lock.Lock()
		if worker.ending {
			worker.lock.Unlock()
			return worker.node.options.Refresh
		}
		next := order.Next(worker.order, worker.seen(), now)
		worker.lock.Unlock()
		for _, name := range next.Stop {
			it := worker.find(name)
			go it.stop(worker.stopGrace(it), false)
		}
		if next.Over {
			worker.end(time.Duration(valueOr(worker.facts.pod.Spec.TerminationGracePeriodSeconds, 30)) * time.Second)
		}
		if next.Start == "" {
			if next.WakeAt.IsZero() {
				return worker.node.options.Refresh
			}
			return max(next.WakeAt.Sub(now), time.Millisecond)
		}
		if err := worker.find(next.Start).start(ctx); err != nil {
			worker.log("cannot start", "container", next.Start, "reason", err.Error())
			return retry
		}
		worker.report(ctx)
	}
}

// end stops all containers in the order of a pod that ends; later calls change nothing.
func (worker *worker) end(grace time.Duration) {
	worker.lock.Lock()
	first := !worker.ending
	worker.ending = true
	worker.lock.Unlock()
	if first {
		worker.log("ends", "graceSecs", grace.Seconds())
		for _, it := range worker.containers {
			go it.stop(grace, true)
		}
	}
}

// seen is what the order needs to know, under the lock.
func (worker *worker) seen() map[string]order.Seen {
	seen := map[string]order.Seen{}
	for _, it := range worker.containers {
		seen[it.spec.Name] = order.Seen{State: it.state, Started: it.started, ExitCode: it.code, Doomed: it.doomed && !it.stopping, RestartAt: it.restartAt}
	}
	return seen
}

// stopped says whether nothing runs, under the lock.
func (worker *worker) stopped() bool {
	for _, it := range worker.containers {
		if it.state == order.Starting || it.state == order.Running {
			return false
		}
	}
	return true
}

func (worker *worker) begun() bool {
	worker.lock.Lock()
	defer worker.lock.Unlock()
	for _, it := range worker.containers {
		if it.state != order.Absent {
			return true
		}
	}
	return false
}

func (worker *worker) find(name string) *container {
	for _, it := range worker.containers {
		if it.spec.Name == name {
			return it
		}
	}
	return nil
}

// report writes the status if it changed; false if the API server did not take it.
func (worker *worker) report(ctx context.Context) bool {
	for {
		worker.lock.Lock()
		base, gone := worker.pod, worker.gone
		status := worker.status(base)
		worker.lock.Unlock()
		if gone || worker.reported != nil && equality.Semantic.DeepEqual(worker.reported, status) {
			return true
		}
		pod := base.DeepCopy()
		pod.Status = *status
		pods := worker.node.client.CoreV1().Pods(base.Namespace)
		written, err := pods.UpdateStatus(ctx, pod, meta.UpdateOptions{})
		switch {
		case err == nil:
			worker.reported = status
			worker.lock.Lock()
			written.Spec = worker.pod.Spec
			worker.pod = written
			worker.lock.Unlock()
			return true
		case failure.IsConflict(err):
			live, err := pods.Get(ctx, base.Name, meta.GetOptions{})
			if err != nil || live.UID != base.UID {
				return err == nil || failure.IsNotFound(err)
			}
			worker.lock.Lock()
			live.Spec = worker.pod.Spec
			worker.pod = live
			worker.lock.Unlock()
		case failure.IsNotFound(err):
			return true
		default:
			worker.log("cannot write a status", "reason", err.Error())
			return false
		}
	}
}

// remove ends the pod's deletion: everything it had has stopped.
func (worker *worker) remove(ctx context.Context, pod *core.Pod) bool {
	now := int64(0)
	options := meta.DeleteOptions{GracePeriodSeconds: &now, Preconditions: meta.NewUIDPreconditions(string(pod.UID))}
	err := worker.node.client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, options)
	return err == nil || failure.IsNotFound(err) || failure.IsConflict(err)
}

// clear gives back the pod's network and, once it is gone, its files.
func (worker *worker) clear() {
	if worker.sandbox != nil {
		worker.sandbox.Unplug()
	} else if worker.netns != nil {
		worker.netns.Close()
	}
	worker.sandbox, worker.netns = nil, nil
	worker.lock.Lock()
	defer worker.lock.Unlock()
	if worker.gone || worker.pod.DeletionTimestamp != nil {
		_ = os.RemoveAll(worker.folder)
	}
}

// kill ends everything at once: the node itself ends.
func (worker *worker) kill() {
	for _, it := range worker.containers {
		it.kill()
	}
}

func valueOr[T any](pointer *T, otherwise T) T {
	if pointer == nil {
		return otherwise
	}
	return *pointer
}
