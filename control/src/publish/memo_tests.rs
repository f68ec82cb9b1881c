use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::*;
use crate::publish::cache::{Cache, Composition};
use crate::publish::edition::Edition;
use crate::publish::random::{ADDRESSES, Random, VIRTUAL};
use crate::publish::session::Content;
use crate::translate::{Audience, Calling, audiences, touched, view};
use crate::world::edge::consumer_page;
use crate::world::traffic::Caller;
use crate::world::{Kind, ObjectKey};

/// Changes of each of the worlds.
const STEPS: usize = 80;

/// Keys of parts that any proxy could ask for.
fn keys(world: &World) -> BTreeSet<PartKey> {
    let index = world.index();
    let given = index.services.values().flat_map(|view| &view.addresses).chain(index.gateway_addresses.values().flatten()).copied();
    let addresses: BTreeSet<IpAddr> = given.chain(ADDRESSES.iter().chain(&VIRTUAL).filter_map(|text| text.parse().ok())).collect();
    let caller =
        |namespace: &str, account: Option<&str>| Caller { namespace: namespace.to_owned(), service_account: account.map(str::to_owned) };
    let callers = [caller("a", None), caller("b", None), caller("a", Some("special"))];
    let mut keys = BTreeSet::new();
    for address in addresses {
        for (caller, port) in callers.iter().flat_map(|caller| [80, 8080].map(|port| (caller, port))) {
            keys.insert(PartKey::Outbound(SocketAddr::new(address, port), caller.clone()));
        }
    }
    let names = [
        "s0",
        "s1.b",
        "s2.a.svc.cluster.local",
        "x.s0",
        "x-0.s1.a",
        "_http._tcp.s0.a.svc",
        "b.svc.cluster.local",
        "gone",
        "1.0.1.10.in-addr.arpa",
        "1.0.96.10.in-addr.arpa",
    ];
    for name in names {
        for namespace in ["a", "b"] {
            keys.insert(PartKey::Name(format!("dns/{name}"), namespace.to_owned()));
        }
    }
    let audiences = audiences(world);
    // Of 128 pages those that may hold something.
    let usable = audiences.iter().filter_map(|audience| audience.usable(index));
    let pages = [("a", "c0"), ("a", "c1"), ("b", "c0"), ("b", "c2")];
    let pages = pages.map(|(namespace, name)| consumer_page(&ObjectKey::new(Kind::Consumer, namespace, name)));
    let paged: Vec<_> = usable.flat_map(|usable| pages.map(|page| PartKey::Consumers(Arc::clone(&usable), page))).collect();
    keys.extend(paged);
    keys.extend(audiences.into_iter().map(PartKey::Own));
    keys.extend(["a", "b"].map(|namespace| PartKey::Secrets((namespace.to_owned(), "g0".to_owned()))));
    let led: BTreeSet<_> = keys.iter().flat_map(|key| key.make(world).destinations).collect();
    for destination in led {
        for (namespace, mode) in [("a", proto::names::Mode::Sidecar), ("b", proto::names::Mode::Edge)] {
            let calling = Calling { namespace: namespace.to_owned(), mode, sessions: namespace == "b", shows: None };
            keys.insert(PartKey::Cluster(destination.clone(), calling));
        }
        keys.insert(PartKey::Assignment(destination));
    }
    keys
}

/// Own sides of those who are somebody else now, or nobody.
fn is_former(key: &PartKey, now: &BTreeSet<Audience>) -> bool {
    matches!(key, PartKey::Own(audience) if !now.contains(audience))
}

