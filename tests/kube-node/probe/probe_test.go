package probe

import (
	"testing"
	"time"

	core "k8s.io/api/core/v1"
)

// Aim: a probe's answers count as the kubelet counts them: in a row, up to their thresholds, from the verdict each kind begins with.
func TestObserve(t *testing.T) {
	cases := []struct {
		name    string
		kind    Kind
		spec    core.Probe
		answers string
		// One letter per answer: + passes, - does not, after that answer.
		verdicts string
	}{
		{"readiness begins unready", Readiness, core.Probe{SuccessThreshold: 1, FailureThreshold: 3}, "-+", "-+"},
		{"ready until three failures in a row", Readiness, core.Probe{SuccessThreshold: 1, FailureThreshold: 3}, "+--+---+", "++++++-+"},
		{"two successes in a row", Readiness, core.Probe{SuccessThreshold: 2, FailureThreshold: 1}, "+-++", "---+"},
		{"liveness begins alive", Liveness, core.Probe{FailureThreshold: 2}, "-+--", "+++-"},
		{"startup begins not started", Startup, core.Probe{FailureThreshold: 30}, "---+", "---+"},
		{"three failures where nothing is said", Liveness, core.Probe{}, "---", "++-"},
	}
	for _, it := range cases {
		machine, verdicts := New(it.kind, &it.spec), ""
		for _, answer := range it.answers {
			machine.Observe(answer == '+')
			verdicts += map[bool]string{true: "+", false: "-"}[machine.Passes()]
		}
		if verdicts != it.verdicts {
			t.Errorf("%s: %s, want %s", it.name, verdicts, it.verdicts)
		}
	}
}

// Aim: the kubelet acts on a verdict when it is reached, also if it is what was assumed at first, and once.
func TestActs(t *testing.T) {
	machine := New(Liveness, &core.Probe{FailureThreshold: 2})
	acts := ""
	for _, answer := range "+-+---" {
		acts += map[bool]string{true: "!", false: "."}[machine.Observe(answer == '+')]
	}
	if acts != "!...!." {
		t.Errorf("acts %s", acts)
	}
}

// Aim: delays and periods are the spec's, with the API server's defaults where it says nothing.
func TestTimes(t *testing.T) {
	spec := core.Probe{InitialDelaySeconds: 5, PeriodSeconds: 2}
	if got := Wait(&spec, 2*time.Second); got != 3*time.Second {
		t.Errorf("waits %s", got)
	}
	if got := Wait(&spec, time.Minute); got != 0 {
		t.Errorf("waits %s after a minute", got)
	}
	if Period(&spec) != 2*time.Second || Period(&core.Probe{}) != 10*time.Second || Timeout(&spec) != time.Second {
		t.Error("periods")
	}
	if Allowed(Startup, true) || !Allowed(Startup, false) || Allowed(Readiness, false) || !Allowed(Liveness, true) {
		t.Error("startup probes come first and end")
	}
}
