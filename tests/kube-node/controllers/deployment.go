package controllers

import (
	"context"
	"fmt"
	"sort"
	"strconv"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"

	"dev.meshwright/tests/kube-node/rollout"
)

const revision = "deployment.kubernetes.io/revision"

// deployment moves a Deployment one step: its template's ReplicaSet up, the others down.
func (cluster *Cluster) deployment(ctx context.Context, namespace, name string) (time.Duration, error) {
	deployment, err := cluster.client.AppsV1().Deployments(namespace).Get(ctx, name, meta.GetOptions{})
	if err != nil || deployment.DeletionTimestamp != nil {
		return 0, err
	}
	fresh, old, err := cluster.replicaSets(ctx, deployment)
	if err != nil {
		return 0, err
	}
	if fresh == nil && !deployment.Spec.Paused {
		if fresh, err = cluster.newReplicaSet(ctx, deployment, old); err != nil {
			return 0, err
		}
	}
	if fresh != nil {
		if err := cluster.roll(ctx, deployment, fresh, old); err != nil {
			return 0, err
		}
	}
	return cluster.deploymentStatus(ctx, deployment, fresh, old)
}

// replicaSets of a Deployment: its template's, if there is one, and the others, oldest first.
func (cluster *Cluster) replicaSets(ctx context.Context, deployment *apps.Deployment) (*apps.ReplicaSet, []*apps.ReplicaSet, error) {
	options := meta.ListOptions{LabelSelector: meta.FormatLabelSelector(deployment.Spec.Selector)}
	list, err := cluster.client.AppsV1().ReplicaSets(deployment.Namespace).List(ctx, options)
	if err != nil {
		return nil, nil, err
	}
	hash := rollout.Hash(&deployment.Spec.Template)
	var fresh *apps.ReplicaSet
	var old []*apps.ReplicaSet
	for at := range list.Items {
		set := &list.Items[at]
		switch {
		case !meta.IsControlledBy(set, deployment) || set.DeletionTimestamp != nil:
		case set.Labels[apps.DefaultDeploymentUniqueLabelKey] == hash:
			fresh = set
		default:
			old = append(old, set)
		}
	}
	sort.Slice(old, func(left, right int) bool { return number(old[left]) < number(old[right]) })
	return fresh, old, nil
}

func number(set *apps.ReplicaSet) int {
	at, _ := strconv.Atoi(set.Annotations[revision])
	return at
}

func (cluster *Cluster) newReplicaSet(ctx context.Context, deployment *apps.Deployment, old []*apps.ReplicaSet) (*apps.ReplicaSet, error) {
	hash, none := rollout.Hash(&deployment.Spec.Template), int32(0)
	next := 1
	if len(old) > 0 {
		next = number(old[len(old)-1]) + 1
	}
	labelled := func(labels map[string]string) map[string]string {
		all := map[string]string{apps.DefaultDeploymentUniqueLabelKey: hash}
		for key, value := range labels {
			all[key] = value
		}
		return all
	}
	set := &apps.ReplicaSet{
		ObjectMeta: meta.ObjectMeta{
			Name: deployment.Name + "-" + hash, Namespace: deployment.Namespace, Labels: labelled(deployment.Spec.Template.Labels),
			Annotations:     map[string]string{revision: strconv.Itoa(next)},
			OwnerReferences: []meta.OwnerReference{*meta.NewControllerRef(deployment, apps.SchemeGroupVersion.WithKind("Deployment"))},
		},
		Spec: apps.ReplicaSetSpec{
			Replicas: &none, MinReadySeconds: deployment.Spec.MinReadySeconds, Selector: deployment.Spec.Selector.DeepCopy(), Template: *deployment.Spec.Template.DeepCopy(),
		},
	}
	set.Spec.Selector.MatchLabels = labelled(set.Spec.Selector.MatchLabels)
	set.Spec.Template.Labels = labelled(set.Spec.Template.Labels)
	return cluster.client.AppsV1().ReplicaSets(deployment.Namespace).Create(ctx, set, meta.CreateOptions{})
}

