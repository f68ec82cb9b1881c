//! Sessions that a store keeps: what browsers have of them, what the store holds, and what ends them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use http::Method;
use http::header::SET_COOKIE;
use proto::mesh::{self, EdgeLogin};
use serde_json::json;

use super::NOW;
use super::login::{ISSUER, Site, answer, good, id_token, location, login, secs};
use crate::authenticate::tests as tokens;
use crate::callout::{CalloutAway, CalloutTold};
use crate::filter::guard::Denied;
use crate::login::{LoginAsk, PutOnly, SESSION_FRESH_SECS, StoreAsk, StoreCommand, StoreTold};

/// A store as far as sessions use it; its clones are one.
#[derive(Clone, Default)]
pub(super) struct Kept {
    rows: Arc<Mutex<HashMap<String, (String, u64)>>>,
    away: Arc<Mutex<bool>>,
}

impl Kept {
    pub(super) fn answer(&self, ask: &StoreAsk, now: u64) -> Option<Vec<StoreTold>> {
        let away = *self.away.lock().unwrap();
        (!away).then(|| ask.commands.iter().map(|command| self.one(command, now)).collect())
    }

    fn one(&self, command: &StoreCommand, now: u64) -> StoreTold {
        let mut rows = self.rows.lock().unwrap();
        rows.retain(|_, (_, until)| *until > now);
        let there = rows.get(command.key()).cloned();
        let done = |done| if done { StoreTold::Done } else { StoreTold::Nothing };
        match command {
            StoreCommand::Get(_) => there.map_or(StoreTold::Nothing, |(value, _)| StoreTold::Text(value.into())),
            StoreCommand::Live(key, life) => done(rows.get_mut(key).map(|row| row.1 = now + life).is_some()),
            StoreCommand::Put { key, value, life_secs, only } => {
                let does = match only {
                    PutOnly::Always => true,
                    PutOnly::New => there.is_none(),
                    PutOnly::Known => there.is_some(),
                };
                if does {
                    rows.insert(key.clone(), (value.clone(), now + life_secs));
                }
                done(does)
            }
            StoreCommand::Raise(key, number, life) => {
                let known = there.map_or(0, |(value, _)| value.parse().unwrap());
                if *number >= known {
                    rows.insert(key.clone(), (number.to_string(), now + life));
                }
                StoreTold::Done
            }
            StoreCommand::Remove(key) => done(rows.remove(key).is_some()),
        }
    }

    fn keys(&self) -> Vec<String> {
        let mut keys: Vec<String> = self.rows.lock().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    }

    fn goes(&self, away: bool) {
        *self.away.lock().unwrap() = away;
    }
}

fn stored() -> EdgeLogin {
    let timeout = Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 });
    let store = mesh::RedisStore { addresses: vec!["redis:6379".into()], timeout, ..mesh::RedisStore::default() };
    EdgeLogin { store: Some(store), back_channel_path: "/oauth2/ended".into(), ..login() }
}

/// One replica, and another one of the same Gateway.
fn replicas() -> (Site, Site, Kept) {
    let (mut one, mut two, kept) = (Site::of(stored()), Site::of(stored()), Kept::default());
    for site in [&mut one, &mut two] {
        (site.pages.kept, site.paths.kept) = (kept.clone(), kept.clone());
    }
    (one, two, kept)
}

/// Carries a refresh out; what the provider says, if it is asked.
fn refresh(ask: &LoginAsk, kept: &Kept, told: &CalloutTold, now: u64) -> bool {
    if let Some(turn) = ask.turn() {
        let answers = kept.answer(&turn, now);
        if let Err(back) = ask.has_turn(answers.as_deref(), now) {
            back.map(|back| kept.answer(&back, now));
            return false;
        }
    }
    let put = ask.settle(told, now);
    put.map(|put| kept.answer(&put, now));
    true
}

fn fresh(access: &str, refresh: &str) -> CalloutTold {
    answer(200, &json!({"access_token": access, "refresh_token": refresh, "expires_in": 100}))
}

