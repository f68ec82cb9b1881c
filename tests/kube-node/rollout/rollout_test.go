package rollout

import (
	"reflect"
	"testing"
	"time"

	apps "k8s.io/api/apps/v1"
	core "k8s.io/api/core/v1"
	meta "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func number[T any](value T) *T { return &value }

// Aim: maxSurge rounds up, maxUnavailable down, and a rollout can always move.
func TestBounds(t *testing.T) {
	cases := []struct {
		replicas           int32
		surge, unavailable *intstr.IntOrString
		want               [2]int32
	}{
		{4, nil, nil, [2]int32{1, 1}},
		{1, nil, nil, [2]int32{1, 0}},
		{10, number(intstr.FromString("25%")), number(intstr.FromString("25%")), [2]int32{3, 2}},
		{3, number(intstr.FromInt32(0)), number(intstr.FromInt32(0)), [2]int32{0, 1}},
		{2, number(intstr.FromInt32(0)), number(intstr.FromInt32(5)), [2]int32{0, 2}},
	}
	for _, it := range cases {
		deployment := &apps.Deployment{Spec: apps.DeploymentSpec{Replicas: &it.replicas}}
		deployment.Spec.Strategy.RollingUpdate = &apps.RollingUpdateDeployment{MaxSurge: it.surge, MaxUnavailable: it.unavailable}
		if surge, unavailable := Bounds(deployment); [2]int32{surge, unavailable} != it.want {
			t.Errorf("%d: %d %d, want %v", it.replicas, surge, unavailable, it.want)
		}
	}
}

// Aim: a rolling update ends, and in no step are there too many pods or too few available ones.
func TestRoll(t *testing.T) {
	for _, bounds := range [][3]int32{{3, 1, 0}, {4, 1, 1}, {4, 0, 1}, {1, 1, 0}, {10, 3, 2}, {5, 5, 0}, {2, 0, 2}} {
		replicas, surge, unavailable := bounds[0], bounds[1], bounds[2]
		fresh, old := Set{}, []Set{{replicas, replicas}}
		steps := 0
		for ; fresh.Available < replicas || old[0].Replicas > 0; steps++ {
			next, sizes := Roll(replicas, surge, unavailable, fresh, old)
			if next == fresh.Replicas && sizes[0] == old[0].Replicas && fresh.Available == fresh.Replicas {
				t.Fatalf("%v: stands still at %v %v", bounds, fresh, old)
			}
			fresh.Replicas, old[0] = next, Set{sizes[0], min(old[0].Available, sizes[0])}
			if fresh.Replicas+old[0].Replicas > replicas+surge {
				t.Fatalf("%v: too many, %v %v", bounds, fresh, old)
			}
			if fresh.Available+old[0].Available < replicas-unavailable {
				t.Fatalf("%v: too few, %v %v", bounds, fresh, old)
			}
			if fresh.Available < fresh.Replicas {
				fresh.Available++
			}
		}
		if steps == 0 || steps > 40 {
			t.Errorf("%v: %d steps", bounds, steps)
		}
	}
}

// Aim: old pods that never became available go first, and scaling in mid-rollout follows the Deployment.
func TestRollOddities(t *testing.T) {
	cases := []struct {
		name                         string
		replicas, surge, unavailable int32
		fresh                        Set
		old                          []Set
		next                         int32
		sizes                        []int32
	}{
		{"broken pods go first", 3, 1, 0, Set{1, 0}, []Set{{2, 0}, {2, 2}}, 1, []int32{1, 2}},
		{"a new one that is not available holds the old ones", 3, 1, 0, Set{1, 0}, []Set{{3, 3}}, 1, []int32{3}},
		{"scaled down", 2, 1, 0, Set{4, 4}, nil, 2, []int32{}},
		{"scaled up", 5, 1, 1, Set{3, 3}, nil, 5, []int32{}},
		{"to nothing", 0, 1, 0, Set{2, 2}, []Set{{1, 1}}, 0, []int32{1}},
	}
	for _, it := range cases {
		next, sizes := Roll(it.replicas, it.surge, it.unavailable, it.fresh, it.old)
		if next != it.next || !reflect.DeepEqual(sizes, it.sizes) {
			t.Errorf("%s: %d %v, want %d %v", it.name, next, sizes, it.next, it.sizes)
		}
	}
}

func aPod(name string, node string, phase core.PodPhase, readySecs int64, cost string) *core.Pod {
	pod := &core.Pod{ObjectMeta: meta.ObjectMeta{Name: name}, Spec: core.PodSpec{NodeName: node}, Status: core.PodStatus{Phase: phase}}
	if readySecs > 0 {
		pod.Status.Conditions = []core.PodCondition{{Type: core.PodReady, Status: core.ConditionTrue, LastTransitionTime: meta.Unix(readySecs, 0)}}
	}
	if cost != "" {
		pod.Annotations = map[string]string{core.PodDeletionCost: cost}
	}
	return pod
}

// Aim: pods go in the order of the ReplicaSet controller.
func TestDoomed(t *testing.T) {
	pods := []*core.Pod{
		aPod("old", "a", core.PodRunning, 100, ""), aPod("young", "a", core.PodRunning, 200, ""), aPod("dear", "a", core.PodRunning, 200, "5"),
		aPod("unready", "a", core.PodRunning, 0, ""), aPod("pending", "a", core.PodPending, 0, ""), aPod("homeless", "", core.PodPending, 0, ""),
	}
	var names []string
	for _, pod := range Doomed(pods, 99) {
		names = append(names, pod.Name)
	}
	if want := []string{"homeless", "pending", "unready", "young", "old", "dear"}; !reflect.DeepEqual(names, want) {
		t.Errorf("%v, want %v", names, want)
	}
	if len(Doomed(pods, 2)) != 2 || len(Doomed(pods, -1)) != 0 {
		t.Error("counts")
	}
}

// Aim: minReadySeconds counts from when the pod became ready.
func TestAvailable(t *testing.T) {
	pod := aPod("a", "a", core.PodRunning, 100, "")
	if available, left := Available(pod, 10, time.Unix(104, 0)); available || left != 6*time.Second {
		t.Errorf("%v %s", available, left)
	}
	if available, _ := Available(pod, 10, time.Unix(110, 0)); !available {
		t.Error("not after ten seconds")
	}
	if available, left := Available(aPod("b", "a", core.PodRunning, 0, ""), 0, time.Unix(0, 0)); available || left != 0 {
		t.Error("unready is not available")
	}
}

// Aim: a Job starts as many pods as it may, is complete by its pods' phases and fails beyond its limit.
func TestJob(t *testing.T) {
	cases := []struct {
		name                  string
		parallel, completions *int32
		work                  Work
		start                 int32
		complete, failed      bool
	}{
		{"begins", number(int32(1)), number(int32(1)), Work{}, 1, false, false},
		{"runs", number(int32(1)), number(int32(1)), Work{Active: 1}, 0, false, false},
		{"is complete", number(int32(1)), number(int32(1)), Work{Succeeded: 1}, 0, true, false},
		{"three by two", number(int32(2)), number(int32(3)), Work{Succeeded: 2}, 1, false, false},
		{"tries again", number(int32(1)), number(int32(1)), Work{Failed: 6}, 1, false, false},
		{"fails", number(int32(1)), number(int32(1)), Work{Failed: 7}, 0, false, true},
		{"a queue waits for the others", number(int32(2)), nil, Work{Active: 1, Succeeded: 1}, 0, false, false},
		{"a queue ends", number(int32(2)), nil, Work{Succeeded: 2}, 0, true, false},
	}
	for _, it := range cases {
		start, complete, failed := Wanted(it.parallel, it.completions, nil, it.work)
		if start != it.start || complete != it.complete || failed != it.failed {
			t.Errorf("%s: %d %v %v", it.name, start, complete, failed)
		}
	}
}

// Aim: a template's hash is stable and changes with the template.
func TestHash(t *testing.T) {
	template := core.PodTemplateSpec{Spec: core.PodSpec{NodeName: "a"}}
	first := Hash(&template)
	template.Spec.NodeName = "b"
	if first == Hash(&template) || len(first) < 5 {
		t.Errorf("hash %s", first)
	}
}
