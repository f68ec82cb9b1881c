//! Who spoke plaintext to whom: what proxies report, kept beyond their restarts. Kept in memory only: a control plane that restarts hears
//! again of what its proxies have seen since they started, and of nothing before.

use std::collections::BTreeMap;

use proto::mesh::PlaintextPeer;

use super::epoch::moment;
use super::peer::of_key;
use crate::translate::is_strict;
use crate::world::{Kind, ObjectKey, Problem, Severity, World};

/// How long a sighting is kept after the last connection, milliseconds.
pub const PLAINTEXT_KEPT_MS: u64 = 24 * 3600 * 1000;
/// Sightings kept; beyond it the one not seen for longest makes room.
const SIGHTINGS_MAX: usize = 10_000;
/// Callers named one by one where there is something to say of each.
const LINES_MAX: usize = 10;

/// One caller at one port of one proxy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Spot {
    /// `NAMESPACE/INSTANCE`.
    proxy: String,
    source: String,
    port: u16,
}

#[derive(Clone, Debug)]
struct Counted {
    workload: String,
    /// By proxies' earlier runs.
    earlier: u64,
    /// By the present run.
    present: u64,
    last_seen_ms: u64,
}

/// A caller that spoke plaintext to a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Sighting {
    /// `NAMESPACE/WORKLOAD` where the caller was known, else its address.
    pub source: String,
    /// Namespace of the workload that was called.
    pub namespace: String,
    /// Its name.
    pub workload: String,
    /// The port called.
    pub port: u16,
    /// Connections.
    pub connections: u64,
    /// When the last one came, milliseconds since 1970.
    pub last_seen_ms: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct PlaintextBook {
    spots: BTreeMap<Spot, Counted>,
}

impl PlaintextBook {
    /// Takes a report of one proxy of a workload in. Its counts are those since its start: one that has become less has begun anew.
    /// `name` gives a caller's workload by its address.
    pub fn note(&mut self, (proxy, workload): (&str, &str), rows: &[PlaintextPeer], now_ms: u64, name: impl Fn(&str) -> Option<String>) {
        for row in rows {
            let Ok(port) = u16::try_from(row.port) else { continue };
            // What a proxy says of the future is of now.
            let seen_ms = parsed(&row.last_seen).unwrap_or(now_ms).min(now_ms);
            if now_ms - seen_ms > PLAINTEXT_KEPT_MS {
                continue;
            }
            let source = name(&row.source).unwrap_or_else(|| row.source.clone());
            let spot = Spot { proxy: proxy.to_owned(), source, port };
            if self.spots.len() >= SIGHTINGS_MAX && !self.spots.contains_key(&spot) {
                self.make_room(now_ms);
            }
            let fresh = Counted { workload: workload.to_owned(), earlier: 0, present: 0, last_seen_ms: 0 };
            let counted = self.spots.entry(spot).or_insert(fresh);
            if row.connections < counted.present {
                counted.earlier += counted.present;
            }
            counted.present = row.connections;
            counted.last_seen_ms = counted.last_seen_ms.max(seen_ms);
        }
    }

    fn make_room(&mut self, now_ms: u64) {
        self.spots.retain(|_, counted| now_ms.saturating_sub(counted.last_seen_ms) <= PLAINTEXT_KEPT_MS);
        if self.spots.len() >= SIGHTINGS_MAX
            && let Some(oldest) = self.spots.iter().min_by_key(|(_, counted)| counted.last_seen_ms).map(|(spot, _)| spot.clone())
        {
            self.spots.remove(&oldest);
        }
    }

    /// All that is kept, what several instances of a workload saw of one caller as one.
    pub fn sightings(&self, now_ms: u64) -> Vec<Sighting> {
        let mut sightings: BTreeMap<(&str, &str, &str, u16), (u64, u64)> = BTreeMap::new();
        for (spot, counted) in &self.spots {
            if now_ms.saturating_sub(counted.last_seen_ms) > PLAINTEXT_KEPT_MS {
                continue;
            }
            let namespace = of_key(&spot.proxy).map_or("", |(namespace, _, _)| namespace);
            let sum = sightings.entry((&spot.source, namespace, &counted.workload, spot.port)).or_default();
            sum.0 += counted.earlier + counted.present;
            sum.1 = sum.1.max(counted.last_seen_ms);
        }
        let sighting =
            |((source, namespace, workload, port), (connections, last_seen_ms)): ((&str, &str, &str, u16), (u64, u64))| Sighting {
                source: source.to_owned(),
                namespace: namespace.to_owned(),
                workload: workload.to_owned(),
                port,
                connections,
                last_seen_ms,
            };
        sightings.into_iter().map(sighting).collect()
    }
}

impl Sighting {
    fn at(&self, world: &World) -> Option<bool> {
        is_strict(world, (&self.namespace, &self.workload), self.port)
    }

    fn told(&self) -> String {
        let Self { source, namespace, workload, port, connections, last_seen_ms } = self;
        format!("{source} called {namespace}/{workload}:{port} in plaintext, {connections} times, last at {}", moment(*last_seen_ms))
    }

