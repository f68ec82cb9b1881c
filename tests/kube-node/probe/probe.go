// Package probe holds the kubelet's rules for probes, without a clock or a socket: when one runs, and what its answers amount to.
package probe

import (
	"time"

	core "k8s.io/api/core/v1"
)

// Kind of a probe.
type Kind string

const (
	Startup   Kind = "Startup"
	Readiness Kind = "Readiness"
	Liveness  Kind = "Liveness"
)

// Machine counts the answers of one probe of one run of a container.
type Machine struct {
	kind             Kind
	success, failure int
	lastPassed       bool
	same             int
	verdict, decided bool
}

// New begins as the kubelet does: alive, not ready, not started.
func New(kind Kind, spec *core.Probe) *Machine {
	return &Machine{
		kind: kind, success: max(1, int(spec.SuccessThreshold)), failure: atLeast(spec.FailureThreshold, 3), verdict: kind == Liveness,
	}
}

// Passes is the verdict so far.
func (machine *Machine) Passes() bool { return machine.verdict }

// Observe takes one answer; true if the verdict was confirmed or changed by it, which is when the kubelet acts.
func (machine *Machine) Observe(passed bool) bool {
	if machine.same > 0 && machine.lastPassed == passed {
		machine.same++
	} else {
		machine.lastPassed, machine.same = passed, 1
	}
	threshold := machine.failure
	if passed {
		threshold = machine.success
	}
	if machine.same < threshold {
		return false
	}
	changed := machine.verdict != passed || !machine.decided
	machine.verdict, machine.decided = passed, true
	return changed
}

// Wait is how long until a probe runs first, after its container started `ago`: it honours initialDelaySeconds.
func Wait(spec *core.Probe, ago time.Duration) time.Duration {
	return max(0, time.Duration(spec.InitialDelaySeconds)*time.Second-ago)
}

// Period between two runs.
func Period(spec *core.Probe) time.Duration {
	return time.Duration(atLeast(spec.PeriodSeconds, 10)) * time.Second
}

// Timeout of one run.
func Timeout(spec *core.Probe) time.Duration {
	return time.Duration(max(1, spec.TimeoutSeconds)) * time.Second
}

// Allowed says whether a probe of this kind runs on a container that has started, or not yet: startup probes before, the others after.
func Allowed(kind Kind, started bool) bool { return (kind == Startup) != started }

// atLeast is the value, or what the API server would have filled in for one that is missing.
func atLeast(value int32, otherwise int) int {
	if value < 1 {
		return otherwise
	}
	return int(value)
}