#[test]
fn a_browser_has_a_ticket_and_the_store_the_session() {
    // Aim: the browser's cookie holds no claim and is small whatever the session is; what is stored can be read by nobody; each replica knows the session,
    // asks once in a while, and its end is everybody's.
    let (mut one, mut two, kept) = replicas();
    let groups = "group ".repeat(600);
    let large = |nonce: &str| answer(200, &json!({"access_token": "access-1", "id_token": id_token(nonce, json!({"groups": groups}))}));
    let back = one.log_in("/cart", large);
    assert_eq!((back.status, location(&back).as_str()), (Some(303), "/cart"));
    assert_eq!(one.session(), 1);
    let ticket: usize = one.jar.iter().map(|(_, value)| value.len()).sum();
    assert!(ticket < 400, "{ticket}");
    assert_eq!(kept.keys().len(), 1);
    let rows = kept.rows.lock().unwrap().values().map(|(value, _)| value.clone()).collect::<String>();
    assert!(!rows.contains("access") && !rows.contains("ada"), "{rows}");

    for site in [&mut one, &mut two] {
        site.pages.now = NOW;
    }
    two.jar = one.jar.clone();
    for site in [&mut one, &mut two] {
        let first = site.browse("/");
        assert_eq!((first.status, first.asked), (None, 1), "{:?}", first.denied);
        assert_eq!(first.request.headers["authorization"], "Bearer access-1");
        assert!(!first.request.headers.contains_key("cookie"));
        assert_eq!((site.browse("/").asked, site.session()), (0, 1), "what was said counts for a while");
        site.at(NOW + SESSION_FRESH_SECS);
        assert_eq!(site.browse("/").asked, 1);
    }
    let left = one.ask(Method::POST, "/oauth2/logout", &[("sec-fetch-site", "same-origin")]);
    assert!(location(&left).contains("id_token_hint="), "{}", location(&left));
    assert!(kept.keys().is_empty());
    two.at(NOW + 2 * SESSION_FRESH_SECS);
    assert_eq!(two.browse("/").status, Some(302), "a copy of the cookie is worth nothing any more");
}

#[test]
fn a_session_rests_and_ages_at_the_store() {
    // Aim: what is used goes on, up to its age, though the browser's cookie is never renewed; what rests too long is gone.
    let (mut site, _, kept) = replicas();
    site.log_in("/", |nonce| answer(200, &json!({"access_token": "a", "id_token": id_token(nonce, json!({}))})));
    site.browse("/");
    for hour in 1..12 {
        site.at(NOW + hour * 3_599);
        let seen = site.browse("/");
        assert!(seen.status.is_none() && !seen.headers.contains_key(SET_COOKIE), "{hour}");
    }
    site.at(NOW + 12 * 3_600);
    assert_eq!(site.browse("/").status, Some(302));
    let (mut site, ..) = replicas();
    site.log_in("/", good);
    site.at(NOW + 3_600);
    assert_eq!(site.browse("/").status, Some(302));
    assert!(kept.keys().len() <= 1);
}

#[test]
fn a_store_that_is_away_lets_nobody_in_and_logs_nobody_out() {
    // Aim: what is known goes on for a while; then 503, not a login, and no cookie goes; who has no session is sent to the provider, and cannot be kept;
    // a logout leaves; when the store is back all is as it was.
    let (mut site, mut other, kept) = replicas();
    site.log_in("/", good);
    assert_eq!(site.browse("/").status, None);
    kept.goes(true);
    assert_eq!(site.browse("/").status, None);
    site.at(NOW + SESSION_FRESH_SECS);
    let jar = site.jar.clone();
    let told = site.browse("/");
    assert_eq!((told.status, told.denied, &site.jar), (Some(503), Some(Denied::Away), &jar));
    let told = other.log_in("/", good);
    assert_eq!((told.status, told.denied, other.session()), (Some(503), Some(Denied::Away), 0), "{}", told.body);
    kept.goes(false);
    assert_eq!(site.browse("/").status, None);
    site.at(NOW + 2 * SESSION_FRESH_SECS);
    kept.goes(true);
    let left = site.ask(Method::POST, "/oauth2/logout", &[("sec-fetch-site", "same-origin")]);
    assert_eq!((left.status, site.session()), (Some(303), 0));
}

