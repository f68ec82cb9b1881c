//! Logins whose sessions a store keeps, over whole connections: the keeper's place is taken by a store that is a map.

use std::collections::HashMap;

use engine::login::{PutOnly, SESSION_FRESH_SECS, StoreCommand, StoreTold};
use proto::mesh;
use serde_json::json;
use tokio::task::JoinHandle;

use super::login::{ISSUER, OK, browse, callback, header, kept, login, parameter, reached, sent, site_of, tells, tokens};
use super::tokens::Issuer;
use super::*;
use crate::snapshots::PosedElsewhere;

fn stored() -> mesh::EdgeLogin {
    let timeout = Some(prost_types::Duration { seconds: 0, nanos: 50_000_000 });
    let store = mesh::RedisStore { addresses: vec!["redis:6379".into()], timeout, ..mesh::RedisStore::default() };
    mesh::EdgeLogin { store: Some(store), back_channel_path: "/oauth2/ended".into(), ..login() }
}

/// Answers whatever workers ask, until it is told to stop; then nobody answers.
fn store(world: &World) -> JoinHandle<()> {
    let mut questions = world.client_means.snapshots.limit_questions().take_remote().unwrap();
    tokio::spawn(async move {
        let mut rows: HashMap<String, String> = HashMap::new();
        while let Some(PosedElsewhere::Command(posed)) = questions.recv().await {
            let there = rows.get(posed.command.key()).cloned();
            let done = |done| if done { StoreTold::Done } else { StoreTold::Nothing };
            let told = match posed.command {
                StoreCommand::Get(_) => there.map_or(StoreTold::Nothing, |value| StoreTold::Text(value.into())),
                StoreCommand::Live(..) => done(there.is_some()),
                StoreCommand::Put { only: PutOnly::New, .. } if there.is_some() => StoreTold::Nothing,
                StoreCommand::Put { only: PutOnly::Known, .. } if there.is_none() => StoreTold::Nothing,
                StoreCommand::Put { key, value, .. } => {
                    rows.insert(key, value);
                    StoreTold::Done
                }
                StoreCommand::Raise(key, number, _) => {
                    rows.insert(key, number.to_string());
                    StoreTold::Done
                }
                StoreCommand::Remove(key) => done(rows.remove(&key).is_some()),
            };
            let _ = posed.told.send(told);
        }
    })
}

/// Logs somebody in; what the browser keeps.
async fn logs_in(world: &mut World, issuer: &Issuer) -> String {
    let (location, binding) = sent(world).await;
    let mut client = browse(world, &callback(&location), &binding).await;
    let (mut provider, asks) = reached(world).await;
    assert!(asks);
    tells(&mut provider, "200 OK", &tokens(issuer, world, &parameter(&location, "nonce"), "one")).await;
    drop(provider);
    let answer = head(&mut client).await;
    assert!(answer.starts_with("HTTP/1.1 303") && header(&answer, "location") == ["/cart?x=1"], "{answer}");
    kept(&answer)
}

/// What the backend sees of a request with a session.
async fn seen(world: &mut World, cookies: &str) -> String {
    let mut client = browse(world, "/cart", cookies).await;
    let (mut backend, asks) = reached(world).await;
    assert!(!asks);
    let seen = head(&mut backend).await;
    write(&mut backend, OK).await;
    assert!(head(&mut client).await.starts_with("HTTP/1.1 200"));
    seen
}

/// What a provider hears that posts this.
async fn posted(world: &World, content: &str) -> String {
    let mut client = world.knock();
    let request = format!(
        "POST /oauth2/ended HTTP/1.1\r\nhost: shop.example\r\ncontent-type: application/x-www-form-urlencoded\r\n\
         connection: close\r\ncontent-length: {}\r\n\r\n{content}",
        content.len()
    );
    write(&mut client, &request).await;
    head(&mut client).await
}

