package controllers

import (
	"context"
	"fmt"
	"time"

	apps "k8s.io/api/apps/v1"
	batch "k8s.io/api/batch/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	failure "k8s.io/apimachinery/pkg/api/errors"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"

	"dev.meshwright/tests/kube-node/rollout"
)

// statefulSet keeps one pod per ordinal: made in order unless the policy is Parallel, updated from the last, one at a time. Claims of
// volumes are not emulated, nor are ControllerRevision objects.
func (cluster *Cluster) statefulSet(ctx context.Context, namespace, name string) (time.Duration, error) {
	set, err := cluster.client.AppsV1().StatefulSets(namespace).Get(ctx, name, meta.GetOptions{})
	if err != nil || set.DeletionTimestamp != nil {
		return 0, err
	}
	if len(set.Spec.VolumeClaimTemplates) > 0 {
		return 0, fmt.Errorf("volumeClaimTemplates are not emulated; use an emptyDir")
	}
	all, err := cluster.owned(ctx, set, set.Spec.Selector)
	if err != nil {
		return 0, err
	}
	pods := map[string]*core.Pod{}
	for _, pod := range all {
		pods[pod.Name] = pod
	}
	replicas := int(rollout.Replicas(set.Spec.Replicas))
	parallel := set.Spec.PodManagementPolicy == apps.ParallelPodManagement
	update := name + "-" + rollout.Hash(&set.Spec.Template)
	status := apps.StatefulSetStatus{ObservedGeneration: set.Generation, UpdateRevision: update, CurrentRevision: set.Status.CurrentRevision, CollisionCount: new(int32)}
	again, settled := time.Duration(0), true
	for at := range replicas {
		name := fmt.Sprintf("%s-%d", set.Name, at)
		pod := pods[name]
		delete(pods, name)
		if pod == nil {
			if !settled && !parallel {
				break
			}
			settled = false
			if err := cluster.spawn(ctx, set, apps.SchemeGroupVersion.WithKind("StatefulSet"), &set.Spec.Template, member(set, at, name, update)); err != nil {
				return 0, err
			}
			continue
		}
		if !rollout.Active(pod) && pod.DeletionTimestamp == nil {
			if err := cluster.dismiss(ctx, pod); err != nil {
				return 0, err
			}
		}
		status.Replicas++
		if pod.Labels[apps.StatefulSetRevisionLabel] == update {
			status.UpdatedReplicas++
		} else {
			status.CurrentReplicas++
		}
		if ready, _ := rollout.Ready(pod); ready {
			status.ReadyReplicas++
		}
		available, left := rollout.Available(pod, set.Spec.MinReadySeconds, time.Now())
		if available {
			status.AvailableReplicas++
		}
		again = sooner(again, left)
		settled = settled && available && pod.DeletionTimestamp == nil
	}
	if err := cluster.shrink(ctx, set, pods, replicas, settled, update); err != nil {
		return 0, err
	}
	if status.UpdatedReplicas == int32(replicas) || status.CurrentRevision == "" {
		status.CurrentRevision, status.CurrentReplicas = update, status.UpdatedReplicas
	}
	if equality.Semantic.DeepEqual(set.Status, status) {
		return again, nil
	}
	set.Status = status
	_, err = cluster.client.AppsV1().StatefulSets(namespace).UpdateStatus(ctx, set, meta.UpdateOptions{})
	return again, err
}

// member is what one pod of a StatefulSet has of its own.
func member(set *apps.StatefulSet, at int, name, update string) func(*core.Pod) {
	return func(pod *core.Pod) {
		pod.Name, pod.GenerateName = name, ""
		pod.Labels[apps.StatefulSetPodNameLabel], pod.Labels[apps.PodIndexLabel] = name, fmt.Sprint(at)
		pod.Labels[apps.StatefulSetRevisionLabel] = update
		pod.Spec.Hostname, pod.Spec.Subdomain = name, set.Spec.ServiceName
	}
}

// shrink ends pods beyond the count, the last first, then the last one of an old template.
func (cluster *Cluster) shrink(ctx context.Context, set *apps.StatefulSet, beyond map[string]*core.Pod, replicas int, settled bool, update string) error {
	for at := replicas + len(beyond) - 1; at >= replicas; at-- {
		if pod := beyond[fmt.Sprintf("%s-%d", set.Name, at)]; pod != nil {
			if pod.DeletionTimestamp != nil {
				return nil
			}
			return cluster.dismiss(ctx, pod)
		}
	}
	if set.Spec.UpdateStrategy.Type == apps.OnDeleteStatefulSetStrategyType || !settled {
		return nil
	}
	partition := 0
	if rolling := set.Spec.UpdateStrategy.RollingUpdate; rolling != nil {
		partition = int(valueOr(rolling.Partition, 0))
	}
	for at := replicas - 1; at >= partition; at-- {
		pod, err := cluster.client.CoreV1().Pods(set.Namespace).Get(ctx, fmt.Sprintf("%s-%d", set.Name, at), meta.GetOptions{})
		if err != nil {
			return err
		}
		if pod.Labels[apps.StatefulSetRevisionLabel] != update {
			return cluster.dismiss(ctx, pod)
		}
	}
	return nil
}

