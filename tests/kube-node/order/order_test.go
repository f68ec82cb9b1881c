package order

import (
	"reflect"
	"testing"
	"time"

	core "k8s.io/api/core/v1"
)

var (
	noon = time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	runs = Seen{State: Running, Started: true}
	done = Seen{State: Exited}
)

func failed(at time.Time) Seen { return Seen{State: Exited, ExitCode: 3, RestartAt: at} }

func pod(restart core.RestartPolicy) Pod {
	return Pod{restart, []Container{{"rules", Init}, {"proxy", Sidecar}, {"migrate", Init}, {"app", Main}, {"log", Main}}}
}

// Aim: a pod starts, restarts and ends in the order of a kubelet with native sidecars.
func TestNext(t *testing.T) {
	always, never, onFailure := core.RestartPolicyAlways, core.RestartPolicyNever, core.RestartPolicyOnFailure
	later := noon.Add(10 * time.Second)
	cases := []struct {
		name    string
		restart core.RestartPolicy
		seen    map[string]Seen
		want    Step
	}{
		{"the first init container begins", always, nil, Step{Start: "rules"}},
		{"nothing beside a running init container", always, map[string]Seen{"rules": runs}, Step{}},
		{"a sidecar after it", always, map[string]Seen{"rules": done}, Step{Start: "proxy"}},
		{"a sidecar holds until its startup probe passes", always, map[string]Seen{"rules": done, "proxy": {State: Running}}, Step{}},
		{"then the next init container", always, map[string]Seen{"rules": done, "proxy": runs}, Step{Start: "migrate"}},
		{"then main containers, one by one", always, map[string]Seen{"rules": done, "proxy": runs, "migrate": done}, Step{Start: "app"}},
		{"a postStart hook holds the next one", always,
			map[string]Seen{"rules": done, "proxy": runs, "migrate": done, "app": {State: Starting}}, Step{}},
		{"all run", always, map[string]Seen{"rules": done, "proxy": runs, "migrate": done, "app": runs, "log": runs}, Step{}},
		{"an init container that failed waits", onFailure, map[string]Seen{"rules": failed(later)}, Step{WakeAt: later}},
		{"and starts again", onFailure, map[string]Seen{"rules": failed(noon)}, Step{Start: "rules"}},
		{"and fails the pod under Never", never, map[string]Seen{"rules": failed(noon)}, Step{Over: true}},
		{"a sidecar that died before anything behind it holds", never, map[string]Seen{"rules": done, "proxy": failed(later)}, Step{WakeAt: later}},
		{"a sidecar is restarted beside a running init container", never,
			map[string]Seen{"rules": done, "proxy": failed(noon), "migrate": runs}, Step{Start: "proxy"}},
		{"a sidecar that waits does not hold main containers back", always,
			map[string]Seen{"rules": done, "proxy": failed(later), "migrate": done, "app": failed(noon), "log": runs},
			Step{Start: "app", WakeAt: later}},
		{"a main container that succeeded is done under OnFailure", onFailure,
			map[string]Seen{"rules": done, "proxy": runs, "migrate": done, "app": done, "log": runs}, Step{}},
		{"a Job's pod is over although its sidecar runs", onFailure,
			map[string]Seen{"rules": done, "proxy": runs, "migrate": done, "app": done, "log": done}, Step{Over: true}},
		{"under Always it is not", always,
			map[string]Seen{"rules": done, "proxy": runs, "migrate": done, "app": {State: Exited, RestartAt: later}, "log": runs},
			Step{WakeAt: later}},
		{"what failed its liveness probe is stopped", always,
			map[string]Seen{"rules": done, "proxy": runs, "migrate": done, "app": {State: Running, Started: true, Doomed: true}, "log": runs},
			Step{Stop: []string{"app"}}},
	}
	for _, it := range cases {
		if got := Next(pod(it.restart), it.seen, noon); !reflect.DeepEqual(got, it.want) {
			t.Errorf("%s: %+v, want %+v", it.name, got, it.want)
		}
	}
}

