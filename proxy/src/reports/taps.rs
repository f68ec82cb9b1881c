//! Taps that the control plane holds on this stream: each lives while its lease is renewed, and sends what it shows as the stream has room.

use std::collections::BTreeMap;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use proto::mesh::report::Kind as Told;
use proto::mesh::{Report, TapCommand, Tapped};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout_at};

use crate::observe::{TAPS_MAX, TapFeed, TapTerms, Telemetry};

/// Longest lease, whatever the control plane says.
const LEASE_MAX: Duration = Duration::from_secs(60);
/// Lines gather so long before they are sent.
const GATHER: Duration = Duration::from_millis(50);
/// Lines of one message, and their bytes (one line more may be in it).
const LINES_MAX: usize = 32;
const LINES_BYTES_MAX: usize = 32 << 10;
/// How often counts are told where no line is.
const COUNTS_EVERY: Duration = Duration::from_secs(1);

/// See the module. Dropped with its stream, which ends them all.
#[derive(Debug, Default)]
pub(super) struct TapLeases {
    /// Until when, by the tap's id.
    open: BTreeMap<u64, watch::Sender<Instant>>,
}

impl TapLeases {
    /// Begins, renews or ends a tap. The answer is what to tell at once, if anything.
    pub(super) fn obey(
        &mut self,
        id: u64,
        command: TapCommand,
        telemetry: &Arc<Telemetry>,
        reports: &mpsc::Sender<Report>,
    ) -> Option<Tapped> {
        self.open.retain(|_, lease| !lease.is_closed());
        let lease = command.lease.and_then(|lease| Duration::try_from(lease).ok()).unwrap_or_default();
        if lease.is_zero() {
            self.open.remove(&id);
            return None;
        }
        let until = Instant::now() + lease.min(LEASE_MAX);
        if let Some(lease) = self.open.get(&id) {
            lease.send_replace(until);
            return None;
        }
        let terms = TapTerms::read(&command.filter.unwrap_or_default());
        let begun = terms.and_then(|terms| {
            telemetry.tap(terms, command.lines_per_sec).ok_or_else(|| format!("{TAPS_MAX} taps are open here; end one first"))
        });
        match begun {
            Ok(feed) => {
                let (sender, lease) = watch::channel(until);
                self.open.insert(id, sender);
                tokio::spawn(show(id, feed, lease, reports.clone()));
                None
            }
            Err(error) => Some(Tapped { tap: id, error, ..Tapped::default() }),
        }
    }
}

/// Sends what a tap shows until its lease is over or taken back, or the stream has ended.
async fn show(id: u64, mut feed: TapFeed, mut lease: watch::Receiver<Instant>, reports: mpsc::Sender<Report>) {
    let mut counts = interval(COUNTS_EVERY);
    counts.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let until = *lease.borrow_and_update();
        let first = tokio::select! {
            biased;
            changed = lease.changed() => match changed {
                Ok(()) => continue,
                Err(_) => return,
            },
            () = sleep_until(until) => return,
            line = next(&mut feed) => Some(line),
            _ = counts.tick() => None,
        };
        let lines = match first {
            Some(line) => gathered(line, &mut feed).await,
            None => Vec::new(),
        };
        let (seen, dropped) = feed.counts();
        if lines.is_empty() && seen == 0 {
            continue;
        }
        let report = Report { kind: Some(Told::Tapped(Tapped { tap: id, lines, seen, dropped, error: String::new() })) };
        // A stream that takes nothing holds up nobody: lines wait within their bound, and are dropped beyond.
        if !matches!(timeout_at(until, reports.send(report)).await, Ok(Ok(()))) {
            return;
        }
    }
}

async fn next(feed: &mut TapFeed) -> String {
    match feed.line().await {
        Some(line) => line,
        // The feed itself holds the other end.
        None => pending().await,
    }
}