// daemonSet keeps one pod per node that its nodeSelector takes; an update replaces maxUnavailable of them at a time. maxSurge and taints
// are not emulated.
func (cluster *Cluster) daemonSet(ctx context.Context, namespace, name string) (time.Duration, error) {
	set, err := cluster.client.AppsV1().DaemonSets(namespace).Get(ctx, name, meta.GetOptions{})
	if err != nil || set.DeletionTimestamp != nil {
		return 0, err
	}
	pods, err := cluster.owned(ctx, set, set.Spec.Selector)
	if err != nil {
		return 0, err
	}
	nodes, err := cluster.nodes(&set.Spec.Template.Spec)
	if err != nil {
		return 0, err
	}
	update := rollout.Hash(&set.Spec.Template)
	status := apps.DaemonSetStatus{ObservedGeneration: set.Generation, DesiredNumberScheduled: int32(len(nodes))}
	on := map[string]*core.Pod{}
	for _, pod := range pods {
		if on[pod.Spec.NodeName] == nil || pod.DeletionTimestamp == nil {
			on[pod.Spec.NodeName] = pod
		}
	}
	again := time.Duration(0)
	var stale []*core.Pod
	for _, node := range nodes {
		pod := on[node.Name]
		if pod == nil {
			err := cluster.spawn(ctx, set, apps.SchemeGroupVersion.WithKind("DaemonSet"), &set.Spec.Template, func(pod *core.Pod) {
				pod.Spec.NodeName, pod.Labels[apps.DefaultDaemonSetUniqueLabelKey] = node.Name, update
			})
			if err != nil {
				return 0, err
			}
			continue
		}
		if !rollout.Active(pod) && pod.DeletionTimestamp == nil {
			if err := cluster.dismiss(ctx, pod); err != nil {
				return 0, err
			}
		}
		status.CurrentNumberScheduled++
		if pod.Labels[apps.DefaultDaemonSetUniqueLabelKey] == update {
			status.UpdatedNumberScheduled++
		} else if pod.DeletionTimestamp == nil {
			stale = append(stale, pod)
		}
		if ready, _ := rollout.Ready(pod); ready {
			status.NumberReady++
		}
		available, left := rollout.Available(pod, set.Spec.MinReadySeconds, time.Now())
		if available {
			status.NumberAvailable++
		}
		again = sooner(again, left)
	}
	status.NumberUnavailable = status.DesiredNumberScheduled - status.NumberAvailable
	if set.Spec.UpdateStrategy.Type != apps.OnDeleteDaemonSetStrategyType {
		allowed := intstr.FromInt32(1)
		if rolling := set.Spec.UpdateStrategy.RollingUpdate; rolling != nil && rolling.MaxUnavailable != nil {
			allowed = *rolling.MaxUnavailable
		}
		count, _ := intstr.GetScaledValueFromIntOrPercent(&allowed, len(nodes), true)
		for _, pod := range stale[:min(len(stale), max(0, count-int(status.NumberUnavailable)))] {
			if err := cluster.dismiss(ctx, pod); err != nil {
				return 0, err
			}
		}
	}
	if equality.Semantic.DeepEqual(set.Status, status) {
		return again, nil
	}
	set.Status = status
	_, err = cluster.client.AppsV1().DaemonSets(namespace).UpdateStatus(ctx, set, meta.UpdateOptions{})
	return again, err
}

