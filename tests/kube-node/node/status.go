package node

import (
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dev.meshwright/tests/kube-node/order"
)

// status of the pod now, under the lock; conditions of others, and the times of those that did not change, are the base's.
func (worker *worker) status(base *core.Pod) *core.PodStatus {
	seen := worker.seen()
	status := &core.PodStatus{
		Phase: order.Phase(worker.order, seen), QOSClass: base.Status.QOSClass, StartTime: base.Status.StartTime,
		ObservedGeneration: base.Generation, Conditions: base.DeepCopy().Status.Conditions,
	}
	if status.QOSClass == "" {
		status.QOSClass = core.PodQOSBestEffort
	}
	if status.StartTime == nil {
		now := meta.Now().Rfc3339Copy()
		status.StartTime = &now
	}
	if worker.ending && base.DeletionTimestamp != nil && status.Phase == core.PodPending && worker.stopped() {
		status.Phase = core.PodFailed
	}
	if worker.ending && base.DeletionTimestamp != nil && status.Phase == core.PodRunning && worker.stopped() {
		status.Phase = worker.finalPhase()
	}
	if facts := worker.facts; facts != nil {
		status.HostIP, status.PodIP = facts.hostIPs[0], facts.podIPs[0]
		for _, address := range facts.hostIPs {
			status.HostIPs = append(status.HostIPs, core.HostIP{IP: address})
		}
		for _, address := range facts.podIPs {
			status.PodIPs = append(status.PodIPs, core.PodIP{IP: address})
		}
	}
	allReady := true
	for _, it := range worker.containers {
		its := it.status()
		if it.kind == order.Main {
			status.ContainerStatuses = append(status.ContainerStatuses, its)
		} else {
			status.InitContainerStatuses = append(status.InitContainerStatuses, its)
		}
		allReady = allReady && (its.Ready || it.kind == order.Init)
	}
	final := status.Phase == core.PodSucceeded || status.Phase == core.PodFailed
	initialized := order.Initialized(worker.order, seen) || status.Phase == core.PodSucceeded
	allReady = allReady && initialized && !final
	reason := ""
	switch {
	case status.Phase == core.PodSucceeded:
		reason = "PodCompleted"
	case status.Phase == core.PodFailed:
		reason = "PodFailed"
	case !allReady:
		reason = "ContainersNotReady"
	}
	set := func(kind core.PodConditionType, value bool, reason string) {
		if value {
			reason = ""
		}
		setCondition(status, kind, value, reason, base.Generation)
	}
	set(core.PodScheduled, true, "")
	set(core.PodReadyToStartContainers, worker.netns != nil, "")
	if worker.trouble != nil {
		setMessage(status, core.PodReadyToStartContainers, worker.trouble.Error())
	}
	set(core.PodInitialized, initialized, "ContainersNotInitialized")
	set(core.ContainersReady, allReady, reason)
	ready := allReady
	for _, gate := range base.Spec.ReadinessGates {
		if !isTrue(status, gate.ConditionType) {
			ready = false
			if allReady {
				reason = "ReadinessGatesNotReady"
			}
		}
	}
	set(core.PodReady, ready, reason)
	return status
}

// finalPhase of a pod that was deleted while it ran, everything being stopped.
func (worker *worker) finalPhase() core.PodPhase {
	for _, it := range worker.containers {
		if it.kind == order.Main && (it.state != order.Exited || it.code != 0) {
			return core.PodFailed
		}
	}
	return core.PodSucceeded
}

// status of one container, under the lock.
func (it *container) status() core.ContainerStatus {
	status := core.ContainerStatus{Name: it.spec.Name, Image: it.spec.Image, RestartCount: it.restarts}
	running := it.state == order.Starting || it.state == order.Running
	started := running && it.started && it.state == order.Running
	status.Started = &started
	switch {
	case running:
		status.State.Running = &core.ContainerStateRunning{StartedAt: meta.NewTime(it.run.began).Rfc3339Copy()}
		status.Ready = started && (it.ready || it.spec.ReadinessProbe == nil)
	case it.waiting != nil:
		status.State.Waiting = it.waiting
	case it.state == order.Exited && it.restarting():
		status.State.Waiting = &core.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "back-off restarting failed container " + it.spec.Name}
	case it.state == order.Exited:
		status.State.Terminated = rounded(it.ended)
		status.Ready = it.kind == order.Init && it.code == 0
	default:
		reason := "PodInitializing"
		if it.kind != order.Main && it.worker.facts == nil {
			reason = "ContainerCreating"
		}
		status.State.Waiting = &core.ContainerStateWaiting{Reason: reason}
	}
	if it.last != nil {
		status.LastTerminationState.Terminated = rounded(it.last)
	}
	if status.State.Waiting != nil && it.state == order.Exited {
		status.LastTerminationState.Terminated = rounded(it.ended)
	}
	if it.run != nil {
		status.ContainerID, status.ImageID = "box://"+it.run.id, "box://"+it.spec.Image
	}
	return status
}

// restarting says whether a container that ended only waits for its backoff.
func (it *container) restarting() bool {
	restart := it.worker.order.Restart
	return !it.worker.ending && (it.kind == order.Sidecar || restart == core.RestartPolicyAlways && (it.kind == order.Main || it.code != 0) ||
		restart == core.RestartPolicyOnFailure && it.code != 0)
}

// rounded to the seconds that the API carries, so that what is read back compares equal.
func rounded(ended *core.ContainerStateTerminated) *core.ContainerStateTerminated {
	copied := *ended
	copied.StartedAt, copied.FinishedAt = *copied.StartedAt.DeepCopy(), *copied.FinishedAt.DeepCopy()
	copied.StartedAt, copied.FinishedAt = copied.StartedAt.Rfc3339Copy(), copied.FinishedAt.Rfc3339Copy()
	return &copied
}

func setCondition(status *core.PodStatus, kind core.PodConditionType, value bool, reason string, generation int64) {
	word := core.ConditionFalse
	if value {
		word = core.ConditionTrue
	}
	fresh := core.PodCondition{Type: kind, Status: word, Reason: reason, ObservedGeneration: generation, LastTransitionTime: meta.Now().Rfc3339Copy()}
	for at := range status.Conditions {
		if status.Conditions[at].Type == kind {
			if status.Conditions[at].Status == word {
				fresh.LastTransitionTime = status.Conditions[at].LastTransitionTime
			}
			status.Conditions[at] = fresh
			return
		}
	}
	status.Conditions = append(status.Conditions, fresh)
}

func setMessage(status *core.PodStatus, kind core.PodConditionType, message string) {
	for at := range status.Conditions {
		if status.Conditions[at].Type == kind {
			status.Conditions[at].Message = message
		}
	}
}

func isTrue(status *core.PodStatus, kind core.PodConditionType) bool {
	for _, condition := range status.Conditions {
		if condition.Type == kind {
			return condition.Status == core.ConditionTrue
		}
	}
	return false
}
