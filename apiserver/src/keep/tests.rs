use std::time::UNIX_EPOCH;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::lease::{Election, Term, WallClock};
use crate::testing::{Fake, Mood};

const SECRET: &str = "/api/v1/namespaces/mesh/secrets/ca";
const BOOK: &str = "/api/v1/namespaces/mesh/configmaps/book";
const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/mesh/leases/control";

async fn term(fake: &Fake, me: &str) -> Term {
    election(fake, me).win().await
}

fn election(fake: &Fake, me: &str) -> Election {
    let wall: WallClock = Arc::new(|| UNIX_EPOCH);
    if !fake.state().objects.contains_key(LEASE) {
        fake.state().put(LEASE, json!({"metadata": {"name": "control"}, "spec": {"renewTime": "2026-11-29T00:00:00.000000Z"}}));
    }
    Election::new(fake.client(), "mesh", "control", me, wall)
}

async fn keep<K: Shelf>(fake: &Fake, name: &str, term: &Term) -> Result<Keep<K>, KeepError> {
    Keep::claim(fake.client(), "mesh", name, term.tenure()).await
}

fn put(name: &str, value: &str) -> Changes {
    Changes::from([(name.to_owned(), Some(value.into()))])
}

fn text(rows: &Rows) -> Vec<(&str, &str)> {
    rows.iter().map(|(name, value)| (name.as_str(), std::str::from_utf8(value).unwrap())).collect()
}

#[tokio::test(start_paused = true)]
async fn what_one_holder_wrote_the_next_one_has() {
    // Aim: rows come back, as Secret and as ConfigMap; a removed one does not; what people wrote on the object stays.
    let fake = Fake::default();
    fake.state().put(SECRET, json!({"metadata": {"name": "ca", "labels": {"backup": "yes"}}, "data": {"old": "b2xk"}}));
    let first = term(&fake, "a").await;
    let (secret, book) = (keep::<Secret>(&fake, "ca", &first).await.unwrap(), keep::<ConfigMap>(&fake, "book", &first).await.unwrap());
    secret.write(&Changes::from([("root.key".into(), Some(vec![0, 255])), ("old".into(), None)])).await.unwrap();
    book.write(&put("epoch", "41")).await.unwrap();
    let writes = fake.state().writes;
    book.write(&put("epoch", "41")).await.unwrap();
    assert_eq!(fake.state().writes, writes, "what is so already is not written");
    first.release().await;
    let second = term(&fake, "b").await;
    assert_eq!(keep::<Secret>(&fake, "ca", &second).await.unwrap().rows().await, Rows::from([("root.key".into(), vec![0, 255])]));
    let book = keep::<ConfigMap>(&fake, "book", &second).await.unwrap();
    assert_eq!(text(&book.rows().await), [("epoch", "41")]);
    let object = fake.state().objects[SECRET].clone();
    assert_eq!((&object["metadata"]["labels"]["backup"], &object["metadata"]["annotations"][TERM]), (&json!("yes"), &json!("2 b")));
}

#[tokio::test(start_paused = true)]
async fn a_deposed_holder_writes_nothing() {
    // Aim: two holders for a moment (the first does not know yet): its write is refused, names the other, and changes nothing; one that
    // landed before the claim is not lost.
    let fake = Fake::default();
    let first = term(&fake, "a").await;
    let stale = keep::<ConfigMap>(&fake, "book", &first).await.unwrap();
    stale.write(&put("epoch", "41")).await.unwrap();
    let mut lease = fake.state().objects[LEASE].clone();
    lease["spec"]["holderIdentity"] = json!("");
    fake.state().put(LEASE, lease);
    let second = term(&fake, "b").await;
    let book = keep::<ConfigMap>(&fake, "book", &second).await.unwrap();
    assert!(first.tenure().holds(), "it does not know");
    let error = stale.write(&put("epoch", "42")).await.unwrap_err();
    assert_eq!(error, KeepError::Deposed { place: "ConfigMap mesh/book".into(), holder: "2 b".into() });
    assert!(error.to_string().contains("term of 2 b"));
    assert_eq!(text(&book.rows().await), [("epoch", "41")]);
    book.write(&put("epoch", "42")).await.unwrap();
    assert_eq!(fake.state().objects[BOOK]["data"]["epoch"], "42");
}

/// A client whose calls arrive once the gate is open.
fn gated(fake: &Fake, gate: &CancellationToken) -> Client {
    let (client, gate) = (fake.client(), gate.clone());
    let service = tower::service_fn(move |request| {
        let (client, gate) = (client.clone(), gate.clone());
        async move {
            gate.cancelled().await;
            client.send(request).await
        }
    });
    Client::new(service, "mesh")
}

