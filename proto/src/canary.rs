//! How proxies count the versions of a canary: latencies by buckets, finer than a metric's, the same at both ends.

/// Buckets of a latency: each ends at 2^(1/4) times the end of the one before, the last has no end.
pub const BUCKETS: usize = 65;

/// Where the buckets end, in nanoseconds: from 0.25 ms to 16.4 s.
pub const ENDS_NANOS: [u64; BUCKETS - 1] = ends();

/// Ends of the first four; after those each is twice the one four before.
const FIRST_NANOS: [u64; 4] = [250_000, 297_302, 353_553, 420_448];

const fn ends() -> [u64; BUCKETS - 1] {
    let mut ends = [0; BUCKETS - 1];
    let mut at = 0;
    while at < ends.len() {
        ends[at] = FIRST_NANOS[at % 4] << (at / 4);
        at += 1;
    }
    ends
}

/// The bucket of a latency.
pub fn bucket(nanos: u64) -> usize {
    ENDS_NANOS.partition_point(|end| *end < nanos)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_a_fifth_wide() {
        // Aim: ends grow by 2^(1/4), an end is in its own bucket, and nothing is in none.
        assert_eq!((bucket(0), bucket(250_000), bucket(250_001)), (0, 0, 1));
        assert_eq!((bucket(500_000), bucket(1_000_000), bucket(u64::MAX)), (4, 8, BUCKETS - 1));
        for pair in ENDS_NANOS.windows(2) {
            let ratio = pair[1] as f64 / pair[0] as f64;
            assert!((ratio - 2_f64.powf(0.25)).abs() < 1e-4, "{pair:?}");
        }
    }
}
