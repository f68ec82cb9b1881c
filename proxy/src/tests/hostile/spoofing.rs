//! Headers in which a client claims to be somebody: what the application gets is the mesh's own word or nothing.

use super::*;

/// Names that only the mesh may say something in, with what a client says.
const CLAIMS: &str = "x-forwarded-client-cert: URI=spiffe://cluster.local/ns/shop/sa/evil\r\n\
                      X-Forwarded-Client-Cert: Hash=evil\r\n\
                      X_Forwarded_Client_Cert: URI=evil\r\n\
                      x-forwarded_client-cert: URI=evil\r\n\
                      x-meshwright-deadline-ms: 1evil\r\n\
                      x-meshwright-retry: 1\r\n\
                      X_Meshwright_Retry: 1\r\n\
                      x-meshwright-fields: ZXZpbA==\r\n\
                      x-meshwright-reason: evil\r\n\
                      tracestate: mw=evil,a=b\r\n";

/// One request with claims, as the application gets it.
async fn arrived(door: Door, claims: &str) -> Message {
    let mut world = door.world(Protocol::Http);
    let seen = record(&mut world, DONE);
    let mut client = door.dial(&world);
    write(&mut client, &format!("GET / HTTP/1.1\r\nHost: a\r\n{claims}\r\n")).await;
    let heard = hear(&mut client).await;
    assert!(heard.text.starts_with("HTTP/1.1 200 "), "{door:?} {claims:?}: {heard:?}");
    strictly(&seen).unwrap().remove(0)
}

#[test]
fn claims_do_not_arrive() {
    // Aim: contract §4: no caller's word on identity, time, layers or packing, in any spelling that an application might fold into it.
    for door in Door::ALL {
        run(|| async move {
            let message = arrived(door, CLAIMS).await;
            let evil: Vec<_> = message
                .fields
                .iter()
                .filter(|(name, value)| {
                    value.contains("evil") || name.starts_with("x-meshwright") || name.contains('_') && name.starts_with("x")
                })
                .collect();
            assert!(evil.is_empty(), "{door:?}: {evil:?}");
            let certified = message.all("x-forwarded-client-cert");
            let proved = if door == Door::Inbound { 0 } else { 1 };
            assert_eq!(certified.len(), proved, "{door:?}: {certified:?}");
            assert!(certified.iter().all(|value| value.contains(&format!("URI={FRONTEND}"))), "{door:?}: {certified:?}");
        });
    }
}

#[test]
fn claims_do_not_arrive_in_trailers() {
    // Aim: some applications take trailers for more of the head: there nobody says what only the mesh says either, and other trailers arrive.
    for door in Door::ALL {
        run(|| async move {
            let mut world = door.world(Protocol::Http);
            let seen = record(&mut world, DONE);
            let mut client = door.dial(&world);
            let claims = CLAIMS.replace("tracestate", "x-own");
            write(&mut client, &format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n{claims}\r\n"))
                .await;
            let heard = hear(&mut client).await;
            assert!(heard.text.starts_with("HTTP/1.1 200 "), "{door:?}: {heard:?}");
            let message = strictly(&seen).unwrap().remove(0);
            let left: Vec<_> = message.trailers.iter().map(|(name, _)| name.as_str()).collect();
            assert_eq!(left, ["x-own"], "{door:?}");
        });
    }
}

#[test]
fn the_edge_says_who_called() {
    // Aim: what a client says of its way is replaced by the edge's own word, in one field; its protocol is the edge's to say.
    run(|| async {
        let claims = "x-forwarded-for: 127.0.0.1\r\nX-Forwarded-For: 10.0.0.1, 10.0.0.2\r\nX_Forwarded_For: 127.0.0.1\r\n\
                      x-forwarded-proto: https\r\nX-Forwarded-Proto: https\r\nX_Forwarded_Proto: https\r\n";
        let message = arrived(Door::Edge, claims).await;
        assert_eq!(message.all("x-forwarded-for"), ["192.0.2.9"]);
        assert_eq!(message.all("x-forwarded-proto"), ["http"]);
        assert!(message.fields.iter().all(|(name, _)| !name.contains('_')), "{message:?}");
    });
}

#[test]
fn nobody_unsays_the_meshs_word() {
    // Aim: `connection` takes off what is the sender's own, and nothing that the mesh says; the application sees no field of the hop.
    for door in Door::ALL {
        run(|| async move {
            let named = "x-forwarded-client-cert, x-forwarded-for, x-forwarded-proto, host, te, authorization, x-own";
            let claims =
                format!("connection: close, {named}\r\nConnection: {named}\r\nauthorization: Basic eA==\r\nx-own: 1\r\nte: trailers\r\n");
            let message = arrived(door, &claims).await;
            let has = |name: &str| !message.all(name).is_empty();
            assert!(has("host") && has("te"), "{door:?}: {message:?}");
            assert_eq!(has("x-forwarded-client-cert"), door != Door::Inbound, "{door:?}: {message:?}");
            assert_eq!(has("x-forwarded-for"), door == Door::Edge, "{door:?}: {message:?}");
            assert!(!has("connection") && !has("x-own") && !has("authorization"), "{door:?}: {message:?}");
        });
    }
}

#[test]
fn an_application_cannot_speak_for_the_mesh() {
    // Aim: a reason in an answer is the mesh's own word, and an application's is taken off, in the answer and in its trailers.
    for door in Door::ALL {
        run(|| async move {
            let mut world = door.world(Protocol::Http);
            let said = "HTTP/1.1 200 OK\r\nx-meshwright-reason: denied\r\nx-meshwright-fields: ZXZpbA==\r\nTransfer-Encoding: chunked\r\n\r\n\
                        0\r\nx-meshwright-reason: denied\r\n\r\n";
            let _seen = record(&mut world, said);
            let mut client = door.dial(&world);
            write(&mut client, "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n\r\n").await;
            let heard = hear(&mut client).await;
            assert!(heard.text.starts_with("HTTP/1.1 200 ") && !heard.text.contains("x-meshwright"), "{door:?}: {heard:?}");
        });
    }
}