// job starts pods until enough have succeeded. Indexed completion, podFailurePolicy, successPolicy and the wait between failures are not
// emulated.
func (cluster *Cluster) job(ctx context.Context, namespace, name string) (time.Duration, error) {
	job, err := cluster.client.BatchV1().Jobs(namespace).Get(ctx, name, meta.GetOptions{})
	if err != nil || job.DeletionTimestamp != nil {
		return 0, err
	}
	if finished := job.Status.CompletionTime; finished != nil && job.Spec.TTLSecondsAfterFinished != nil {
		left := time.Until(finished.Add(time.Duration(*job.Spec.TTLSecondsAfterFinished) * time.Second))
		if left > 0 {
			return left, nil
		}
		policy := meta.DeletePropagationBackground
		return 0, cluster.client.BatchV1().Jobs(namespace).Delete(ctx, name, meta.DeleteOptions{PropagationPolicy: &policy})
	}
	for _, condition := range job.Status.Conditions {
		if condition.Status == core.ConditionTrue && (condition.Type == batch.JobComplete || condition.Type == batch.JobFailed) {
			return 0, nil
		}
	}
	pods, err := cluster.owned(ctx, job, nil)
	if err != nil {
		return 0, err
	}
	now := meta.Now().Rfc3339Copy()
	status := job.Status.DeepCopy()
	if status.StartTime == nil {
		status.StartTime = &now
	}
	work := rollout.Tally(pods)
	start, complete, failed := rollout.Wanted(job.Spec.Parallelism, job.Spec.Completions, job.Spec.BackoffLimit, work)
	reason, message, again := "BackoffLimitExceeded", "Job has reached the specified backoff limit", time.Duration(0)
	if deadline := job.Spec.ActiveDeadlineSeconds; deadline != nil && !complete {
		if again = time.Until(status.StartTime.Add(time.Duration(*deadline) * time.Second)); again <= 0 {
			failed, reason, message = true, "DeadlineExceeded", "Job was active longer than specified deadline"
		}
	}
	if valueOr(job.Spec.Suspend, false) {
		start = 0
	}
	if complete || failed {
		start = 0
		for _, pod := range pods {
			if rollout.Active(pod) {
				if err := cluster.dismiss(ctx, pod); err != nil {
					return 0, err
				}
			}
		}
	}
	for range start {
		err := cluster.spawn(ctx, job, batch.SchemeGroupVersion.WithKind("Job"), &job.Spec.Template, func(pod *core.Pod) {
			for _, key := range []string{"job-name", batch.JobNameLabel} {
				pod.Labels[key] = job.Name
			}
			for _, key := range []string{"controller-uid", batch.ControllerUidLabel} {
				pod.Labels[key] = string(job.UID)
			}
		})
		if err != nil {
			return 0, err
		}
		work.Active++
	}
	status.Active, status.Ready, status.Succeeded, status.Failed = work.Active, &work.Ready, work.Succeeded, work.Failed
	conclude := func(kinds ...batch.JobConditionType) {
		for _, kind := range kinds {
			status.Conditions = append(status.Conditions, batch.JobCondition{
				Type: kind, Status: core.ConditionTrue, Reason: reason, Message: message, LastProbeTime: now, LastTransitionTime: now,
			})
		}
	}
	switch {
	case failed:
		conclude(batch.JobFailureTarget, batch.JobFailed)
	case complete:
		reason, message = "CompletionsReached", "Reached expected number of succeeded pods"
		status.CompletionTime = &now
		conclude(batch.JobSuccessCriteriaMet, batch.JobComplete)
	}
	if equality.Semantic.DeepEqual(&job.Status, status) {
		return again, nil
	}
	job.Status = *status
	_, err = cluster.client.BatchV1().Jobs(namespace).UpdateStatus(ctx, job, meta.UpdateOptions{})
	return again, err
}

// nodes that are ready and that a pod's nodeSelector takes.
func (cluster *Cluster) nodes(spec *core.PodSpec) ([]*core.Node, error) {
	all, err := cluster.shared.Core().V1().Nodes().Lister().List(labels.SelectorFromSet(spec.NodeSelector))
	var nodes []*core.Node
	for _, node := range all {
		for _, condition := range node.Status.Conditions {
			if condition.Type == core.NodeReady && condition.Status == core.ConditionTrue && !node.Spec.Unschedulable {
				nodes = append(nodes, node)
			}
		}
	}
	return nodes, err
}

// schedule gives a pod to the node with the fewest pods. Requests, affinities, taints and topology are not looked at, the nodeSelector is.
func (cluster *Cluster) schedule(ctx context.Context, namespace, name string) (time.Duration, error) {
	cached, err := cluster.shared.Core().V1().Pods().Lister().Pods(namespace).Get(name)
	if err != nil || cached.Spec.NodeName != "" || cached.DeletionTimestamp != nil || len(cached.Spec.SchedulingGates) > 0 {
		return 0, err
	}
	nodes, err := cluster.nodes(&cached.Spec)
	if err != nil || len(nodes) == 0 {
		return 0, err
	}
	all, err := cluster.shared.Core().V1().Pods().Lister().List(labels.Everything())
	if err != nil {
		return 0, err
	}
	held := map[string]int{}
	for _, pod := range all {
		if rollout.Active(pod) {
			held[pod.Spec.NodeName]++
		}
	}
	best := nodes[0]
	for _, node := range nodes[1:] {
		if held[node.Name] < held[best.Name] || held[node.Name] == held[best.Name] && node.Name < best.Name {
			best = node
		}
	}
	binding := &core.Binding{
		ObjectMeta: meta.ObjectMeta{Namespace: namespace, Name: name, UID: cached.UID}, Target: core.ObjectReference{Kind: "Node", Name: best.Name},
	}
	err = cluster.client.CoreV1().Pods(namespace).Bind(ctx, binding, meta.CreateOptions{})
	if failure.IsConflict(err) || failure.IsNotFound(err) {
		return 0, nil
	}
	return 0, err
}
