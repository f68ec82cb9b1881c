//! Stores elsewhere: which places are one, and how many there may be.

use std::sync::Arc;

use super::*;

fn place(address: &str) -> Result<RedisPlace, (&'static str, &'static str)> {
    RedisPlace::new((address, false), ("", ""), "meshwright:", Duration::from_millis(50))
}

fn at(address: &str) -> RemotePlace {
    RemotePlace::Redis(Arc::new(place(address).unwrap()))
}

#[test]
fn a_place_is_read_or_refused_by_name() {
    // Aim: hosts, addresses of both families and their ports; what is none is told with its field.
    for (address, name) in [
        ("redis.data:6379", "redis/redis.data:6379"),
        ("Redis.Data:1", "redis/redis.data:1"),
        ("192.0.2.1:65535", "redis/192.0.2.1:65535"),
        ("[2001:DB8::1]:6379", "redis/[2001:db8::1]:6379"),
    ] {
        assert_eq!(at(address).name(), name);
    }
    for address in
        ["", "redis", "redis:", "redis:0", "redis:65536", "redis:+1", ":6379", "a b:1", "user@redis:1", "2001:db8::1:6379", "[redis]:1"]
    {
        assert_eq!(place(address).unwrap_err().0, "address", "{address}");
    }
    let wait = |millis| RedisPlace::new(("a:1", true), ("", ""), "", Duration::from_millis(millis)).map(drop).map_err(|(field, _)| field);
    assert_eq!((wait(0), wait(1), wait(1000), wait(1001)), (Err("timeout"), Ok(()), Ok(()), Err("timeout")));
    let named = |user, password| {
        RedisPlace::new(("a:1", true), (user, password), "", Duration::from_millis(1)).map(drop).map_err(|(field, _)| field)
    };
    assert_eq!((named("u", ""), named("u", "s"), named("", "s"), named("a\n", "s")), (Err("username"), Ok(()), Ok(()), Err("username")));
    let prefixed =
        |prefix: &str| RedisPlace::new(("a:1", true), ("", ""), prefix, Duration::from_millis(1)).map(drop).map_err(|(field, _)| field);
    assert_eq!((prefixed(&"p".repeat(64)), prefixed(&"p".repeat(65)), prefixed("ä")), (Ok(()), Err("key_prefix"), Err("key_prefix")));
}

#[test]
fn stores_have_a_bound() {
    // Aim: objects of a namespace share a place's store, those of another have their own; beyond sixteen of a namespace one has no place,
    // until one is named no more, and others' namespaces do not notice.
    let memories = LimitMemories::default();
    let named = |namespace: &str, number: usize| memories.store(at(&format!("{namespace}{number}:1")), namespace);
    let mut held: Vec<_> = (0..NAMESPACE_STORES_MAX).map(|number| named("team", number)).collect();
    assert!(Arc::ptr_eq(&held[0], &memories.store(at("team0:1"), "team")));
    assert!(!Arc::ptr_eq(&held[0], &memories.store(at("team0:1"), "other")));
    let (more, other) = (named("team", 99), named("shop", 0));
    let beyond = || memories.placed_stores().1.iter().map(|store| store.place.name()).collect::<Vec<_>>();
    assert_eq!((memories.placed_stores().0.len(), beyond()), (NAMESPACE_STORES_MAX + 1, vec!["redis/team99:1".to_owned()]));
    held.pop();
    assert!(beyond().is_empty());
    let all: Vec<_> = (0..STORES_MAX).map(|number| memories.store(at(&format!("s{number}:1")), &number.to_string())).collect();
    assert_eq!((memories.placed_stores().0.len(), beyond().len()), (STORES_MAX, NAMESPACE_STORES_MAX + 1));
    drop((all, more, other));
}

#[test]
fn what_is_wrong_with_a_store_is_remembered_until_it_is_over() {
    // Aim: the latest cause, since the first; failures are counted on.
    let memories = LimitMemories::default();
    let store = memories.store(at("s:1"), "shop");
    store.trouble.failed("one", 10);
    store.trouble.failed("two", 20);
    assert_eq!(store.trouble.away(), Some(("two".to_owned(), 10)));
    assert_eq!(memories.store_readings(), [StoreReading { store: "redis/s:1".to_owned(), away: true, failures: 2 }]);
    store.trouble.over();
    store.live.is_here();
    assert_eq!((store.trouble.away(), store.live.is_away(Moment::of_nanos(5))), (None, true));
    assert_eq!(store.trouble.failures(), 2);
}

#[test]
fn each_object_has_the_trouble_of_its_own_store_alone() {
    // Aim: two tenants name one HOST:PORT, one of them with a password that is wrong: the other's object has nothing to do with that; and an
    // object that counts elsewhere since its last edit has no part in what it left.
    let memories = LimitMemories::default();
    let named = |policy: &str, password: &str| {
        let place = RedisPlace::new(("shared:1", false), ("", password), "meshwright:", Duration::from_millis(50)).unwrap();
        let store = memories.store(RemotePlace::Redis(Arc::new(place)), policy.split_once('/').unwrap().0);
        let memory = memories.adopt(policy);
        memory.count_at(&policy.into(), Some(&store));
        (memory, store)
    };
    let (wrong, right) = (named("a/limits", "a/redis/password"), named("b/limits", "b/redis/password"));
    let (open, other) = (named("c/limits", ""), named("d/limits", ""));
    wrong.1.trouble.failed("WRONGPASS", 10);
    open.1.trouble.failed("gone", 10);
    let away = || -> Vec<_> {
        memories.stores_of().into_iter().filter_map(|(policy, store)| Some((policy.to_string(), store.trouble.away()?.0))).collect()
    };
    let told = |policy: &str, why: &str| (policy.to_owned(), why.to_owned());
    assert_eq!(away(), [told("a/limits", "WRONGPASS"), told("c/limits", "gone")]);
    wrong.0.count_at(&"a/limits".into(), None);
    assert_eq!(away(), [told("c/limits", "gone")]);
    // A login's sessions are told of in the same way, until it keeps them elsewhere.
    memories.login_keeps_at("a/people", Some(&open.1));
    assert_eq!(away(), [told("c/limits", "gone"), told("a/people", "gone")]);
    memories.login_keeps_at("a/people", None);
    assert_eq!(away(), [told("c/limits", "gone")]);
    drop((right, other));
}