// Aim: a phase is final only when the last sidecar has ended, and a condition Initialized stays once main containers have begun.
func TestPhase(t *testing.T) {
	never := core.RestartPolicyNever
	cases := []struct {
		name        string
		restart     core.RestartPolicy
		seen        map[string]Seen
		phase       core.PodPhase
		initialized bool
	}{
		{"new", never, nil, core.PodPending, false},
		{"sidecar up", never, map[string]Seen{"rules": done, "proxy": runs}, core.PodPending, false},
		{"all inits done", never, map[string]Seen{"rules": done, "proxy": runs, "migrate": done}, core.PodPending, true},
		{"running", never, map[string]Seen{"rules": done, "proxy": runs, "migrate": done, "app": runs}, core.PodRunning, true},
		{"sidecar down for a moment", never,
			map[string]Seen{"rules": done, "proxy": failed(noon), "migrate": done, "app": runs, "log": runs}, core.PodRunning, true},
		{"mains done, sidecar left", never,
			map[string]Seen{"rules": done, "proxy": runs, "migrate": done, "app": done, "log": done}, core.PodRunning, true},
		{"all done, whatever the sidecar's code", never,
			map[string]Seen{"rules": done, "proxy": failed(noon), "migrate": done, "app": done, "log": done}, core.PodSucceeded, true},
		{"one main failed", never,
			map[string]Seen{"rules": done, "proxy": done, "migrate": done, "app": failed(noon), "log": done}, core.PodFailed, true},
		{"an init failed", never, map[string]Seen{"rules": failed(noon)}, core.PodFailed, false},
		{"an init failed and is tried again", core.RestartPolicyAlways, map[string]Seen{"rules": failed(noon)}, core.PodPending, false},
	}
	for _, it := range cases {
		if got := Phase(pod(it.restart), it.seen); got != it.phase {
			t.Errorf("%s: phase %s, want %s", it.name, got, it.phase)
		}
		if got := Initialized(pod(it.restart), it.seen); got != it.initialized {
			t.Errorf("%s: initialized %v, want %v", it.name, got, it.initialized)
		}
	}
}

// Aim: sidecars end after the main containers and in reverse order.
func TestTurn(t *testing.T) {
	pod := Pod{core.RestartPolicyAlways, []Container{{"first", Sidecar}, {"set-up", Init}, {"second", Sidecar}, {"app", Main}}}
	cases := []struct {
		running []string
		turns   []string
	}{
		{[]string{"first", "second", "app"}, []string{"app"}},
		{[]string{"first", "second"}, []string{"second"}},
		{[]string{"first"}, []string{"first"}},
		{[]string{"first", "set-up"}, []string{"first", "set-up"}},
	}
	for _, it := range cases {
		running := map[string]bool{}
		for _, name := range it.running {
			running[name] = true
		}
		var turns []string
		for _, name := range it.running {
			if Turn(pod, name, func(name string) bool { return running[name] }) {
				turns = append(turns, name)
			}
		}
		if !reflect.DeepEqual(turns, it.turns) {
			t.Errorf("of %v: %v, want %v", it.running, turns, it.turns)
		}
	}
}

// Aim: the first restart is immediate, further ones slow down to a bound, after a long run they are quick again.
func TestBackoff(t *testing.T) {
	backoff := Backoff{First: 10 * time.Second, Max: 5 * time.Minute, ResetAfter: 10 * time.Minute}
	var waits []time.Duration
	for range 8 {
		waits = append(waits, backoff.After(time.Second)/time.Second)
	}
	waits = append(waits, backoff.After(11*time.Minute)/time.Second)
	if want := []time.Duration{0, 10, 20, 40, 80, 160, 300, 300, 0}; !reflect.DeepEqual(waits, want) {
		t.Errorf("%v, want %v", waits, want)
	}
}