#[test]
fn a_session_is_kept_refreshed_and_ended_at_a_store() {
    // Aim: the login is kept before the browser goes on, requests ask the store, a refresh is written there, and the provider's own word, in a body,
    // ends the session; what is none, or too long, is 400.
    run(|| async {
        let issuer = Issuer::new("k");
        let (mut world, _gate) = site_of(Some(&issuer), &stored());
        let store = store(&world);
        let cookies = logs_in(&mut world, &issuer).await;
        assert!(cookies.len() < 600, "{cookies}");
        let bearer = seen(&mut world, &cookies).await;
        assert!(bearer.contains("authorization: Bearer one\r\n") && !bearer.contains("mw-login"), "{bearer}");

        tokio::time::sleep(Duration::from_secs(90)).await;
        let mut client = browse(&world, "/cart", &cookies).await;
        let (first, second) = (reached(&mut world).await, reached(&mut world).await);
        let ((mut backend, _), (mut provider, _)) = if first.1 { (second, first) } else { (first, second) };
        assert!(head(&mut backend).await.contains("authorization: Bearer one\r\n"));
        write(&mut backend, OK).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 200"), "it waits for nobody");
        let asked = tells(&mut provider, "200 OK", &json!({"access_token": "two", "expires_in": 100}).to_string()).await;
        assert!(asked.contains("refresh_token=one-refresh"), "{asked}");
        tokio::time::sleep(Duration::from_secs(SESSION_FRESH_SECS + 1)).await;
        assert!(seen(&mut world, &cookies).await.contains("authorization: Bearer two\r\n"));

        for content in ["", "logout_token=a.b.c", &format!("logout_token={}", "a".repeat(20 << 10))] {
            let answer = posted(&world, content).await;
            assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("content-type: application/json\r\n"), "{answer}");
        }
        let now = u64::from(world.client.wall_secs());
        let event = json!({"http://schemas.openid.net/event/backchannel-logout": {}});
        let said = json!({"iss": ISSUER, "aud": "edge", "sub": "ada", "iat": now, "exp": now + 120, "jti": "1", "events": event});
        let answer = posted(&world, &format!("logout_token={}", issuer.says(&said))).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("cache-control: no-store\r\n"), "{answer}");
        tokio::time::sleep(Duration::from_secs(SESSION_FRESH_SECS + 1)).await;
        let mut client = browse(&world, "/cart", &cookies).await;
        assert!(head(&mut client).await.starts_with("HTTP/1.1 302"));
        store.abort();
    });
}

#[test]
fn nobody_gets_in_while_the_store_says_nothing() {
    // Aim: a store that hangs, and one that nobody asks: 503 within its time and the reason, for requests and logins; what was said lately counts.
    run(|| async {
        let issuer = Issuer::new("k");
        let (mut world, _gate) = site_of(Some(&issuer), &stored());
        let store = store(&world);
        let cookies = logs_in(&mut world, &issuer).await;
        seen(&mut world, &cookies).await;
        store.abort();
        seen(&mut world, &cookies).await;
        tokio::time::sleep(Duration::from_secs(SESSION_FRESH_SECS + 1)).await;
        let began = tokio::time::Instant::now();
        let mut client = browse(&world, "/cart", &cookies).await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("x-meshwright-reason: policy_unavailable\r\n"), "{answer}");
        assert!(header(&answer, "set-cookie").is_empty() && began.elapsed() < Duration::from_secs(1), "{answer}");

        let (location, binding) = sent(&world).await;
        let mut client = browse(&world, &callback(&location), &binding).await;
        let (mut provider, _) = reached(&mut world).await;
        tells(&mut provider, "200 OK", &tokens(&issuer, &world, &parameter(&location, "nonce"), "one")).await;
        let answer = head(&mut client).await;
        assert!(answer.starts_with("HTTP/1.1 503") && header(&answer, "set-cookie").is_empty(), "{answer}");
    });
}
