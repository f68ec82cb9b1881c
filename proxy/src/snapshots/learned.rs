//! Which names' DNS answers gave which addresses to the application, for as long as they may be called by them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Names with an address that are kept, at most. When full, those that end soonest make room.
const LEARNED_MAX: usize = 16_384;
/// Names of one address that are kept, at most: each is looked at by every connection there.
const NAMES_PER_ADDRESS_MAX: usize = 256;
/// How long an answer is believed beyond its time to live: applications keep addresses longer than they may.
const GRACE: Duration = Duration::from_secs(600);
/// Longest time to live that is believed.
const TTL_MAX: Duration = Duration::from_secs(24 * 3600);

/// See the module. Shared by the resolver and the workers; asked once per connection past the mesh.
#[derive(Debug, Default)]
pub struct Learned(Mutex<Answers>);

type Names = BTreeMap<Arc<str>, Instant>;

/// By address, each name with its end.
#[derive(Debug, Default)]
struct Answers {
    addresses: BTreeMap<IpAddr, Names>,
    count: usize,
}

impl Learned {
    /// An answer for a name (lower case, without trailing dot) gave these addresses, each for so many seconds.
    pub fn note(&self, name: &str, found: &[(IpAddr, u32)], now: Instant) {
        let name: Arc<str> = name.into();
        let mut answers = self.0.lock();
        for (address, ttl_secs) in found {
            let until = now + Duration::from_secs((*ttl_secs).into()).min(TTL_MAX) + GRACE;
            answers.note(address.to_canonical(), &name, until, now);
        }
    }

    /// The names whose answers gave this address, and have not ended.
    pub fn names(&self, address: IpAddr, now: Instant) -> Vec<Arc<str>> {
        let answers = self.0.lock();
        let names = answers.addresses.get(&address.to_canonical());
        names.into_iter().flatten().filter(|(_, until)| **until > now).map(|(name, _)| Arc::clone(name)).collect()
    }

    /// The addresses that answers for a name gave, IPv4 first.
    pub fn addresses(&self, name: &str, now: Instant) -> Vec<IpAddr> {
        let answers = self.0.lock();
        let has = |names: &Names| names.get(name).is_some_and(|until| *until > now);
        answers.addresses.iter().filter(|(_, names)| has(names)).map(|(address, _)| *address).collect()
    }
}

impl Answers {
    fn note(&mut self, address: IpAddr, name: &Arc<str>, until: Instant, now: Instant) {
        let known = self.addresses.get_mut(&address).and_then(|names| names.get_mut(name));
        if let Some(known) = known {
            *known = until.max(*known);
            return;
        }
        if self.count >= LEARNED_MAX {
            self.make_room(now);
        }
        let names = self.addresses.entry(address).or_default();
        if names.len() >= NAMES_PER_ADDRESS_MAX
            && let Some(soonest) = names.iter().min_by_key(|(_, until)| **until).map(|(name, _)| Arc::clone(name))
        {
            names.remove(&soonest);
            self.count -= 1;
        }
        names.insert(Arc::clone(name), until);
        self.count += 1;
    }

    /// Lets go what has ended, else the sixteenth part that ends soonest: rarely, because it looks at all.
    fn make_room(&mut self, now: Instant) {
        let mut ends: Vec<Instant> = self.addresses.values().flat_map(|names| names.values().copied()).collect();
        ends.sort_unstable();
        let soon = ends.get(LEARNED_MAX / 16).copied().unwrap_or(now).max(now);
        for names in self.addresses.values_mut() {
            names.retain(|_, until| *until > soon);
        }
        self.addresses.retain(|_, names| !names.is_empty());
        self.count = self.addresses.values().map(BTreeMap::len).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        IpAddr::V4(number.into())
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_ends_some_time_after_its_life() {
        // Aim: both families, several names at one address, the longest life counts, and each ends with its grace.
        let (learned, now) = (Learned::default(), Instant::now());
        let six: IpAddr = "2001:db8::1".parse().unwrap();
        learned.note("a.example", &[(address(1), 30), (six, 30)], now);
        learned.note("b.example", &[(address(1), 300)], now);
        learned.note("a.example", &[(address(1), 5)], now);
        let names = |secs| learned.names(address(1), now + Duration::from_secs(secs)).iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(0), ["a.example", "b.example"]);
        assert_eq!(names(629), ["a.example", "b.example"]);
        assert_eq!(names(630), ["b.example"]);
        assert_eq!(names(900), Vec::<String>::new());
        assert_eq!(learned.names("::ffff:0.0.0.1".parse().unwrap(), now).len(), 2);
        assert_eq!(learned.addresses("a.example", now), [address(1), six]);
        learned.note("c.example", &[(address(2), u32::MAX)], now);
        assert!(learned.names(address(2), now + TTL_MAX + GRACE).is_empty(), "no life is endless");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded() {
        // Aim: neither many addresses nor many names of one grow without bound; what ends last stays.
        let (learned, now) = (Learned::default(), Instant::now());
        learned.note("kept.example", &[(address(0), 86_400)], now);
        for number in 0..2 * u32::try_from(LEARNED_MAX).unwrap() {
            learned.note("many.example", &[(address(number), number % 100)], now);
            assert!(learned.0.lock().count <= LEARNED_MAX);
        }
        assert!(learned.names(address(0), now).iter().any(|name| **name == *"kept.example"));
        for number in 0..2 * NAMES_PER_ADDRESS_MAX {
            learned.note(&format!("{number}.example"), &[(address(0), 60)], now);
        }
        let names = learned.names(address(0), now);
        assert!(names.len() <= NAMES_PER_ADDRESS_MAX && names.iter().any(|name| **name == *"kept.example"));
    }
}