/// The line, and those that come soon after it.
async fn gathered(first: String, feed: &mut TapFeed) -> Vec<String> {
    sleep(GATHER).await;
    let (mut bytes, mut lines) = (first.len(), vec![first]);
    while lines.len() < LINES_MAX
        && bytes < LINES_BYTES_MAX
        && let Some(line) = feed.line_now()
    {
        bytes += line.len();
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use engine::model::Snapshot;
    use proto::mesh::TapFilter;

    use super::*;
    use crate::io::{Clock, Draw};
    use crate::observe::{Direction, Observer, TelemetryOptions, start};

    fn command(lease: Duration) -> TapCommand {
        let lease = prost_types::Duration { seconds: i64::try_from(lease.as_secs()).unwrap(), nanos: 0 };
        TapCommand { filter: Some(TapFilter::default()), lease: Some(lease), lines_per_sec: 1000 }
    }

    struct World {
        telemetry: Arc<Telemetry>,
        observer: Observer,
        leases: TapLeases,
        reports: mpsc::Sender<Report>,
        told: mpsc::Receiver<Report>,
    }

    impl World {
        fn new() -> Self {
            let (telemetry, _) = start(TelemetryOptions::default(), Clock::simulated(SystemTime::UNIX_EPOCH));
            let observer = Observer::new(Arc::clone(&telemetry), Draw::seeded(1));
            let (reports, told) = mpsc::channel(1);
            Self { telemetry, observer, leases: TapLeases::default(), reports, told }
        }

        fn obey(&mut self, id: u64, command: TapCommand) -> Option<Tapped> {
            self.leases.obey(id, command, &self.telemetry, &self.reports)
        }

        fn request(&self) {
            let snapshot = Arc::new(Snapshot::default());
            let addresses = ("10.0.0.1:1".parse().unwrap(), "10.0.0.2:80".parse().unwrap());
            let app = self.observer.downstream(Direction::Outbound, &snapshot, addresses, None, None);
            let mut parts = http::Request::get("/a?token=secret").body(()).unwrap().into_parts().0;
            drop(self.observer.begin_http(Direction::Outbound, &snapshot, &mut parts, &app));
        }

        async fn tapped(&mut self) -> Option<Tapped> {
            match tokio::time::timeout(Duration::from_secs(5), self.told.recv()).await {
                Ok(Some(Report { kind: Some(Told::Tapped(tapped)) })) => Some(tapped),
                _ => None,
            }
        }
    }

    /// Aim: a tap shows what ends while its lease lasts, with secrets left out though the log is off, and ends with the lease, by itself.
    #[tokio::test(start_paused = true)]
    async fn a_tap_lives_by_its_lease() {
        let mut world = World::new();
        world.request();
        assert_eq!(world.obey(7, command(Duration::from_secs(10))), None);
        world.request();
        let tapped = world.tapped().await.unwrap();
        assert_eq!((tapped.tap, tapped.lines.len(), tapped.seen, tapped.dropped), (7, 1, 1, 0), "{tapped:?}");
        assert!(tapped.lines[0].contains(r#""path":"/a?token=***""#) && tapped.lines[0].contains("client_gone"), "{tapped:?}");
        sleep(Duration::from_secs(1)).await;
        assert_eq!(world.obey(7, command(Duration::from_secs(10))), None);
        sleep(Duration::from_secs(9)).await;
        world.request();
        assert_eq!(world.tapped().await.unwrap().lines.len(), 1);
        sleep(Duration::from_secs(10)).await;
        world.request();
        assert_eq!(world.tapped().await, None);
    }

    /// Aim: taps are bounded, one that is taken back makes room, and all of a stream end with it.
    #[tokio::test(start_paused = true)]
    async fn taps_are_bounded() {
        let mut world = World::new();
        for id in 0..TAPS_MAX as u64 {
            assert_eq!(world.obey(id, command(Duration::from_secs(60))), None);
        }
        assert!(world.obey(99, command(Duration::from_secs(60))).unwrap().error.contains("8 taps are open"));
        assert_eq!(world.obey(0, command(Duration::ZERO)), None);
        sleep(Duration::from_millis(1)).await;
        assert_eq!(world.obey(99, command(Duration::from_secs(60))), None);
        world.leases = TapLeases::default();
        sleep(Duration::from_millis(1)).await;
        world.request();
        assert_eq!(world.tapped().await, None);
    }

    /// Aim: a stream that takes nothing holds up no request; what finds no room is counted and told.
    #[tokio::test(start_paused = true)]
    async fn what_finds_no_room_is_counted() {
        let mut world = World::new();
        world.obey(1, command(Duration::from_secs(60)));
        for _ in 0..1000 {
            world.request();
            sleep(Duration::from_millis(1)).await;
        }
        let (mut lines, mut seen, mut dropped) = (0, 0, 0);
        while let Some(tapped) = world.tapped().await {
            (lines, seen, dropped) = (lines + tapped.lines.len() as u64, seen + tapped.seen, dropped + tapped.dropped);
        }
        assert_eq!((seen, lines + dropped), (1000, 1000));
        assert!(dropped > 0 && lines > 250, "{lines} lines, {dropped} dropped");
    }
}