    /// Who is meant to mend it, and how.
    fn remedy() -> &'static str {
        "give the caller a sidecar, or make the port Permissive until it has one (portLevelMtls)"
    }

    /// For `get plaintext` (`kinds.md`).
    pub fn row(&self) -> serde_json::Value {
        serde_json::json!({
            "source": self.source,
            "destination": format!("{}/{}", self.namespace, self.workload),
            "port": self.port,
            "connections": self.connections,
            "last_seen": moment(self.last_seen_ms),
        })
    }
}

/// Who is cut by a change that makes ports Strict: one line each, for whoever makes it.
pub fn cut(before: &World, after: &World, sightings: &[Sighting]) -> Vec<String> {
    let cut = |sighting: &&Sighting| sighting.at(before) == Some(false) && sighting.at(after) == Some(true);
    let lines: Vec<String> = sightings.iter().filter(cut).map(Sighting::told).collect();
    let more = lines.len().saturating_sub(LINES_MAX);
    let mut shown: Vec<String> =
        lines.into_iter().take(LINES_MAX).map(|line| format!("Strict refuses it from now on: {line} ({})", Sighting::remedy())).collect();
    if more > 0 {
        shown.push(format!("Strict refuses {more} more callers from now on (`meshwright get plaintext` lists them)"));
    }
    shown
}

/// Who still calls a Strict port in plaintext, in vain.
pub fn refused(world: &World, sightings: &[Sighting]) -> Vec<Problem> {
    let refused = sightings.iter().filter(|sighting| sighting.at(world) == Some(true));
    let problem = |sighting: &Sighting| {
        let key = ObjectKey::new(Kind::Workload, &sighting.namespace, &sighting.workload);
        let live = world.slots().get(&key).and_then(|slot| slot.live());
        let place = live.map_or(("", 0), |live| (live.file.as_str(), live.line));
        let message = format!("{}, and Strict refuses it", sighting.told());
        Problem::of_object(Severity::Warning, place, &key, "", message, Sighting::remedy())
    };
    refused.take(LINES_MAX).map(problem).collect()
}

/// Milliseconds since 1970 of an RFC 3339 text.
fn parsed(text: &str) -> Option<u64> {
    let parsed = time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339).ok()?;
    u64::try_from(parsed.unix_timestamp_nanos() / 1_000_000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{FileChange, Folder};
    use crate::world::{Allocations, WorldSettings};

    const HOUR_MS: u64 = 3600 * 1000;

    fn row(source: &str, port: u32, connections: u64, last_seen: &str) -> PlaintextPeer {
        PlaintextPeer { source: source.into(), destination: String::new(), port, connections, last_seen: last_seen.into() }
    }

    fn name(address: &str) -> Option<String> {
        (address == "10.77.0.2").then(|| "shop/frontend".to_owned())
    }

    #[test]
    fn counts_outlive_a_proxy_and_end_after_a_day() {
        // Aim: a proxy that starts anew adds to what it saw before; instances of one workload are one row, a known caller has its name;
        // a day after the last connection the row is gone.
        let mut book = PlaintextBook::default();
        let note = |book: &mut PlaintextBook, proxy: &str, rows: &[PlaintextPeer], now_ms| book.note((proxy, "store"), rows, now_ms, name);
        note(&mut book, "shop/store-0", &[row("10.77.0.2", 8080, 5, "1970-01-01T01:00:00Z")], HOUR_MS);
        note(&mut book, "shop/store-0", &[row("10.77.0.2", 8080, 7, "1970-01-01T01:00:10Z")], 2 * HOUR_MS);
        note(&mut book, "shop/store-0", &[row("10.77.0.2", 8080, 2, "1970-01-01T02:00:00Z")], 2 * HOUR_MS);
        note(
            &mut book,
            "shop/store-1",
            &[row("10.77.0.2", 8080, 1, "1970-01-01T01:30:00Z"), row("192.0.2.1", 9, 1, "garbage")],
            2 * HOUR_MS,
        );
        let rows = book.sightings(2 * HOUR_MS);
        let shown: Vec<_> = rows.iter().map(|row| (row.source.as_str(), row.workload.as_str(), row.port, row.connections)).collect();
        assert_eq!(shown, [("192.0.2.1", "store", 9, 1), ("shop/frontend", "store", 8080, 10)]);
        assert_eq!(rows[1].last_seen_ms, 2 * HOUR_MS);
        assert_eq!(book.sightings(26 * HOUR_MS).len(), 2);
        assert_eq!(book.sightings(26 * HOUR_MS + 1).len(), 0);
    }

    #[test]
    fn the_book_is_bounded() {
        // Aim: however many callers there are, the newest are kept; what is older than a day is not even taken in.
        let mut book = PlaintextBook::default();
        for number in 0..SIGHTINGS_MAX + 10 {
            let at = HOUR_MS + number as u64;
            book.note(("shop/store", "store"), &[row(&format!("a{number}"), 1, 1, "garbage")], at, name);
        }
        let rows = book.sightings(HOUR_MS * 2);
        assert_eq!(rows.len(), SIGHTINGS_MAX);
        assert!(rows.iter().all(|row| row.last_seen_ms >= HOUR_MS + 10));
        book.note(("shop/store", "store"), &[row("old", 1, 1, "1970-01-01T00:00:00Z")], 30 * HOUR_MS, name);
        assert!(book.sightings(30 * HOUR_MS).is_empty());
    }

    const WORKLOAD: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {meshwright.dev/inject: enabled}}