#[tokio::test(start_paused = true)]
async fn a_claim_that_comes_too_late_overwrites_no_other() {
    // Aim: a holder claims at the end of its time, and its read arrives when the next one has claimed: it writes nothing, and the next one
    // goes on.
    let fake = Fake::default();
    let tenure = term(&fake, "a").await.tenure().clone();
    let gate = CancellationToken::new();
    let late = async {
        sleep(Duration::from_millis(2_950)).await;
        Keep::<ConfigMap>::claim(gated(&fake, &gate), "mesh", "book", &tenure).await
    };
    let next = async {
        let second = term(&fake, "b").await;
        let book = keep::<ConfigMap>(&fake, "book", &second).await.unwrap();
        book.write(&put("epoch", "41")).await.unwrap();
        gate.cancel();
        sleep(Duration::from_millis(100)).await;
        book.write(&put("epoch", "42")).await.unwrap();
        second
    };
    let (late, second) = tokio::join!(late, next);
    assert!(matches!(late, Err(KeepError::Lost { verb: "claim", .. })), "{:?}", late.err());
    assert!(second.tenure().holds());
    assert_eq!(fake.state().objects[BOOK]["metadata"]["annotations"][TERM], "2 b");
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_claim_of_its_own_stands_and_claims_again() {
    // Aim: the object is put back from a backup, or stripped of its annotation, under a holder whose lease lasts: the term ends, the next
    // one has the object within five seconds, and the same process may win it.
    let fake = Fake::default();
    let mut election = election(&fake, "a");
    let mut first = election.win().await;
    for annotations in [json!({TERM: "7 former"}), json!(null)] {
        let book = keep::<ConfigMap>(&fake, "book", &first).await.unwrap();
        book.write(&put("epoch", "1")).await.unwrap();
        let mut object = fake.state().objects[BOOK].clone();
        object["metadata"]["annotations"] = annotations;
        fake.state().put(BOOK, object);
        let begun = Instant::now();
        assert!(matches!(book.write(&put("epoch", "2")).await, Err(KeepError::Deposed { .. })));
        assert!(first.tenure().lost().is_cancelled() && !first.tenure().holds());
        first.release().await;
        first = election.win().await;
        keep::<ConfigMap>(&fake, "book", &first).await.unwrap().write(&put("epoch", "2")).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_between_read_and_claim_counts() {
    // Aim: the claim is refused over an older version, and what was written meanwhile is read.
    let fake = Fake::default();
    let first = term(&fake, "a").await;
    let api: Api<ConfigMap> = Api::namespaced(fake.client(), "mesh");
    keep::<ConfigMap>(&fake, "book", &first).await.unwrap().write(&put("epoch", "41")).await.unwrap();
    let read = api.get("book").await.unwrap();
    keep::<ConfigMap>(&fake, "book", &first).await.unwrap().write(&put("epoch", "42")).await.unwrap();
    let claimed = within(CALL_MAX, api.replace("book", &PostParams::default(), &read)).await;
    assert_eq!(claimed.unwrap_err().fault, Fault::Conflict);
    assert_eq!(text(&claim(&api, "book", "2 b", first.tenure()).await.unwrap().rows()), [("epoch", "42")]);
}

#[tokio::test(start_paused = true)]
async fn lost_answers_labels_and_deletions_do_not_depose() {
    // Aim: a write that arrived unanswered, a person's label and a deletion are met with another attempt; all rows are there after.
    let fake = Fake::default();
    let term = term(&fake, "a").await;
    let book = keep::<ConfigMap>(&fake, "book", &term).await.unwrap();
    book.write(&put("ages", "old")).await.unwrap();
    fake.state().mood = Mood::Mute;
    let (first, changes) = (put("epoch", "1"), ());
    let answered = async {
        sleep(Duration::from_millis(100)).await;
        fake.state().mood = Mood::Well;
    };
    let (written, ()) = tokio::join!(book.write(&first), answered);
    assert_eq!((written, changes), (Ok(()), ()));
    let mut labelled = fake.state().objects[BOOK].clone();
    labelled["metadata"]["labels"] = json!({"mine": "yes"});
    fake.state().put(BOOK, labelled);
    book.write(&put("epoch", "2")).await.unwrap();
    assert_eq!(fake.state().objects[BOOK]["metadata"]["labels"], json!({"mine": "yes"}));
    fake.state().objects.remove(BOOK);
    book.write(&put("epoch", "3")).await.unwrap();
    assert_eq!(fake.state().objects[BOOK]["data"], json!({"ages": "old", "epoch": "3"}));
}

#[tokio::test(start_paused = true)]
async fn what_somebody_deletes_is_mended_by_who_holds_the_lease() {
    // Aim: an object that is gone is made again with all its rows, one that is there is let be, and after the term nobody makes anything.
    let fake = Fake::default();
    let term = term(&fake, "a").await;
    let secret = keep::<Secret>(&fake, "ca", &term).await.unwrap();
    secret.write(&Changes::from([("root.key".into(), Some(vec![0, 255]))])).await.unwrap();
    assert_eq!(secret.mend().await, Ok(false));
    let before = fake.state().objects.remove(SECRET).unwrap();
    assert_eq!(secret.mend().await, Ok(true));
    let after = fake.state().objects[SECRET].clone();
    assert_eq!((&after["data"], &after["metadata"]["annotations"]), (&before["data"], &before["metadata"]["annotations"]));
    secret.write(&Changes::from([("more".into(), Some(vec![1]))])).await.unwrap();
    fake.state().objects.remove(SECRET);
    fake.state().mood = Mood::Says(403);
    assert!(secret.mend().await.unwrap_err().to_string().contains("cannot look for Secret mesh/ca"));
    fake.state().mood = Mood::Well;
    term.release().await;
    assert_eq!(secret.mend().await, Ok(false));
    assert!(!fake.state().objects.contains_key(SECRET));
}

#[tokio::test(start_paused = true)]
async fn an_api_server_that_is_away_ends_a_write_with_the_term() {
    // Aim: neither a claim nor a write waits longer than the term, and both say why.
    let fake = Fake::default();
    let term = term(&fake, "a").await;
    let book = keep::<ConfigMap>(&fake, "book", &term).await.unwrap();
    for (mood, word) in [(Mood::Away, "1.5 s"), (Mood::Says(503), "503")] {
        fake.state().mood = mood;
        let error = book.write(&put("epoch", "1")).await.unwrap_err();
        if !error.to_string().contains(word) {
            assert!(term.tenure().lost().is_cancelled() && error.to_string().contains("the lease was lost"), "{error}");
        }
        assert!(matches!(error, KeepError::Lost { .. }));
        assert!(matches!(keep::<ConfigMap>(&fake, "other", &term).await, Err(KeepError::Lost { .. })));
    }
}

#[tokio::test(start_paused = true)]
async fn what_stays_forbidden_is_told_soon() {
    // Aim: no long retries where only a person can help; the object and the remedy are named.
    let fake = Fake::default();
    let term = term(&fake, "a").await;
    fake.state().mood = Mood::Says(403);
    let begun = Instant::now();
    let error = keep::<Secret>(&fake, "ca", &term).await.err().unwrap().to_string();
    assert!(error.contains("cannot claim Secret mesh/ca") && error.contains("meshwright install"), "{error}");
    assert!(begun.elapsed() < FORBIDDEN_MAX + RETRY * 2 && term.tenure().holds());
}

#[tokio::test(start_paused = true)]
async fn a_claim_outlives_a_moment_without_rights() {
    // Aim: an API server that has just started says 403 to everybody; that ends no process.
    let fake = Fake::default();
    let term = term(&fake, "a").await;
    fake.state().mood = Mood::Says(403);
    let well = async {
        sleep(Duration::from_millis(900)).await;
        fake.state().mood = Mood::Well;
    };
    let (claimed, ()) = tokio::join!(keep::<ConfigMap>(&fake, "book", &term), well);
    claimed.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_object_takes_so_much_and_no_more() {
    // Aim: beyond the bound nothing changes, and the row that is too large is named; smaller rows are written still.
    let fake = Fake::default();
    let term = term(&fake, "a").await;
    let book = keep::<ConfigMap>(&fake, "book", &term).await.unwrap();
    book.write(&put("ages", &"x".repeat(BYTES_MAX - 100))).await.unwrap();
    let error = book.write(&put("ages", &"x".repeat(BYTES_MAX))).await.unwrap_err();
    assert!(matches!(&error, KeepError::Full { row, row_bytes: BYTES_MAX, .. } if row == "ages"), "{error}");
    book.write(&put("epoch", "7")).await.unwrap();
    assert_eq!(book.rows().await["epoch"], b"7");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_runtime_waits_on_its_thread() {
    // Aim: an authority that signs on a thread of its own keeps what it must before it goes on.
    let fake = Fake::default();
    let term = term(&fake, "a").await;
    let book = Arc::new(keep::<ConfigMap>(&fake, "book", &term).await.unwrap());
    let written = book.clone();
    std::thread::spawn(move || written.write_blocking(put("epoch", "9"))).join().unwrap().unwrap();
    assert_eq!(book.rows_blocking().map(|rows| rows["epoch"].clone()), Some(b"9".to_vec()));
}