#[test]
fn what_is_kept_is_what_would_be_made() {
    // Aim: whatever changes: the advanced index is the one built from nothing; what depends on nothing that is touched is the same as
    // before, and an audience too; and a part from the memo is the part made at this moment.
    let mut seen = Seen::default();
    for seed in 1..=6_u64 {
        let mut random = Random::new(seed * 7919);
        let memo = Memo::default();
        let mut before = random.world.clone();
        memo.turn(1, &Affected::All);
        let mut known: BTreeMap<PartKey, Arc<ViewPart>> =
            keys(&before).into_iter().map(|key| (key.clone(), memo.part(1, &before, key))).collect();
        for serial in 2..u64::try_from(STEPS).unwrap() {
            random.change();
            let (world, at) = (random.world.clone(), format!("seed {seed}, step {serial}, {}", random.said));
            let (advanced, built) = (world.index().plain(), crate::world::Index::rebuilt(&world).plain());
            if advanced != built {
                let line = advanced.lines().zip(built.lines()).find(|(a, b)| a != b);
                panic!("{at}: the index differs: {line:#?}");
            }
            assert_eq!(world.content_hash(), world.content_anew(), "{at}");
            let touched = touched(&before, &world);
            memo.turn(serial, &touched);
            let audiences: BTreeSet<Audience> = audiences(&world).into_iter().collect();
            seen.kinds.extend(world.live().map(|(key, _)| key.kind));
            for (key, part) in &known {
                let (now, untouched) = (key.make(&world), !touched.concerns(&part.subjects));
                let counts = seen.parts.entry(word(key)).or_default();
                (counts.0, counts.1) = (counts.0 + usize::from(**part != now), counts.1 + usize::from(untouched));
                if untouched {
                    assert!(!is_former(key, &audiences), "{at}: not touched, and another audience: {key:?}");
                    assert_eq!(**part, now, "{at}: not touched, and changed: {key:?}");
                }
            }
            known = keys(&world).into_iter().map(|key| (key.clone(), memo.part(serial, &world, key))).collect();
            for (key, part) in &known {
                assert_eq!(**part, key.make(&world), "{at}: kept otherwise than made: {key:?}");
            }
            before = world;
        }
    }
    // Not in vain: there was everything, parts of every sort changed, and most did not.
    assert!(seen.kinds.len() >= 18, "{seen:?}");
    // Consumers are of few Gateways, and rarely change while they are.
    let often = |(word, (changed, untouched)): (&&str, &(usize, usize))| {
        let least = match *word {
            "consumers" => 1,
            "secrets" => 3,
            _ => 20,
        };
        *changed >= least && untouched > changed
    };
    assert!(seen.parts.len() == 7 && seen.parts.iter().all(often), "{seen:?}");
}

/// What has been there.
#[derive(Debug, Default)]
struct Seen {
    kinds: BTreeSet<Kind>,
    /// By the sort of part: how often one was another one afterwards, and how often none of its subjects was touched.
    parts: BTreeMap<&'static str, (usize, usize)>,
}

fn word(key: &PartKey) -> &'static str {
    match key {
        PartKey::Own(_) => "own",
        PartKey::Outbound(..) => "outbound",
        PartKey::Name(..) => "name",
        PartKey::Cluster(..) => "cluster",
        PartKey::Secrets(..) => "secrets",
        PartKey::Assignment(_) => "assignment",
        PartKey::Consumers(..) => "consumers",
    }
}

#[test]
fn a_view_from_the_memo_is_the_view() {
    // Aim: put together from kept parts, views of all proxies are those that translation makes from nothing.
    let mut random = Random::new(99);
    let memo = Memo::default();
    let mut before = random.world.clone();
    memo.turn(1, &Affected::All);
    for serial in 2..60 {
        random.change();
        let world = random.world.clone();
        memo.turn(serial, &touched(&before, &world));
        let wanted = VIRTUAL.iter().chain(&ADDRESSES).map(|address| format!("out/{address}:80"));
        let wants: BTreeSet<String> = wanted.chain(["dns/s0", "dns/s1.b", "dns/nobody", "what"].map(str::to_owned)).collect();
        for audience in audiences(&world) {
            let mut kept = BTreeMap::new();
            let part = |key| memo.part(serial, &world, key);
            let composed = crate::translate::compose(&world, &audience, &wants, part, |part| {
                kept.extend(part.resources.iter().map(|(url, name, item)| ((*url, name.clone()), item.clone())));
            });
            let made = view(&world, &audience, &wants);
            assert!(kept == made.resources && composed.missing == made.missing, "step {serial}, {}", random.said);
        }
        before = world;
    }
}