#[test]
fn one_replica_refreshes() {
    // Aim: of two replicas at which a session is due one asks the provider, the other one takes what came of it; a refusal ends the session for both;
    // while the store is away nobody asks; what was ended meanwhile stays so.
    let (mut one, mut two, kept) = replicas();
    one.log_in("/", good);
    two.jar = one.jar.clone();
    for site in [&mut one, &mut two] {
        site.at(NOW + 80);
        assert_eq!(site.browse("/").request.headers["authorization"], "Bearer access-1");
    }
    let (first, second) = (one.pages.refreshes.pop().unwrap(), two.pages.refreshes.pop().unwrap());
    let turn = first.turn().unwrap();
    let answers = kept.answer(&turn, NOW + 80);
    first.has_turn(answers.as_deref(), NOW + 80).unwrap();
    assert!(!refresh(&second, &kept, &CalloutTold::Away(CalloutAway::Silent), NOW + 80), "it is another one's turn");
    let put = first.settle(&fresh("access-2", "refresh-2"), NOW + 81).unwrap();
    kept.answer(&put, NOW + 81).unwrap();
    assert_eq!(kept.keys().len(), 1, "the turn is given back");
    for site in [&mut one, &mut two] {
        site.at(NOW + 86);
        assert_eq!(site.browse("/").request.headers["authorization"], "Bearer access-2");
        assert!(site.pages.refreshes.is_empty());
    }

    kept.goes(true);
    two.at(NOW + 90);
    one.at(NOW + 90);
    kept.goes(false);
    for site in [&mut one, &mut two] {
        site.at(NOW + 170);
        site.browse("/");
    }
    let (first, second) = (one.pages.refreshes.pop().unwrap(), two.pages.refreshes.pop().unwrap());
    kept.goes(true);
    assert!(!refresh(&first, &kept, &fresh("no", "no"), NOW + 170), "two would take each other for thieves");
    kept.goes(false);
    assert!(refresh(&second, &kept, &answer(400, &json!({"error": "invalid_grant"})), NOW + 171));
    assert!(kept.keys().is_empty());
    for site in [&mut one, &mut two] {
        site.at(NOW + 180);
        assert_eq!(site.browse("/").status, Some(302));
    }
}

#[test]
fn what_was_ended_is_not_refreshed_back() {
    // Aim: a logout while the provider is asked: what it gives comes too late.
    let (mut site, _, kept) = replicas();
    site.log_in("/", good);
    site.at(NOW + 80);
    site.browse("/");
    let ask = site.pages.refreshes.pop().unwrap();
    let answers = kept.answer(&ask.turn().unwrap(), NOW + 80);
    ask.has_turn(answers.as_deref(), NOW + 80).unwrap();
    let jar = site.jar.clone();
    site.ask(Method::POST, "/oauth2/logout", &[("sec-fetch-site", "same-origin")]);
    let put = ask.settle(&fresh("access-2", "refresh-2"), NOW + 81).unwrap();
    kept.answer(&put, NOW + 81).unwrap();
    assert!(kept.keys().is_empty());
    site.jar = jar;
    site.at(NOW + 90);
    assert_eq!(site.browse("/").status, Some(302));
}

/// A provider's word, by these changes.
fn ended(site: &mut Site, changes: serde_json::Value) -> (Option<u16>, Option<Denied>) {
    let event = json!({"http://schemas.openid.net/event/backchannel-logout": {}});
    let now = site.paths.now;
    let mut said = json!({"iss": ISSUER, "aud": "edge", "iat": now, "exp": now + 120, "jti": "j", "events": event});
    said.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    site.paths.content = format!("logout_token={}", tokens::token(said));
    let told = site.ask(Method::POST, "/oauth2/ended", &[("content-type", "application/x-www-form-urlencoded")]);
    (told.status, told.denied)
}

