//! Spans that were lost, by why.

use std::sync::atomic::{AtomicU64, Ordering};

/// Why spans were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DropReason {
    /// Too many wait already.
    QueueFull,
    /// The collector was not reached, or asked for patience, for as long as they are kept.
    Expired,
    /// The collector refused the request.
    Refused,
    /// It took the request and refused these: a partial success.
    Rejected,
    /// The endpoint is not usable.
    BadEndpoint,
}

impl DropReason {
    /// As metrics name it.
    const fn text(self) -> &'static str {
        match self {
            Self::QueueFull => "queue_full",
            Self::Expired => "expired",
            Self::Refused => "refused",
            Self::Rejected => "rejected",
            Self::BadEndpoint => "bad_endpoint",
        }
    }

    const ALL: [Self; 5] = [Self::QueueFull, Self::Expired, Self::Refused, Self::Rejected, Self::BadEndpoint];
}

/// How many.
#[derive(Debug, Default)]
pub(super) struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Drops {
    pub(super) fn add(&self, reason: DropReason, count: u64) {
        self.0[reason as usize].fetch_add(count, Ordering::Relaxed);
    }

    /// Each reason's count; `queue_full` of the workers' own queues comes on top.
    pub(super) fn rows(&self, queue_full: u64) -> Vec<(&'static str, u64)> {
        let count = |reason: DropReason| self.0[reason as usize].load(Ordering::Relaxed);
        let on_top = |reason| if reason == DropReason::QueueFull { queue_full } else { 0 };
        DropReason::ALL.map(|reason| (reason.text(), count(reason) + on_top(reason))).to_vec()
    }
}
