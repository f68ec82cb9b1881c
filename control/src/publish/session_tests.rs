//! Each rule of `xds.md` section 1.4 by its number, the barrier, and a property over random streams.

use proptest::prelude::*;
use prost::Message;

use super::*;

const CDS: &str = xds::CLUSTER;
const EDS: &str = xds::ENDPOINT;
const LDS: &str = xds::LISTENER;

fn content(rows: &[(&'static str, &str, &str)]) -> Content {
    let mut content = Content::new();
    for (url, name, version) in rows {
        let url = type_urls().iter().find(|known| *known == url).unwrap();
        let item = Encoded::of_version((*version).to_owned(), prost_types::Any { type_url: (*url).into(), value: vec![0; 8] });
        content.entry(url).or_default().insert((*name).to_owned(), Arc::new(item));
    }
    content
}

#[derive(Default)]
struct Ask(DeltaDiscoveryRequest);

fn ask(url: &str) -> Ask {
    Ask(DeltaDiscoveryRequest { type_url: url.into(), ..Default::default() })
}

impl Ask {
    fn more(mut self, names: &[&str]) -> Self {
        self.0.resource_names_subscribe = names.iter().map(ToString::to_string).collect();
        self
    }
    fn less(mut self, names: &[&str]) -> Self {
        self.0.resource_names_unsubscribe = names.iter().map(ToString::to_string).collect();
        self
    }
    fn has(mut self, rows: &[(&str, &str)]) -> Self {
        self.0.initial_resource_versions = rows.iter().map(|(name, version)| (name.to_string(), version.to_string())).collect();
        self
    }
    fn ack(mut self, nonce: &str) -> Self {
        self.0.response_nonce = nonce.into();
        self
    }
    fn nack(mut self, nonce: &str, message: &str) -> Self {
        self.0.response_nonce = nonce.into();
        self.0.error_detail = Some(xds::rpc::Status { code: 3, message: message.into(), ..Default::default() });
        self
    }
    fn to(self, session: &mut Session) -> Meaning {
        session.request(self.0).unwrap()
    }
}

/// Everything that is sent now: (short type, added names, removed names).
fn drain(session: &mut Session) -> Vec<(String, Vec<String>, Vec<String>)> {
    std::iter::from_fn(|| session.next_response())
        .map(|r| {
            let short = r.type_url.rsplit('.').next().unwrap().to_owned();
            (short, r.resources.into_iter().map(|r| r.name).collect(), r.removed_resources)
        })
        .collect()
}

fn said(short: &str, added: &[&str], removed: &[&str]) -> (String, Vec<String>, Vec<String>) {
    let own = |names: &[&str]| names.iter().map(ToString::to_string).collect();
    (short.into(), own(added), own(removed))
}

fn showing(rows: &[(&'static str, &str, &str)]) -> Session {
    let mut session = Session::new();
    session.show(content(rows), 1);
    session
}

/// A session of one of our proxies: every type and the epoch subscribed.
fn proxy(rows: &[(&'static str, &str, &str)]) -> Session {
    let mut session = showing(rows);
    for url in type_urls() {
        ask(url).more(&["*"]).to(&mut session);
    }
    ask(&Epoch::type_url()).more(&["*"]).to(&mut session);
    session
}

#[test]
fn rule_1_subscriptions_and_acks_are_independent() {
    // Aim: a request with a stale nonce, or with a NACK, still subscribes.
    let mut session = showing(&[(CDS, "a", "1"), (CDS, "b", "1"), (CDS, "c", "1")]);
    ask(CDS).more(&["a"]).to(&mut session);
    let first = session.next_response().unwrap();
    ask(CDS).more(&["b"]).ack("999").to(&mut session);
    assert_eq!(drain(&mut session), [said("Cluster", &["b"], &[])]);
    let heard = ask(CDS).more(&["c"]).nack(&first.nonce, "no").to(&mut session);
    assert_eq!(heard.rejected.as_deref(), Some("no"));
    assert_eq!(drain(&mut session), [said("Cluster", &["c"], &[])]);
}

#[test]
fn rule_2_a_spontaneous_request_acknowledges_nothing() {
    // Aim: no nonce, no acknowledgement.
    let mut session = proxy(&[]);
    drain(&mut session);
    assert_eq!(ask(&Epoch::type_url()).to(&mut session).acknowledged, None);
}

#[test]
fn rule_3_a_name_asked_for_again_is_answered_again() {
    // Aim: the client may have dropped it.
    let mut session = showing(&[(CDS, "a", "1")]);
    ask(CDS).more(&["a"]).to(&mut session);
    drain(&mut session);
    ask(CDS).more(&["a"]).to(&mut session);
    assert_eq!(drain(&mut session), [said("Cluster", &["a"], &[])]);
}

#[test]
fn rule_4_initial_versions_save_what_is_unchanged() {
    // Aim: after a reconnect only differences travel, by wildcard and by name, and what is gone is taken back.
    let rows = [(CDS, "same", "1"), (CDS, "changed", "2"), (CDS, "new", "1")];
    let held = [("same", "1"), ("changed", "1"), ("gone", "1")];
    let mut session = showing(&rows);
    ask(CDS).more(&["*"]).has(&held).to(&mut session);
    let expected = [said("Cluster", &["changed", "new"], &[]), said("Cluster", &[], &["gone"])];
    assert_eq!(drain(&mut session), expected);
    let mut session = showing(&rows);
    ask(CDS).more(&["same", "changed", "gone"]).has(&held).to(&mut session);
    assert_eq!(drain(&mut session), [said("Cluster", &["changed"], &[]), said("Cluster", &[], &["gone"])]);
}

#[test]
fn a_proxy_that_is_back_loses_nothing_before_it_has_asked_for_all() {
    // Aim: what one type's names imply of another is kept until the last type has been asked for; only then is taken back what is gone.
    let mut session = Session::new();
    session.asks_for_all();
    session.show(content(&[]), 1);
    ask(LDS).more(&["*"]).has(&[("implied", "1"), ("gone", "1")]).to(&mut session);
    assert!(drain(&mut session).is_empty());
    for url in type_urls().iter().filter(|url| **url != LDS) {
        ask(url).more(&["*"]).to(&mut session);
        assert!(drain(&mut session).is_empty());
    }
    session.show(content(&[(LDS, "implied", "1")]), 1);
    ask(&Epoch::type_url()).more(&["*"]).to(&mut session);
    assert_eq!(drain(&mut session), [said("Listener", &[], &["gone"]), said("Epoch", &["epoch"], &[])]);
}

#[test]
fn rule_4_versions_alone_subscribe_to_nothing() {
    // Aim: a name in the map that is not subscribed is neither sent nor removed.
    let mut session = showing(&[(CDS, "a", "2")]);
    ask(CDS).more(&["b"]).has(&[("a", "1"), ("c", "1")]).to(&mut session);
    assert_eq!(drain(&mut session), [said("Cluster", &[], &["b"])]);
}

#[test]
fn rule_4_endpoints_follow_a_cluster_that_is_sent_again() {
    // Aim: a changed cluster brings its unchanged endpoints after it.
    let mut session = showing(&[(CDS, "a", "1"), (EDS, "a", "1")]);
    ask(CDS).more(&["*"]).to(&mut session);
    ask(EDS).more(&["a"]).to(&mut session);
    drain(&mut session);
    session.show(content(&[(CDS, "a", "2"), (EDS, "a", "1")]), 2);
    assert_eq!(drain(&mut session), [said("Cluster", &["a"], &[]), said("ClusterLoadAssignment", &["a"], &[])]);
}

#[test]
fn endpoints_are_taken_when_the_newest_are_answered() {
    // Aim: of endpoints, for which no epoch waits, it is known when the client has them: not while they are to be sent, nor by the answer to older
    // ones; a refusal is an answer, too.
    let mut session = showing(&[(xds::ENDPOINT, "web", "1")]);
    assert!(session.endpoints_taken(), "nobody has asked for any");
    ask(xds::ENDPOINT).to(&mut session);
    assert!(!session.endpoints_taken());
    let first = session.next_response().unwrap().nonce;
    drain(&mut session);
    assert!(!session.endpoints_taken());
    session.show(content(&[(xds::ENDPOINT, "web", "2")]), 1);
    let second = session.next_response().unwrap().nonce;
    drain(&mut session);
    ask(xds::ENDPOINT).ack(&first).to(&mut session);
    assert!(!session.endpoints_taken());
    ask(xds::ENDPOINT).nack(&second, "no").to(&mut session);
    assert!(session.endpoints_taken());
}

#[test]
fn rule_5_a_name_that_does_not_exist_is_said_at_once_and_comes_when_it_appears() {
    // Aim: no made-up resource, no silence, and the subscription stays.
    let mut session = showing(&[]);
    ask(LDS).more(&["out/1.2.3.4:80"]).to(&mut session);
    assert_eq!(drain(&mut session), [said("Listener", &[], &["out/1.2.3.4:80"])]);
    session.show(content(&[(LDS, "out/1.2.3.4:80", "1")]), 2);
    assert_eq!(drain(&mut session), [said("Listener", &["out/1.2.3.4:80"], &[])]);
}

#[test]
fn rule_6_wildcards_by_silence_by_name_and_taken_back() {
    // Aim: an empty first request and `*` mean all; both together in one request mean nothing yet.
    let rows = [(CDS, "a", "1"), (CDS, "b", "1")];
    let mut session = showing(&rows);
    ask(CDS).to(&mut session);
    assert_eq!(drain(&mut session), [said("Cluster", &["a", "b"], &[])]);
    let mut session = showing(&rows);
    ask(CDS).more(&["*", "x"]).to(&mut session);
    assert_eq!(drain(&mut session), [said("Cluster", &["a", "b"], &[]), said("Cluster", &[], &["x"])]);
    let mut session = showing(&rows);
    ask(CDS).more(&["*"]).less(&["*"]).to(&mut session);
    assert_eq!(drain(&mut session), []);
    ask(CDS).more(&["b"]).to(&mut session);
    assert_eq!(drain(&mut session), [said("Cluster", &["b"], &[])]);
    let mut session = showing(&rows);
    ask(CDS).more(&["a"]).to(&mut session);
    ask(CDS).to(&mut session);
    assert_eq!(drain(&mut session), [said("Cluster", &["a"], &[])]);
}

#[test]
fn rule_7_an_unsubscription_under_a_wildcard_is_answered() {
    // Aim: with the resource if the wildcard covers it, else by removal; without a wildcard there is no answer.
    let mut session = showing(&[(CDS, "a", "1"), (CDS, "named", "1")]);
    ask(CDS).more(&["*", "a", "named"]).to(&mut session);
    drain(&mut session);
    assert!(ask(CDS).less(&["a", "named", "unknown"]).to(&mut session).wants_changed);
    session.show(content(&[(CDS, "a", "1")]), 1);
    assert_eq!(drain(&mut session), [said("Cluster", &["a"], &[]), said("Cluster", &[], &["named"])]);
    let mut session = showing(&[(CDS, "a", "1")]);
    ask(CDS).more(&["a"]).to(&mut session);
    drain(&mut session);
    ask(CDS).less(&["a"]).to(&mut session);
    assert_eq!(drain(&mut session), []);
    assert_eq!(session.held_count(), 0);
}

#[test]
fn rule_8_removal_travels_for_every_type_and_never_beside_the_resource() {
    // Aim: what is gone is taken back; one response never both gives and takes a name.
    for url in type_urls() {
        let mut session = showing(&[(url, "a", "1"), (url, "b", "1")]);
        ask(url).to(&mut session);
        drain(&mut session);
        session.show(content(&[(url, "b", "2")]), 2);
        let short = url.rsplit('.').next().unwrap();
        assert_eq!(drain(&mut session), [said(short, &["b"], &[]), said(short, &[], &["a"])]);
    }
}

#[test]
fn rule_9_responses_are_well_formed() {
    // Aim: names, versions and nonces are there, and no nonce comes twice.
    let mut session = proxy(&[(CDS, "a", "1"), (LDS, "l", "1")]);
    let mut nonces = BTreeSet::new();
    while let Some(response) = session.next_response() {
        assert!(nonces.insert(response.nonce.clone()) && !response.nonce.is_empty());
        assert!(response.resources.iter().all(|r| !r.version.is_empty() && !r.name.is_empty() && r.resource.is_some()));
    }
    assert_eq!(nonces.len(), 3);
}

#[test]
fn rule_10_a_nacked_resource_is_sent_again_only_when_it_changes() {
    // Aim: no NACK loop.
    let mut session = showing(&[(CDS, "a", "1")]);
    ask(CDS).to(&mut session);
    let sent = session.next_response().unwrap();
    ask(CDS).nack(&sent.nonce, "bad").to(&mut session);
    session.show(content(&[(CDS, "a", "1"), (CDS, "b", "1")]), 2);
    assert_eq!(drain(&mut session), [said("Cluster", &["b"], &[])]);
    session.show(content(&[(CDS, "a", "2"), (CDS, "b", "1")]), 3);
    assert_eq!(drain(&mut session), [said("Cluster", &["a"], &[])]);
}

#[test]
fn rule_11_large_states_are_cut() {
    // Aim: no response beyond the bound unless one resource alone is, and nothing is lost at a cut.
    let mut big = content(&[]);
    for index in 0..8 {
        let value = vec![0; if index == 5 { RESPONSE_BYTES_MAX + 1 } else { 1 << 20 }];
        let item = Encoded::of_version("1".into(), prost_types::Any { type_url: CDS.into(), value });
        big.entry(CDS).or_default().insert(format!("c{index}"), Arc::new(item));
    }
    let mut session = Session::new();
    session.show(big, 1);
    ask(CDS).to(&mut session);
    let mut names = Vec::new();
    while let Some(response) = session.next_response() {
        assert!(response.encoded_len() <= RESPONSE_BYTES_MAX || response.resources.len() == 1);
        names.extend(response.resources.into_iter().map(|r| r.name));
    }
    assert_eq!(names, (0..8).map(|index| format!("c{index}")).collect::<Vec<_>>());
}

#[test]
fn back_pressure_keeps_only_the_newest_state() {
    // Aim: states between two sends are skipped, not queued (`xds.md` section 1.7).
    let mut session = showing(&[(CDS, "a", "1")]);
    ask(CDS).to(&mut session);
    drain(&mut session);
    for version in 2..100 {
        session.show(content(&[(CDS, "a", &version.to_string())]), version);
    }
    let response = session.next_response().unwrap();
    assert_eq!(response.resources[0].version, "99");
    assert!(session.next_response().is_none());
}

#[test]
fn additions_go_before_removals_in_the_order_of_reference() {
    // Aim: make before break across types (`xds.md` section 1.5), the barrier last.
    let mut session = proxy(&[(CDS, "old", "1"), (EDS, "old", "1"), (LDS, "l", "1"), (xds::ROUTE, "r", "1")]);
    drain(&mut session);
    session.show(content(&[(CDS, "new", "1"), (EDS, "new", "1"), (LDS, "l", "1"), (xds::ROUTE, "r", "2")]), 2);
    let order: Vec<_> = drain(&mut session).into_iter().map(|(short, added, _)| format!("{short}{}", added.len())).collect();
    assert_eq!(order, ["Cluster1", "ClusterLoadAssignment1", "RouteConfiguration1", "ClusterLoadAssignment0", "Cluster0", "Epoch1"]);
}

#[test]
fn a_type_we_do_not_serve_is_named_once_and_hurts_nobody() {
    // Aim: newer clients keep working (`xds.md` section 1.7).
    let mut session = proxy(&[(CDS, "a", "1")]);
    assert_eq!(ask("type.googleapis.com/x.Y").to(&mut session).unknown_type.as_deref(), Some("type.googleapis.com/x.Y"));
    assert_eq!(ask("type.googleapis.com/x.Y").to(&mut session).unknown_type, None);
    assert_eq!(drain(&mut session).len(), 2);
}

#[test]
fn too_many_and_too_long_names_end_the_stream() {
    // Aim: both bounds hold.
    let mut session = showing(&[]);
    let many: Vec<String> = (0..=NAMES_MAX).map(|index| index.to_string()).collect();
    let request = DeltaDiscoveryRequest { type_url: CDS.into(), resource_names_subscribe: many, ..Default::default() };
    assert!(matches!(session.request(request), Err(TooMuch::Names(_))));
    let request = DeltaDiscoveryRequest {
        type_url: CDS.into(),
        resource_names_subscribe: vec!["x".repeat(NAME_BYTES_MAX + 1)],
        ..Default::default()
    };
    assert_eq!(showing(&[]).request(request), Err(TooMuch::Name));
}

#[test]
fn what_a_client_says_it_has_is_bounded() {
    // Aim: neither the number of versions nor their length is the client's to choose.
    let saying = |versions: Vec<(String, String)>| {
        let request =
            DeltaDiscoveryRequest { type_url: CDS.into(), initial_resource_versions: versions.into_iter().collect(), ..Default::default() };
        Session::new().request(request)
    };
    let one = |name: usize, version: usize| vec![("n".repeat(name), "v".repeat(version))];
    assert!(saying(one(NAME_BYTES_MAX, NAME_BYTES_MAX)).is_ok());
    assert_eq!(saying(one(NAME_BYTES_MAX + 1, 1)), Err(TooMuch::Name));
    assert_eq!(saying(one(1, NAME_BYTES_MAX + 1)), Err(TooMuch::Name));
    let many = (0..=HELD_MAX).map(|number| (number.to_string(), String::new())).collect();
    assert!(matches!(saying(many), Err(TooMuch::Held(_))));
}

fn epochs(session: &mut Session) -> Vec<(String, Epoch)> {
    std::iter::from_fn(|| session.next_response())
        .filter(|response| is_epoch(&response.type_url))
        .map(|response| (response.nonce, xds::unpack::<Epoch>(response.resources[0].resource.as_ref().unwrap()).unwrap()))
        .collect()
}

#[test]
fn the_barrier_follows_each_change_and_its_ack_is_the_epochs() {
    // Aim: number and digest come last, once; the ACK names the number; nothing more is said when nothing changes.
    let mut session = proxy(&[(CDS, "a", "1")]);
    let first = epochs(&mut session);
    assert_eq!(first.len(), 1);
    assert_eq!((first[0].1.number, first[0].1.digest.to_vec()), (1, session.held_digest()));
    assert_eq!(ask(&Epoch::type_url()).ack(&first[0].0).to(&mut session).acknowledged, Some(1));
    assert!(session.show(content(&[(CDS, "a", "2")]), 2));
    let second = epochs(&mut session);
    assert_eq!(second[0].1.number, 2);
    assert_ne!(second[0].1.digest, first[0].1.digest);
    let heard = ask(&Epoch::type_url()).nack(&second[0].0, "Cluster a: bad").to(&mut session);
    assert_eq!(heard.refused, Some((2, "Cluster a: bad".into())));
    assert!(epochs(&mut session).is_empty());
}

#[test]
fn a_new_subscription_is_followed_by_the_same_number_with_its_digest() {
    // Aim: on-demand answers swap in under the epoch that is live; also an answer that says "does not exist".
    let mut session = proxy(&[(CDS, "a", "1")]);
    epochs(&mut session);
    ask(LDS).more(&["out/1.2.3.4:80"]).to(&mut session);
    session.show(content(&[(CDS, "a", "1"), (LDS, "out/1.2.3.4:80", "1")]), 1);
    let answer = epochs(&mut session);
    assert_eq!((answer[0].1.number, answer[0].1.digest.to_vec()), (1, session.held_digest()));
    ask(LDS).more(&["out/9.9.9.9:80"]).to(&mut session);
    assert_eq!(epochs(&mut session).len(), 1);
}

#[test]
fn endpoints_travel_without_an_epoch() {
    // Aim: an endpoint change is sent at once and concerns no epoch; an unchanged view is not concerned by a new number.
    let mut session = proxy(&[(CDS, "a", "1"), (EDS, "a", "1")]);
    let nonce = epochs(&mut session)[0].0.clone();
    ask(&Epoch::type_url()).ack(&nonce).to(&mut session);
    assert!(!session.show(content(&[(CDS, "a", "1"), (EDS, "a", "2")]), 1));
    assert!(!session.is_settled());
    let response = session.next_response().unwrap();
    assert_eq!((response.type_url.as_str(), response.resources.len()), (EDS, 1));
    assert!(session.is_settled(), "nobody needs to ask again");
    assert_eq!(drain(&mut session), []);
    assert!(!session.show(content(&[(CDS, "a", "1"), (EDS, "a", "2")]), 2));
    assert_eq!(drain(&mut session), []);
}

#[test]
fn an_epoch_on_top_of_an_unanswered_one_concerns_the_proxy() {
    // Aim: nobody is advanced in the book past an epoch that it has not acknowledged; the later ACK covers both.
    let mut session = proxy(&[(CDS, "a", "1")]);
    let one = epochs(&mut session);
    assert!(session.show(content(&[(CDS, "a", "1")]), 2));
    let two = epochs(&mut session);
    assert_eq!(two[0].1.number, 2);
    assert_eq!(ask(&Epoch::type_url()).ack(&one[0].0).to(&mut session).acknowledged, Some(1));
    assert_eq!(ask(&Epoch::type_url()).ack(&two[0].0).to(&mut session).acknowledged, Some(2));
}

#[test]
fn no_barrier_before_every_type_is_subscribed() {
    // Aim: a digest is sent only when it can fit, whatever order the first requests come in.
    let mut session = showing(&[(CDS, "a", "1")]);
    ask(&Epoch::type_url()).more(&["*"]).to(&mut session);
    for url in type_urls().iter().filter(|url| epoch::counts(url)) {
        assert!(epochs(&mut session).is_empty());
        ask(url).more(&["*"]).to(&mut session);
    }
    assert_eq!(epochs(&mut session).len(), 1);
}

#[test]
fn what_cannot_be_sent_is_not_taken_back() {
    // Aim: a client that came with an older version keeps it, and loses it once it is truly gone; who has none is told so.
    let mut session = Session::new();
    ask(CDS).has(&[("a", "1"), ("b", "1")]).to(&mut session);
    session.withhold(Withheld::from([(CDS, "a".to_owned())]));
    session.show(content(&[(CDS, "b", "1")]), 1);
    assert_eq!(drain(&mut session), []);
    assert_eq!(session.held_count(), 2);
    session.withhold(Withheld::new());
    session.show(content(&[(CDS, "b", "1")]), 2);
    assert_eq!(drain(&mut session), [("Cluster".to_owned(), vec![], vec!["a".to_owned()])]);
    let mut session = Session::new();
    ask(CDS).more(&["a"]).to(&mut session);
    session.withhold(Withheld::from([(CDS, "a".to_owned())]));
    session.show(Content::new(), 1);
    assert_eq!(drain(&mut session), [("Cluster".to_owned(), vec![], vec!["a".to_owned()])]);
}

#[test]
fn what_a_kept_table_leads_to_stays_with_it() {
    // Aim: a client that came with an older table than one that cannot be sent keeps its clusters and endpoints, until a table comes.
    for (url, short) in [(xds::ROUTE, "RouteConfiguration"), (LDS, "Listener")] {
        let mut session = Session::new();
        for of in [CDS, EDS, url] {
            ask(of).has(&[("a", "1")]).to(&mut session);
        }
        session.withhold(Withheld::from([(url, "a".to_owned())]));
        session.show(content(&[(CDS, "b", "1"), (EDS, "b", "1")]), 1);
        assert_eq!(drain(&mut session), [said("Cluster", &["b"], &[]), said("ClusterLoadAssignment", &["b"], &[])]);
        session.withhold(Withheld::new());
        session.show(content(&[(CDS, "b", "1"), (EDS, "b", "1"), (url, "a", "2")]), 2);
        let gone = [said("ClusterLoadAssignment", &[], &["a"]), said("Cluster", &[], &["a"])];
        assert_eq!(drain(&mut session), [[said(short, &["a"], &[])].as_slice(), &gone].concat());
    }
}

/// The client as the rules of `xds.md` section 1.6 want it: holds what it was given, drops what was taken.
#[derive(Default)]
struct Client {
    held: BTreeMap<(String, String), String>,
}

impl Client {
    fn take(&mut self, response: &DeltaDiscoveryResponse) {
        for resource in &response.resources {
            if is_epoch(&response.type_url) {
                let epoch = xds::unpack::<Epoch>(resource.resource.as_ref().unwrap()).unwrap();
                assert_eq!(epoch.digest.to_vec(), self.digest(), "the digest fits at the moment it arrives");
            } else {
                self.held.insert((response.type_url.clone(), resource.name.clone()), resource.version.clone());
            }
        }
        for name in &response.removed_resources {
            self.held.remove(&(response.type_url.clone(), name.clone()));
        }
    }

    fn digest(&self) -> Vec<u8> {
        epoch::digest(self.held.iter().map(|((url, name), version)| (url.as_str(), name.as_str(), version.as_str())))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Show(Vec<(usize, usize, u8)>),
    Subscribe(usize, usize),
    Unsubscribe(usize, usize),
    Send(usize),
    Answer(usize, bool),
    Reconnect,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::collection::vec((0usize..7, 0usize..4, 0u8..3), 0..12).prop_map(Step::Show),
        (0usize..7, 0usize..5).prop_map(|(url, name)| Step::Subscribe(url, name)),
        (0usize..7, 0usize..5).prop_map(|(url, name)| Step::Unsubscribe(url, name)),
        (0usize..6).prop_map(Step::Send),
        (0usize..9, any::<bool>()).prop_map(|(back, fine)| Step::Answer(back, fine)),
        Just(Step::Reconnect),
    ]
}

fn reconnect(client: &Client, rows: &Content, number: u64) -> Session {
    let mut session = Session::new();
    session.show(rows.clone(), number);
    for url in type_urls() {
        let held: Vec<_> = client.held.iter().filter(|((held, _), _)| held == url).map(|((_, n), v)| (n.as_str(), v.as_str())).collect();
        ask(url).more(&["*"]).has(&held).to(&mut session);
    }
    ask(&Epoch::type_url()).more(&["*"]).to(&mut session);
    session
}

proptest! {
    #[test]
    fn both_ends_always_agree(steps in prop::collection::vec(step(), 0..60)) {
        // Aim: after any sequence of changes, subscriptions, ACKs, NACKs and reconnects, the digests agree whenever an epoch
        // arrives, and in the end the client holds exactly what it should; a session that says it is settled has nothing to send.
        let mut client = Client::default();
        let mut rows = Content::new();
        let mut number = 1;
        let mut session = reconnect(&client, &rows, number);
        let mut sent: Vec<(String, String)> = Vec::new();
        for step in steps {
            match step {
                Step::Show(items) => {
                    let text: Vec<_> = items.iter().map(|(url, name, version)| (type_urls()[*url], format!("n{name}"), version.to_string())).collect();
                    rows = content(&text.iter().map(|(url, name, version)| (*url, name.as_str(), version.as_str())).collect::<Vec<_>>());
                    number += 1;
                    session.show(rows.clone(), number);
                }
                Step::Subscribe(url, name) => { ask(type_urls()[url]).more(&[&format!("n{name}")]).to(&mut session); }
                Step::Unsubscribe(url, name) => { ask(type_urls()[url]).less(&[&format!("n{name}")]).to(&mut session); }
                Step::Send(count) => for _ in 0..count {
                    let settled = session.is_settled();
                    let Some(response) = session.next_response() else { break };
                    prop_assert!(!settled);
                    client.take(&response);
                    sent.push((response.type_url, response.nonce));
                },
                Step::Answer(back, fine) => if let Some((url, nonce)) = sent.len().checked_sub(back + 1).map(|at| &sent[at]) {
                    let request = ask(url);
                    if fine { request.ack(nonce) } else { request.nack(nonce, "no") }.to(&mut session);
                },
                Step::Reconnect => { session = reconnect(&client, &rows, number); sent.clear(); }
            }
        }
        loop {
            let settled = session.is_settled();
            let Some(response) = session.next_response() else { break };
            prop_assert!(!settled);
            client.take(&response);
        }
        let should: BTreeMap<_, _> = rows.iter().flat_map(|(url, items)| items.iter().map(move |(name, item)| (((*url).to_owned(), name.clone()), item.version.clone()))).collect();
        prop_assert_eq!(&client.held, &should);
        prop_assert_eq!(client.digest(), session.held_digest());
    }
}