#[test]
fn what_is_patched_is_what_would_be_put_together_anew() {
    // Aim: whatever changes, a stream that takes other versions of what it has where that is all there is to it has what one that begins
    // now has, and depends on the same.
    let mut random = Random::new(17);
    let cache = Cache::default();
    let edition = |serial: u64, world: World| Edition { world, epoch: serial, serial, roots: crate::publish::trust::tests::one() };
    let mut before = edition(1, random.world.clone());
    cache.turn(&before, Affected::All);
    let (mut known, mut counts) = (BTreeMap::<Audience, (Content, Composition)>::new(), (0, 0, 0));
    for serial in 2..500 {
        random.change();
        let now = edition(serial, random.world.clone());
        cache.turn(&now, now.touched(Some(&before)));
        let wanted = VIRTUAL.iter().chain(&ADDRESSES).map(|address| format!("out/{address}:80"));
        let wants: BTreeSet<String> = wanted.chain(["dns/s0", "dns/s1.b"].map(str::to_owned)).collect();
        let mut next = BTreeMap::new();
        for audience in audiences(&now.world) {
            let (content, fresh) = cache.content(&now, &audience, &wants);
            let former = known.remove(&audience).and_then(|(mut held, mut shown)| {
                for (url, name, item) in cache.patch(&now, &audience, &mut shown, &held)? {
                    counts.1 += 1;
                    held.get_mut(url).unwrap().insert(name, item);
                }
                assert!(held == content && shown.subjects == fresh.subjects, "step {serial}, {audience:?}, {}", random.said);
                Some((held, shown))
            });
            counts.0 += usize::from(former.is_some());
            counts.2 += usize::from(former.is_none());
            next.insert(audience, former.unwrap_or((content, fresh)));
        }
        (known, before) = (next, now);
    }
    assert!(counts.0 > 300 && counts.1 > 50 && counts.2 > 300, "{counts:?}");
}

fn outbound(number: usize) -> PartKey {
    let address = SocketAddr::new(IpAddr::from([10, 200, u8::try_from(number >> 8).unwrap(), u8::try_from(number & 255).unwrap()]), 80);
    PartKey::Outbound(address, Caller { namespace: "a".to_owned(), service_account: None })
}

#[test]
fn what_is_the_same_stays_the_very_same() {
    // Aim: made again because everything was touched, a part is the former one; one that is behind the newest edition gets its own and
    // changes nothing for others.
    let world = Random::new(5).world;
    let memo = Memo::default();
    memo.turn(1, &Affected::All);
    let key = outbound(1);
    let first = memo.part(1, &world, key.clone());
    assert!(Arc::ptr_eq(&first, &memo.part(1, &world, key.clone())));
    memo.turn(2, &Affected::All);
    assert!(Arc::ptr_eq(&first, &memo.part(2, &world, key.clone())));
    assert_eq!(memo.counts(), (1, 2));
    assert!(!Arc::ptr_eq(&first, &memo.part(1, &world, key)));
    assert_eq!(memo.counts(), (1, 3));
}

#[test]
fn the_memo_has_a_bound() {
    // Aim: beyond its bounds everything is made again, and nothing is wrong.
    let world = World::new(Default::default(), Default::default());
    let memo = Memo::default();
    memo.turn(1, &Affected::All);
    let part = Arc::new(ViewPart::default());
    let mut kept = memo.kept.lock();
    for number in 0..PARTS_MAX {
        kept.parts.insert(PartKey::Name(number.to_string(), String::new()), Slot { part: part.clone(), right: 1 });
    }
    drop(kept);
    memo.part(1, &world, outbound(1));
    assert_eq!(memo.counts().0, 1);
    let many = (0..=SUBJECTS_MAX).map(|number| Subject::service(&("a".to_owned(), number.to_string()))).collect();
    memo.turn(2, &Affected::Some(many));
    let kept = memo.kept.lock();
    assert_eq!((kept.all, kept.touched.len()), (2, 0));
}
