package order

import "time"

// Backoff between restarts of one container, as a kubelet's: the first restart is immediate, then the wait doubles from First to Max; it
// begins anew after a run of ResetAfter.
type Backoff struct {
	First, Max, ResetAfter time.Duration
	next                   time.Duration
}

// After is how long to wait after a run that took `ran`.
func (backoff *Backoff) After(ran time.Duration) time.Duration {
	if ran >= backoff.ResetAfter {
		backoff.next = 0
	}
	wait := backoff.next
	backoff.next = min(max(2*wait, backoff.First), backoff.Max)
	return wait
}