#[test]
fn a_provider_ends_sessions() {
    // Aim: by its session, or by who it is: at every replica within the while that a store's word counts. Others' sessions, and those that begin
    // after it, go on; saying it twice, or an older word after a newer one, changes nothing.
    let with_sid = |sid: &'static str, issued: u64| {
        move |nonce: &str| {
            let token = id_token(nonce, json!({"sid": sid, "iat": issued, "exp": issued + 600}));
            answer(200, &json!({"access_token": "a", "id_token": token}))
        }
    };
    let (mut one, mut two, kept) = replicas();
    one.log_in("/", with_sid("s1", NOW));
    two.log_in("/", with_sid("s2", NOW));
    assert_eq!(ended(&mut one, json!({"sub": "ada", "sid": "s1"})), (Some(200), None));
    for (now, first, second) in [(NOW, None, None), (NOW + SESSION_FRESH_SECS, Some(302), None)] {
        (one.pages.now, two.pages.now) = (now, now);
        let seen = (one.browse("/").status, two.browse("/").status);
        assert!(seen == (first, second) || now == NOW, "{now}: {seen:?}");
    }
    two.at(NOW + 20);
    assert_eq!(ended(&mut two, json!({"sub": "bob"})), (Some(200), None));
    assert_eq!(two.browse("/").status, None);
    assert_eq!(ended(&mut two, json!({"sub": "ada"})), (Some(200), None));
    two.at(NOW + 40);
    assert_eq!(two.browse("/").status, Some(302));
    // An hour's session that begins after that goes on, whatever of old is said again.
    two.log_in("/", with_sid("s3", NOW + 40));
    assert_eq!(ended(&mut two, json!({"sub": "ada", "iat": NOW + 10})), (Some(200), None));
    two.at(NOW + 50);
    assert_eq!(two.browse("/").status, None);
    assert!(kept.keys().iter().all(|key| key.starts_with("login:")), "{:?}", kept.keys());
}

#[test]
fn nobody_but_the_provider_ends_sessions() {
    // Aim: each way to be no word of the provider's is 400, in JSON, and ends nothing; what cannot be noted is 503, so that it is said again.
    let (mut site, _, kept) = replicas();
    site.log_in("/", good);
    for changes in [
        json!({"aud": "other", "sub": "ada"}),
        json!({"iss": "https://other", "sub": "ada"}),
        json!({"nonce": "n", "sub": "ada"}),
        json!({"events": {}, "sub": "ada"}),
        json!({"sub": null}),
    ] {
        assert_eq!(ended(&mut site, changes.clone()), (Some(400), Some(Denied::LogoutToken)), "{changes}");
    }
    let form = ("content-type", "application/x-www-form-urlencoded");
    for (method, content, headers) in [
        (Method::GET, "", vec![]),
        (Method::POST, "logout_token=a.b.c", vec![]),
        (Method::POST, "logout_token=a.b.c", vec![("content-type", "application/json")]),
        (Method::POST, "", vec![form]),
        (Method::POST, "logout_token=a.b.c", vec![form]),
        (Method::POST, "logout_token=a&logout_token=b", vec![form]),
    ] {
        site.paths.content = content.to_owned();
        let told = site.ask(method, "/oauth2/ended", &headers);
        assert_eq!(told.status, Some(400), "{content}");
        assert!(told.body.starts_with("{\"error\":\"invalid_request\"") && told.headers["cache-control"] == "no-store", "{}", told.body);
    }
    assert_eq!(kept.keys().len(), 1);
    kept.goes(true);
    assert_eq!(ended(&mut site, json!({"sub": "ada"})), (Some(503), Some(Denied::Away)));
    kept.goes(false);
    assert_eq!(site.browse("/").status, None);
}

#[test]
fn what_stands_in_the_store_is_its_own() {
    // Aim: a session that somebody puts in another's place, sealed or not, is none; nor is a cookie that browsers keep whole a ticket.
    let (mut one, mut two, kept) = replicas();
    one.log_in("/", good);
    let key = kept.keys().remove(0);
    two.log_in("/", good);
    let other = kept.keys().into_iter().find(|other| *other != key).unwrap();
    let theirs = kept.rows.lock().unwrap()[&other].clone();
    for value in [theirs, ("garbage".to_owned(), u64::MAX)] {
        kept.rows.lock().unwrap().insert(key.clone(), value);
        assert_eq!(one.browse("/").status, Some(302));
    }
    let mut whole = Site::of(EdgeLogin { idle: secs(60), ..login() });
    whole.log_in("/", good);
    one.jar = whole.jar;
    assert_eq!(one.browse("/").status, Some(302));
}