// roll scales the ReplicaSets one step on, and drops old empty ones beyond the history's limit.
func (cluster *Cluster) roll(ctx context.Context, deployment *apps.Deployment, fresh *apps.ReplicaSet, old []*apps.ReplicaSet) error {
	replicas := rollout.Replicas(deployment.Spec.Replicas)
	next, sizes := replicas, make([]int32, len(old))
	switch {
	case deployment.Spec.Paused:
		return nil
	case deployment.Spec.Strategy.Type == apps.RecreateDeploymentStrategyType:
		for _, set := range old {
			pods, err := cluster.owned(ctx, set, set.Spec.Selector)
			if err != nil {
				return err
			}
			if len(pods) > 0 {
				next = rollout.Replicas(fresh.Spec.Replicas)
			}
		}
	default:
		surge, unavailable := rollout.Bounds(deployment)
		var sets []rollout.Set
		for _, set := range old {
			sets = append(sets, size(set))
		}
		next, sizes = rollout.Roll(replicas, surge, unavailable, size(fresh), sets)
	}
	if err := cluster.scale(ctx, fresh, next, deployment.Spec.MinReadySeconds); err != nil {
		return err
	}
	for at, set := range old {
		if err := cluster.scale(ctx, set, sizes[at], deployment.Spec.MinReadySeconds); err != nil {
			return err
		}
	}
	spare := len(old) - int(valueOr(deployment.Spec.RevisionHistoryLimit, 10))
	for _, set := range old[:max(0, spare)] {
		if rollout.Replicas(set.Spec.Replicas) == 0 && set.Status.Replicas == 0 {
			if err := cluster.client.AppsV1().ReplicaSets(set.Namespace).Delete(ctx, set.Name, meta.DeleteOptions{}); err != nil {
				return err
			}
		}
	}
	// A template that was there before becomes the latest revision again.
	if len(old) > 0 && number(fresh) <= number(old[len(old)-1]) {
		fresh.Annotations[revision] = strconv.Itoa(number(old[len(old)-1]) + 1)
		_, err := cluster.client.AppsV1().ReplicaSets(fresh.Namespace).Update(ctx, fresh, meta.UpdateOptions{})
		return err
	}
	return nil
}

func size(set *apps.ReplicaSet) rollout.Set {
	replicas := rollout.Replicas(set.Spec.Replicas)
	return rollout.Set{Replicas: replicas, Available: min(replicas, set.Status.AvailableReplicas)}
}

func (cluster *Cluster) scale(ctx context.Context, set *apps.ReplicaSet, replicas, minReadySecs int32) error {
	if rollout.Replicas(set.Spec.Replicas) == replicas && set.Spec.MinReadySeconds == minReadySecs {
		return nil
	}
	set.Spec.Replicas, set.Spec.MinReadySeconds = &replicas, minReadySecs
	written, err := cluster.client.AppsV1().ReplicaSets(set.Namespace).Update(ctx, set, meta.UpdateOptions{})
	if err == nil {
		*set = *written
	}
	return err
}

func (cluster *Cluster) deploymentStatus(ctx context.Context, deployment *apps.Deployment, fresh *apps.ReplicaSet, old []*apps.ReplicaSet) (time.Duration, error) {
	asked := rollout.Replicas(deployment.Spec.Replicas)
	was := deployment.Status
	status := apps.DeploymentStatus{ObservedGeneration: deployment.Generation, CollisionCount: was.CollisionCount}
	status.Conditions = deployment.DeepCopy().Status.Conditions
	for at, set := range append([]*apps.ReplicaSet{fresh}, old...) {
		if set == nil {
			continue
		}
		if at == 0 {
			status.UpdatedReplicas = set.Status.Replicas
		}
		status.Replicas += set.Status.Replicas
		status.ReadyReplicas += set.Status.ReadyReplicas
		status.AvailableReplicas += set.Status.AvailableReplicas
	}
	status.UnavailableReplicas = max(0, asked-status.AvailableReplicas)
	_, unavailable := rollout.Bounds(deployment)
	available := status.AvailableReplicas >= asked-unavailable
	reason := "MinimumReplicasUnavailable"
	if available {
		reason = "MinimumReplicasAvailable"
	}
	setDeployment(&status, apps.DeploymentAvailable, available, reason, false)
	complete := status.UpdatedReplicas == asked && status.Replicas == asked && status.AvailableReplicas == asked
	moved := was.UpdatedReplicas != status.UpdatedReplicas || was.AvailableReplicas != status.AvailableReplicas || was.Replicas != status.Replicas ||
		was.ObservedGeneration != status.ObservedGeneration
	again := time.Duration(0)
	if complete {
		setDeployment(&status, apps.DeploymentProgressing, true, "NewReplicaSetAvailable", false)
	} else {
		// Progress is late when nothing has moved for the deadline.
		left := time.Duration(valueOr(deployment.Spec.ProgressDeadlineSeconds, 600)) * time.Second
		for _, condition := range was.Conditions {
			if condition.Type == apps.DeploymentProgressing && !moved {
				left -= time.Since(condition.LastUpdateTime.Time)
			}
		}
		if left > 0 {
			again = left
			setDeployment(&status, apps.DeploymentProgressing, true, "ReplicaSetUpdated", moved)
		} else {
			setDeployment(&status, apps.DeploymentProgressing, false, "ProgressDeadlineExceeded", false)
		}
	}
	if equality.Semantic.DeepEqual(was, status) {
		return again, nil
	}
	deployment.Status = status
	_, err := cluster.client.AppsV1().Deployments(deployment.Namespace).UpdateStatus(ctx, deployment, meta.UpdateOptions{})
	return again, err
}

