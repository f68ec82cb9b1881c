// Package rollout is the arithmetic of the workload controllers, without an API server: how far each ReplicaSet of a Deployment scales in
// one step, which pods go first, when a Job is done.
package rollout

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"sort"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/rand"
)

// Set is one ReplicaSet: how many pods it asks for and how many of them are available.
type Set struct{ Replicas, Available int32 }

// Bounds are maxSurge and maxUnavailable as numbers of pods: surge rounds up, unavailable down, and both zero become one unavailable.
func Bounds(deployment *apps.Deployment) (surge, unavailable int32) {
	replicas := Replicas(deployment.Spec.Replicas)
	quarter := intstr.FromString("25%")
	maxSurge, maxUnavailable := &quarter, &quarter
	if rolling := deployment.Spec.Strategy.RollingUpdate; rolling != nil {
		if rolling.MaxSurge != nil {
			maxSurge = rolling.MaxSurge
		}
		if rolling.MaxUnavailable != nil {
			maxUnavailable = rolling.MaxUnavailable
		}
	}
	up, _ := intstr.GetScaledValueFromIntOrPercent(maxSurge, int(replicas), true)
	down, _ := intstr.GetScaledValueFromIntOrPercent(maxUnavailable, int(replicas), false)
	if up == 0 && down == 0 {
		down = 1
	}
	return int32(up), min(int32(down), replicas)
}

// Replicas that are asked for; one if nothing is said.
func Replicas(asked *int32) int32 {
	if asked == nil {
		return 1
	}
	return *asked
}

// Roll is one step of a rolling update: the sizes of the new ReplicaSet and of the old ones, oldest first. Unhealthy old pods go before
// healthy ones, and available pods never fall below replicas minus unavailable.
func Roll(replicas, surge, unavailable int32, fresh Set, old []Set) (int32, []int32) {
	sizes := make([]int32, len(old))
	total, available := fresh.Replicas, fresh.Available
	for at, set := range old {
		sizes[at] = set.Replicas
		total += set.Replicas
		available += set.Available
	}
	next := fresh.Replicas
	switch {
	case fresh.Replicas > replicas:
		next = replicas
	case fresh.Replicas < replicas:
		next += max(0, min(replicas+surge-total, replicas-fresh.Replicas))
	}
	if next != fresh.Replicas {
		return next, sizes
	}
	least := replicas - unavailable
	spare := total - least - (fresh.Replicas - fresh.Available)
	if spare <= 0 {
		return next, sizes
	}
	for at, set := range old {
		gone := min(spare, max(0, set.Replicas-set.Available))
		sizes[at] -= gone
		spare -= gone
	}
	spare = min(spare, available-least)
	for at := range old {
		gone := max(0, min(spare, sizes[at]))
		sizes[at] -= gone
		spare -= gone
	}
	return next, sizes
}

// Hash of a pod template, for the label pod-template-hash. It is stable, and not the one a real cluster would give.
func Hash(template *core.PodTemplateSpec) string {
	// A template always has JSON.
	text, _ := json.Marshal(template)
	sum := fnv.New32a()
	sum.Write(text)
	return rand.SafeEncodeString(fmt.Sprint(sum.Sum32()))
}

// Active: neither finished nor being deleted.
func Active(pod *core.Pod) bool {
	return pod.Status.Phase != core.PodSucceeded && pod.Status.Phase != core.PodFailed && pod.DeletionTimestamp == nil
}

// Ready says whether a pod's condition Ready is true, and since when.
func Ready(pod *core.Pod) (bool, time.Time) {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == core.PodReady {
			return condition.Status == core.ConditionTrue, condition.LastTransitionTime.Time
		}
	}
	return false, time.Time{}
}

// Available says whether a pod has been ready for long enough, and else how long that takes if nothing changes (zero: not ready).
func Available(pod *core.Pod, minReadySecs int32, now time.Time) (bool, time.Duration) {
	ready, since := Ready(pod)
	if !ready {
		return false, 0
	}
	left := since.Add(time.Duration(minReadySecs) * time.Second).Sub(now)
	if minReadySecs == 0 || left <= 0 {
		return true, 0
	}
	return false, left
}

// Doomed are the pods to delete when `count` of a ReplicaSet have to go: unscheduled, pending, unready, cheap and young ones first.
func Doomed(pods []*core.Pod, count int) []*core.Pod {
	sorted := append([]*core.Pod(nil), pods...)
	sort.SliceStable(sorted, func(left, right int) bool {
		a, b := rank(sorted[left]), rank(sorted[right])
		for at := range a {
			if a[at] != b[at] {
				return a[at] < b[at]
			}
		}
		return sorted[left].Name < sorted[right].Name
	})
	return sorted[:min(max(count, 0), len(sorted))]
}

// rank orders pods by how soon they go, the least first.
func rank(pod *core.Pod) [5]int64 {
	truth := map[bool]int64{true: 1}
	ready, since := Ready(pod)
	cost := int64(0)
	fmt.Sscan(pod.Annotations[core.PodDeletionCost], &cost)
	return [5]int64{truth[pod.Spec.NodeName != ""], truth[pod.Status.Phase == core.PodRunning], truth[ready], cost, -since.Unix()}
}

// Work is what a Job's pods amount to.
type Work struct{ Active, Ready, Succeeded, Failed int32 }

// Tally counts a Job's pods. A pod has succeeded by its phase, which leaves sidecars out of it.
func Tally(pods []*core.Pod) Work {
	work := Work{}
	for _, pod := range pods {
		switch {
		case pod.Status.Phase == core.PodSucceeded:
			work.Succeeded++
		case pod.Status.Phase == core.PodFailed:
			work.Failed++
		case pod.DeletionTimestamp == nil:
			work.Active++
			if ready, _ := Ready(pod); ready {
				work.Ready++
			}
		}
	}
	return work
}

// Wanted is how many more pods a Job starts now, and whether it is complete or has failed for good.
func Wanted(parallelism, completions, backoffLimit *int32, work Work) (start int32, complete, failed bool) {
	if work.Failed > Limit(backoffLimit) {
		return 0, false, true
	}
	parallel := Replicas(parallelism)
	if completions == nil {
		// A work queue: one success ends it once the others have ended too.
		if work.Succeeded > 0 {
			return 0, work.Active == 0, false
		}
		return max(0, parallel-work.Active), false, false
	}
	left := *completions - work.Succeeded
	return max(0, min(parallel, left)-work.Active), left <= 0, false
}

// Limit of failed pods of a Job.
func Limit(asked *int32) int32 {
	if asked == nil {
		return 6
	}
	return *asked
}
