//! When to ask for the next leaf: pure, time and chance come in as arguments.
//!
//! A leaf is renewed at a given share of its life, give or take five per cent of it, so that leaves issued together are not renewed
//! together. The old one serves until it expires; failures are retried with growing, jittered pauses that shrink again near the end.

use std::time::{Duration, SystemTime};

/// Renewal point where the mesh does not say: two thirds.
pub const PERCENT_DEFAULT: u32 = 66;
/// How far the renewal point is spread, per cent of the life, both ways together.
const JITTER_PERCENT: f64 = 10.0;
/// Shortest life believed.
const LIFE_MIN: Duration = Duration::from_secs(1);
/// First pause after a failure.
const PAUSE_MIN: Duration = Duration::from_millis(250);
/// Longest pause while the old leaf holds.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// Longest pause without a valid leaf: a fresh proxy is waiting.
const PAUSE_WITHOUT_MAX: Duration = Duration::from_secs(5);

/// Leaves that a change of the issuing root has renewed at once are renewed over this long, or a tenth of what is left of them.
const DISPLACED_SPREAD: Duration = Duration::from_secs(5);

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The wake-up that [`Effect::WakeAt`] asked for, or the start.
    Due,
    /// A new leaf was verified and published.
    Issued {
        /// Start of its validity.
        not_before: SystemTime,
        /// End of its validity.
        not_after: SystemTime,
    },
    /// The attempt came to nothing.
    Failed,
    /// The mesh says how long leaves live and at which share of it they are renewed. A leaf issued for longer than the mesh now
    /// wishes is renewed as if it had the wished life.
    Mesh {
        /// Per cent of the life.
        percent: u32,
        /// Wished life.
        life: Duration,
    },
    /// The leaf is below another root than the one that issues now: its root is about to go. Told again it changes nothing.
    Displaced,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask for a leaf; then tell [`Event::Issued`] or [`Event::Failed`].
    Request,
    /// Tell [`Event::Due`] at that time; replaces an earlier wish.
    WakeAt(SystemTime),
    /// The leaf ends soon (or has ended, with zero) and no new one could be had.
    Warn {
        /// Time left.
        left: Duration,
    },
}

/// See the module.
#[derive(Clone, Debug)]
pub struct Rotation {
    percent: u32,
    wished: Duration,
    leaf: Option<(SystemTime, SystemTime)>,
    failures: u32,
    displaced: bool,
}

impl Default for Rotation {
    fn default() -> Self {
        Self { percent: PERCENT_DEFAULT, wished: Duration::MAX, leaf: None, failures: 0, displaced: false }
    }
}

impl Rotation {
    /// Takes an event at wall time `now`; `chance` is uniform in 0..1.
    pub fn on(&mut self, event: Event, now: SystemTime, chance: f64) -> Vec<Effect> {
        match event {
            Event::Due => vec![Effect::Request],
            Event::Issued { not_before, not_after } => {
                // Authorities date leaves back a little, for clocks that lag; the life that counts begins now.
                self.leaf = Some((not_before.max(now), not_after));
                self.failures = 0;
                self.displaced = false;
                vec![Effect::WakeAt(self.due(chance).max(now + PAUSE_MIN))]
            }
            Event::Failed => self.failed(now, chance),
            Event::Displaced => self.displaced(now, chance),
            Event::Mesh { percent, life } => {
                let (percent, life) = (percent.clamp(1, 95), life.max(LIFE_MIN));
                if (percent, life) == (self.percent, self.wished) {
                    return Vec::new();
                }
                (self.percent, self.wished) = (percent, life);
                let pending = self.leaf.is_some() && self.failures == 0 && !self.displaced;
                if pending { vec![Effect::WakeAt(self.due(chance).max(now))] } else { Vec::new() }
            }
        }
    }