func setDeployment(status *apps.DeploymentStatus, kind apps.DeploymentConditionType, value bool, reason string, touch bool) {
	word, now := core.ConditionFalse, meta.Now().Rfc3339Copy()
	if value {
		word = core.ConditionTrue
	}
	for at := range status.Conditions {
		condition := &status.Conditions[at]
		if condition.Type != kind {
			continue
		}
		if condition.Status != word {
			condition.LastTransitionTime = now
		}
		if condition.Status != word || condition.Reason != reason || touch {
			condition.LastUpdateTime = now
		}
		condition.Status, condition.Reason = word, reason
		return
	}
	status.Conditions = append(status.Conditions, apps.DeploymentCondition{Type: kind, Status: word, Reason: reason, LastUpdateTime: now, LastTransitionTime: now})
}

// replicaSet makes the pods that are missing, or ends those that are too many.
func (cluster *Cluster) replicaSet(ctx context.Context, namespace, name string) (time.Duration, error) {
	set, err := cluster.client.AppsV1().ReplicaSets(namespace).Get(ctx, name, meta.GetOptions{})
	if err != nil || set.DeletionTimestamp != nil {
		return 0, err
	}
	all, err := cluster.owned(ctx, set, set.Spec.Selector)
	if err != nil {
		return 0, err
	}
	var pods []*core.Pod
	for _, pod := range all {
		if rollout.Active(pod) {
			pods = append(pods, pod)
		}
	}
	missing := int(rollout.Replicas(set.Spec.Replicas)) - len(pods)
	var trouble error
	for range max(0, missing) {
		if trouble = cluster.spawn(ctx, set, apps.SchemeGroupVersion.WithKind("ReplicaSet"), &set.Spec.Template, nil); trouble != nil {
			break
		}
	}
	for _, pod := range rollout.Doomed(pods, -missing) {
		if err := cluster.dismiss(ctx, pod); err != nil {
			return 0, err
		}
	}
	status, again := apps.ReplicaSetStatus{Replicas: int32(len(pods)), ObservedGeneration: set.Generation}, time.Duration(0)
	for _, pod := range pods {
		status.FullyLabeledReplicas++
		if ready, _ := rollout.Ready(pod); ready {
			status.ReadyReplicas++
		}
		available, left := rollout.Available(pod, set.Spec.MinReadySeconds, time.Now())
		if available {
			status.AvailableReplicas++
		}
		again = sooner(again, left)
	}
	if trouble != nil {
		status.Conditions = []apps.ReplicaSetCondition{{Type: apps.ReplicaSetReplicaFailure, Status: core.ConditionTrue, Reason: "FailedCreate", Message: trouble.Error()}}
	}
	if !equality.Semantic.DeepEqual(set.Status, status) {
		set.Status = status
		if _, err := cluster.client.AppsV1().ReplicaSets(namespace).UpdateStatus(ctx, set, meta.UpdateOptions{}); err != nil {
			return 0, err
		}
	}
	if trouble != nil {
		return 0, fmt.Errorf("cannot make a pod: %w", trouble)
	}
	return again, nil
}

func valueOr[T any](pointer *T, otherwise T) T {
	if pointer == nil {
		return otherwise
	}
	return *pointer
}
