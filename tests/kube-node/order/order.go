// Package order decides what a kubelet would do next with the containers of one pod. It is pure: it sees what runs and says what to start,
// stop or wait for; the node (package node) does it and asks again.
//
// The rules are those of Kubernetes 1.36 with native sidecars: init containers one after another, a sidecar (an init container with
// restartPolicy Always) is passed once it has started, main containers after all of these; sidecars are stopped last and in reverse order.
package order

import (
	"time"

	core "k8s.io/api/core/v1"
)

// Kind of a container within its pod.
type Kind int

const (
	Init Kind = iota
	Sidecar
	Main
)

// Container is what the order needs to know of one.
type Container struct {
	Name string
	Kind Kind
}

// Pod is a pod's containers in the order in which they start: init containers and sidecars as written, then the main ones.
type Pod struct {
	Restart    core.RestartPolicy
	Containers []Container
}

// Of takes the order out of a pod's spec.
func Of(spec *core.PodSpec) Pod {
	pod := Pod{Restart: spec.RestartPolicy}
	for _, container := range spec.InitContainers {
		kind := Init
		if container.RestartPolicy != nil && *container.RestartPolicy == core.ContainerRestartPolicyAlways {
			kind = Sidecar
		}
		pod.Containers = append(pod.Containers, Container{container.Name, kind})
	}
	for _, container := range spec.Containers {
		pod.Containers = append(pod.Containers, Container{container.Name, Main})
	}
	return pod
}

// State of a container.
type State int

const (
	// Absent: never started.
	Absent State = iota
	// Starting: its process runs and its postStart hook has not ended.
	Starting
	Running
	Exited
)

// Seen is what is known of one container now.
type Seen struct {
	State State
	// Started: its startup probe has passed, or it has none; false unless it runs.
	Started  bool
	ExitCode int
	// Doomed: it runs and has failed its liveness or startup probe or its postStart hook.
	Doomed bool
	// RestartAt is when its backoff allows the next start, if it has exited.
	RestartAt time.Time
}

// Step is what to do now. At most one container starts per step: the next one may depend on how this one does.
type Step struct {
	Start string
	Stop  []string
	// WakeAt: ask again then, whatever happens; zero if only events matter.
	WakeAt time.Time
	// Over: no main container runs or will run again. What is left is stopped, then the pod's phase is final.
	Over bool
}

// Next decides the next step of a pod that nobody deletes.
func Next(pod Pod, seen map[string]Seen, now time.Time) Step {
	step := Step{Over: over(pod, seen)}
	if step.Over {
		return step
	}
	for _, container := range pod.Containers {
		if seen[container.Name].Doomed {
			step.Stop = append(step.Stop, container.Name)
		}
	}
	if step.begin(pod, seen, now) {
		step.main(pod, seen, now)
	}
	return step
}

// begin does init containers and sidecars; true once the main containers may start.
func (step *Step) begin(pod Pod, seen map[string]Seen, now time.Time) bool {
	for at, container := range pod.Containers {
		if container.Kind == Main {
			break
		}
		it := seen[container.Name]
		// Once anything behind it has begun, a sidecar that ends is restarted beside the others and holds nobody up.
		passed := begunBehind(pod, seen, at)
		switch {
		case it.State == Absent && !passed:
			step.Start = container.Name
			return false
		case it.State == Exited && container.Kind == Sidecar:
			if !step.restart(container.Name, it, now) || !passed {
				return false
			}
		case it.State == Exited && it.ExitCode != 0 && !passed:
			step.restart(container.Name, it, now)
			return false
		case it.State == Exited:
		case container.Kind == Init || !it.Started:
			if !passed {
				return false
			}
		}
	}
	return true
}

// main does the containers proper.
func (step *Step) main(pod Pod, seen map[string]Seen, now time.Time) {
	for _, container := range pod.Containers {
		it := seen[container.Name]
		switch {
		case container.Kind != Main || it.State == Running:
		case it.State == Starting:
			return
		case it.State == Absent:
			step.Start = container.Name
			return
		case restarts(pod, it) && !step.restart(container.Name, it, now):
			return
		}
	}
}

// over says whether no main container runs or will: all have ended for good, or an init container has and they are never reached. A
// sidecar that ends then is not restarted.
func over(pod Pod, seen map[string]Seen) bool {
	for at, container := range pod.Containers {
		it := seen[container.Name]
		switch {
		case container.Kind == Init && it.State == Exited && it.ExitCode != 0:
			if pod.Restart == core.RestartPolicyNever && !begunBehind(pod, seen, at) {
				return true
			}
		case container.Kind == Main && (it.State != Exited || restarts(pod, it)):
			return false
		}
	}
	return true
}

// restart starts a container again or waits for its backoff; false if it starts now, which ends the step.
func (step *Step) restart(name string, it Seen, now time.Time) bool {
	if !now.Before(it.RestartAt) {
		step.Start = name
		return false
	}
	if step.WakeAt.IsZero() || it.RestartAt.Before(step.WakeAt) {
		step.WakeAt = it.RestartAt
	}
	return true
}

// Initialized says whether every init container has succeeded and every sidecar has started: the condition of that name.
func Initialized(pod Pod, seen map[string]Seen) bool {
	for at, container := range pod.Containers {
		it := seen[container.Name]
		if container.Kind == Main || begunBehindMain(pod, seen, at) {
			return true
		}
		done := it.State == Exited && it.ExitCode == 0
		if container.Kind == Sidecar {
			done = it.State == Running && it.Started
		}
		if !done {
			return false
		}
	}
	return true
}

// Phase of a pod. A final phase is told only when no container, sidecars included, runs any more.
func Phase(pod Pod, seen map[string]Seen) core.PodPhase {
	final, running := core.PodSucceeded, false
	for _, container := range pod.Containers {
		it := seen[container.Name]
		running = running || it.State == Starting || it.State == Running
		switch {
		case container.Kind != Sidecar && it.State == Exited && it.ExitCode != 0:
			final = core.PodFailed
		}
	}
	over := over(pod, seen)
	switch {
	case over && !running:
		return final
	case over || begunBehindMain(pod, seen, -1):
		return core.PodRunning
	default:
		return core.PodPending
	}
}

// Turn says whether a container of a pod that ends may get its SIGTERM now: main containers at once; a sidecar when the main ones and the
// sidecars behind it have ended. PreStop hooks do not wait for their turn.
func Turn(pod Pod, name string, runs func(name string) bool) bool {
	behind := false
	for _, container := range pod.Containers {
		if container.Name == name {
			behind = container.Kind == Sidecar
			continue
		}
		if behind && container.Kind != Init && runs(container.Name) {
			return false
		}
	}
	return true
}

// restarts says whether a main container that exited is started again.
func restarts(pod Pod, it Seen) bool {
	switch pod.Restart {
	case core.RestartPolicyNever:
		return false
	case core.RestartPolicyOnFailure:
		return it.ExitCode != 0
	default:
		return true
	}
}

func begunBehind(pod Pod, seen map[string]Seen, at int) bool {
	for _, later := range pod.Containers[at+1:] {
		if seen[later.Name].State != Absent {
			return true
		}
	}
	return false
}

func begunBehindMain(pod Pod, seen map[string]Seen, at int) bool {
	for _, later := range pod.Containers[at+1:] {
		if later.Kind == Main && seen[later.Name].State != Absent {
			return true
		}
	}
	return false
}