---
apiVersion: meshwright.dev/v1alpha1
kind: Workload
metadata: {name: store, namespace: shop, labels: {app: store}}
spec: {command: [x], ports: [{name: http, port: 8080}, {name: admin, port: 9090}]}
";

    fn world(modes: &[(&str, &str)]) -> World {
        let object = |(number, (namespace, spec)): (usize, &(&str, &str))| {
            format!(
                "---\napiVersion: meshwright.dev/v1alpha1\nkind: PeerAuthentication\nmetadata: {{name: p{number}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
            )
        };
        let text = format!("{WORKLOAD}{}", modes.iter().enumerate().map(object).collect::<String>());
        let mut world = World::new(WorldSettings::default(), Allocations::default());
        world.apply(Folder::default().update(vec![FileChange { file: "f".to_owned(), text: Some(Ok(text)) }], 0));
        assert!(world.problems().is_empty(), "{:?}", world.problems());
        world
    }

    #[test]
    fn strict_at_any_level_names_whom_it_cuts() {
        // Aim: of the mesh, the namespace, the workload and the port the narrowest that says something decides; who is cut by a change is
        // named with port and time, once, and nobody who was cut before or is served on.
        let mut book = PlaintextBook::default();
        let seen = [row("10.77.0.2", 8080, 5, "1970-01-01T01:00:00Z"), row("192.0.2.1", 9090, 1, "1970-01-01T01:00:00Z")];
        book.note(("shop/store", "store"), &seen, HOUR_MS, name);
        book.note(("shop/gone", "gone"), &seen, HOUR_MS, name);
        let sightings = book.sightings(HOUR_MS);
        let (mesh, strict, permissive) = ("meshwright-system", "mtls: {mode: Strict}", "mtls: {mode: Permissive}");
        let store = |modes: &str| format!("selector: {{matchLabels: {{app: store}}}}, {modes}");
        let by_port = store("portLevelMtls: {'9090': {mode: Strict}}");
        let open_port = store("mtls: {mode: Strict}, portLevelMtls: {'9090': {mode: Permissive}}");
        for (case, before, after, ports) in [
            ("nothing", vec![], vec![], &[][..]),
            ("the mesh", vec![], vec![(mesh, strict)], &[8080, 9090]),
            ("the namespace", vec![], vec![("shop", strict)], &[8080, 9090]),
            ("another namespace", vec![], vec![("bank", strict)], &[]),
            ("the mesh, not the namespace", vec![], vec![(mesh, strict), ("shop", permissive)], &[]),
            ("the workload", vec![("shop", permissive)], vec![("shop", permissive), ("shop", &store(strict))], &[8080, 9090]),
            ("one port", vec![], vec![("shop", &by_port)], &[9090]),
            ("all but one port", vec![], vec![("shop", &open_port)], &[8080]),
            ("what was so before", vec![(mesh, strict)], vec![("shop", strict)], &[]),
            ("opened", vec![(mesh, strict)], vec![], &[]),
            ("an exception that is gone", vec![(mesh, strict), ("shop", permissive)], vec![(mesh, strict)], &[8080, 9090]),
        ] {
            let (before, after) = (world(&before), world(&after));
            let lines = cut(&before, &after, &sightings);
            let named = |port: u16| lines.iter().filter(|line| line.contains(&format!("shop/store:{port} in plaintext"))).count();
            assert_eq!(lines.len(), ports.len(), "{case}: {lines:?}");
            assert!(ports.iter().all(|port| named(*port) == 1), "{case}: {lines:?}");
            assert!(lines.iter().all(|line| line.contains("last at 1970-01-01T01:00:00Z")), "{case}: {lines:?}");
        }
        let refused = refused(&world(&[("shop", &open_port)]), &sightings);
        assert_eq!(refused.len(), 1);
        assert!(
            refused[0].to_string().starts_with("f:5: warning: Workload shop/store: shop/frontend called shop/store:8080"),
            "{}",
            refused[0]
        );
    }

    #[test]
    fn many_are_counted() {
        // Aim: a change that cuts a hundred callers says so in a few lines.
        let mut book = PlaintextBook::default();
        let rows: Vec<_> = (0..100).map(|number| row(&format!("192.0.2.{number}"), 8080, 1, "")).collect();
        book.note(("shop/store", "store"), &rows, HOUR_MS, name);
        let lines = cut(&world(&[]), &world(&[("shop", "mtls: {mode: Strict}")]), &book.sightings(HOUR_MS));
        assert_eq!(lines.len(), LINES_MAX + 1);
        assert!(lines[LINES_MAX].contains("90 more callers"), "{lines:?}");
    }
}
