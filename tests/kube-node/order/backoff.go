package order

import "time"

// Backoff between restarts of one container: doubles from First to Max, and begins anew after a run of ResetAfter.
type Backoff struct {
	First, Max, ResetAfter time.Duration
	last                   time.Duration
}

// After is how long to wait after a run that took `ran`.
func (backoff *Backoff) After(ran time.Duration) time.Duration {
	switch {
	case backoff.last == 0 || ran >= backoff.ResetAfter:
		backoff.last = backoff.First
	default:
		backoff.last = min(2*backoff.last, backoff.Max)
	}
	return backoff.last
}