    /// Soon, but not everybody at the same moment; a leaf that is due anyway is not put off.
    fn displaced(&mut self, now: SystemTime, chance: f64) -> Vec<Effect> {
        let Some((_, end)) = self.leaf.filter(|_| !self.displaced && self.failures == 0) else { return Vec::new() };
        self.displaced = true;
        let left = end.duration_since(now).unwrap_or_default();
        vec![Effect::WakeAt(now + DISPLACED_SPREAD.min(left / 10).mul_f64(chance))]
    }

    fn due(&self, chance: f64) -> SystemTime {
        let Some((begin, not_after)) = self.leaf else { return SystemTime::UNIX_EPOCH };
        let life = not_after.duration_since(begin).unwrap_or_default().min(self.wished);
        let percent = (f64::from(self.percent) + (chance - 0.5) * JITTER_PERCENT).clamp(1.0, 98.0);
        begin + life.mul_f64(percent / 100.0)
    }

    fn failed(&mut self, now: SystemTime, chance: f64) -> Vec<Effect> {
        self.failures = self.failures.saturating_add(1);
        let left = self.leaf.map(|(_, end)| end.duration_since(now).unwrap_or_default());
        // Near the end there must be time for several more attempts.
        let longest = match left {
            // Everybody waits for those whose root is about to go.
            Some(left) if !left.is_zero() && self.displaced => PAUSE_WITHOUT_MAX.min(left / 8).max(PAUSE_MIN),
            Some(left) if !left.is_zero() => PAUSE_MAX.min(left / 8).max(PAUSE_MIN),
            _ => PAUSE_WITHOUT_MAX,
        };
        let grown = PAUSE_MIN.saturating_mul(1 << self.failures.saturating_sub(1).min(16));
        let pause = grown.min(longest).mul_f64(0.5 + chance / 2.0);
        let mut effects = vec![Effect::WakeAt(now + pause)];
        if let (Some(left), Some((begin, end))) = (left, self.leaf) {
            let life = end.duration_since(begin).unwrap_or_default();
            if left < life / 5 {
                effects.push(Effect::Warn { left });
            }
        }
        effects
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn start() -> SystemTime {
        SystemTime::UNIX_EPOCH + HOUR * 24 * 365 * 50
    }

    /// Aim: a month of daily leaves, each renewed between 61 and 71 per cent of its life.
    #[test]
    fn a_month_of_rotations() {
        let mut rotation = Rotation::default();
        let mut now = start();
        for day in 0..30 {
            assert_eq!(rotation.on(Event::Due, now, 0.5), [Effect::Request]);
            let issued = Event::Issued { not_before: now, not_after: now + HOUR * 24 };
            let effects = rotation.on(issued, now, f64::from(day) / 30.0);
            let [Effect::WakeAt(at)] = effects.as_slice() else { panic!("{effects:?}") };
            let share = at.duration_since(now).unwrap().as_secs_f64() / (HOUR * 24).as_secs_f64();
            assert!((0.609..0.711).contains(&share), "{share}");
            now = *at;
        }
    }

    /// Aim: a leaf of one minute is renewed with time for many attempts, which never wait past its end.
    #[test]
    fn a_minute_is_enough() {
        let mut rotation = Rotation::default();
        let end = start() + Duration::from_secs(60);
        let effects = rotation.on(Event::Issued { not_before: start(), not_after: end }, start(), 0.0);
        let &[Effect::WakeAt(mut now)] = effects.as_slice() else { panic!("{effects:?}") };
        let (mut attempts, mut warned) = (0, false);
        while now < end {
            attempts += 1;
            let effects = rotation.on(Event::Failed, now, 1.0);
            warned |= effects.iter().any(|effect| matches!(effect, Effect::Warn { .. }));
            let Effect::WakeAt(next) = effects[0] else { panic!("{effects:?}") };
            now = next;
        }
        assert!(attempts >= 10 && warned, "{attempts} attempts");
        assert!(now < end + PAUSE_WITHOUT_MAX);
    }

    /// Aim: a leaf dated back by as much as it lives is not renewed at once.
    #[test]
    fn a_backdated_leaf_is_as_good() {
        let mut rotation = Rotation::default();
        let minute = Duration::from_secs(60);
        rotation.on(Event::Mesh { percent: 50, life: minute }, start(), 0.5);
        let issued = Event::Issued { not_before: start() - minute, not_after: start() + minute };
        assert_eq!(rotation.on(issued, start(), 0.5), [Effect::WakeAt(start() + minute / 2)]);
    }

    /// Aim: without any leaf the pauses grow to five seconds and no further, jittered downwards.
    #[test]
    fn a_fresh_proxy_asks_often() {
        let mut rotation = Rotation::default();
        let mut pauses = Vec::new();
        for _ in 0..12 {
            let effects = rotation.on(Event::Failed, start(), 1.0);
            let [Effect::WakeAt(at)] = effects.as_slice() else { panic!("{effects:?}") };
            pauses.push(at.duration_since(start()).unwrap());
        }
        assert_eq!((pauses[0], pauses[11]), (PAUSE_MIN, PAUSE_WITHOUT_MAX));
        assert!(pauses.is_sorted());
        let effects = rotation.on(Event::Failed, start(), 0.0);
        assert_eq!(effects, [Effect::WakeAt(start() + PAUSE_WITHOUT_MAX / 2)]);
    }

    /// Aim: a leaf whose root is about to go is renewed within seconds, spread by chance and once, and often while that fails; before the
    /// first leaf there is nothing to renew, and a share changed meanwhile does not put it off.
    #[test]
    fn a_displaced_leaf_is_renewed_at_once() {
        let mut rotation = Rotation::default();
        assert!(rotation.on(Event::Displaced, start(), 1.0).is_empty());
        let issued = Event::Issued { not_before: start(), not_after: start() + HOUR };
        rotation.on(issued, start(), 0.5);
        assert_eq!(rotation.on(Event::Displaced, start(), 0.5), [Effect::WakeAt(start() + DISPLACED_SPREAD / 2)]);
        assert!(rotation.on(Event::Displaced, start(), 1.0).is_empty());
        assert!(rotation.on(Event::Mesh { percent: 50, life: HOUR }, start(), 0.5).is_empty());
        let pauses = (0..12).map(|_| rotation.on(Event::Failed, start(), 1.0)).map(|effects| match effects[0] {
            Effect::WakeAt(at) => at.duration_since(start()).unwrap(),
            other => panic!("{other:?}"),
        });
        assert_eq!(pauses.max(), Some(PAUSE_WITHOUT_MAX));
        rotation.on(issued, start(), 0.5);
        let minute = start() + HOUR - Duration::from_secs(60) + Duration::from_secs(50);
        assert_eq!(rotation.on(Event::Displaced, minute, 1.0), [Effect::WakeAt(minute + Duration::from_secs(1))]);
    }

    /// Aim: a changed share moves the renewal; before the first leaf it is only remembered.
    #[test]
    fn the_mesh_may_move_the_point() {
        let mut rotation = Rotation::default();
        let mesh = |percent, life| Event::Mesh { percent, life };
        assert!(rotation.on(mesh(50, HOUR), start(), 0.5).is_empty());
        let issued = Event::Issued { not_before: start(), not_after: start() + HOUR };
        assert_eq!(rotation.on(issued, start(), 0.5), [Effect::WakeAt(start() + HOUR / 2)]);
        assert_eq!(rotation.on(mesh(25, HOUR), start(), 0.5), [Effect::WakeAt(start() + HOUR / 4)]);
        assert!(rotation.on(mesh(25, HOUR), start(), 0.5).is_empty());
        let late = start() + HOUR / 2;
        assert_eq!(rotation.on(mesh(30, HOUR), late, 0.5), [Effect::WakeAt(late)]);
        assert_eq!(
            rotation.on(mesh(30, HOUR * 24), start(), 0.5),
            [Effect::WakeAt(start() + HOUR * 3 / 10)],
            "a longer life waits for the next leaf"
        );
        assert_eq!(rotation.on(mesh(50, HOUR / 60), start(), 0.5), [Effect::WakeAt(start() + HOUR / 120)], "a shorter one counts at once");
    }
}
