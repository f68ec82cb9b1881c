use std::time::UNIX_EPOCH;

use super::*;
use crate::testing::{Fake, Mood};

const PATH: &str = "/apis/coordination.k8s.io/v1/namespaces/mesh/leases/control";

/// A wall clock that goes with tokio's, which tests hold.
fn wall() -> WallClock {
    let begun = Instant::now();
    Arc::new(move || UNIX_EPOCH + Duration::from_secs(1_800_000_000) + begun.elapsed())
}

fn election(fake: &Fake, me: &str) -> Election {
    Election::new(fake.client(), "mesh", "control", me, wall())
}

/// With a Lease that a former holder gave back.
fn installed() -> Fake {
    let fake = Fake::default();
    let spec = json!({"renewTime": "2026-11-29T00:00:00.000000Z", "leaseTransitions": 0});
    fake.state().put(PATH, json!({"metadata": {"name": "control", "namespace": "mesh", "labels": {"app": "control"}}, "spec": spec}));
    fake
}

fn holder(fake: &Fake) -> String {
    fake.state().objects[PATH]["spec"]["holderIdentity"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(start_paused = true)]
async fn a_free_lease_is_won_at_once_and_renewed() {
    // Aim: the Lease says what Kubernetes' own tools expect of it, what others wrote on it stays, and it is renewed once a second.
    let fake = installed();
    let term = election(&fake, "a").win().await;
    assert_eq!((term.tenure().me(), term.tenure().number(), term.tenure().holds()), ("a", 1, true));
    let lease = fake.state().objects[PATH].clone();
    assert_eq!(lease["metadata"]["labels"]["app"], "control");
    assert_eq!(lease["spec"]["leaseDurationSeconds"], 4);
    assert_eq!(lease["spec"]["leaseTransitions"], 1);
    assert_eq!(lease["spec"]["acquireTime"], lease["spec"]["renewTime"]);
    tokio::time::sleep(Duration::from_millis(10_500)).await;
    let later = fake.state().objects[PATH].clone();
    assert_eq!(later["spec"]["acquireTime"], lease["spec"]["acquireTime"]);
    assert_eq!((fake.state().writes, term.tenure().holds()), (2 + 10, true));
}

#[tokio::test(start_paused = true)]
async fn a_clean_stop_hands_over_at_once_and_a_death_within_five_seconds() {
    // Aim: seconds to takeover, both ways; whoever stands by never writes before.
    let fake = installed();
    let first = election(&fake, "a").win().await;
    let mut second = election(&fake, "b");
    let waiting = tokio::time::timeout(Duration::from_secs(60), second.win()).await;
    assert!(waiting.is_err() && holder(&fake) == "a");
    let began = Instant::now();
    first.release().await;
    let term = second.win().await;
    assert!(began.elapsed() <= TERMS.look, "{:?}", began.elapsed());
    let mut third = election(&fake, "c");
    assert!(tokio::time::timeout(Duration::from_millis(1_700), third.win()).await.is_err());
    // Dropped without a word: as good as dead.
    drop(term);
    let began = Instant::now();
    let term = third.win().await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!((term.tenure().number(), holder(&fake).as_str()), (3, "c"));
}

#[tokio::test(start_paused = true)]
async fn a_holder_that_cannot_renew_is_over_before_another_begins() {
    // Aim: with the API server away the holder stops after 3 s; while it is away nobody takes over; when it is back somebody holds at once.
    let fake = installed();
    let term = election(&fake, "a").win().await;
    let mut second = election(&fake, "b");
    assert!(tokio::time::timeout(Duration::from_secs(2), second.win()).await.is_err());
    for mood in [Mood::Away, Mood::Says(500)] {
        fake.state().mood = mood;
        let began = Instant::now();
        if !term.tenure().lost().is_cancelled() {
            term.tenure().lost().cancelled().await;
            assert!(began.elapsed() <= TERMS.hold && !term.tenure().holds());
        }
        assert!(tokio::time::timeout(Duration::from_secs(120), second.win()).await.is_err(), "{mood:?}");
    }
    fake.state().mood = Mood::Well;
    let began = Instant::now();
    let term = second.win().await;
    assert!(began.elapsed() < Duration::from_secs(2) && term.tenure().number() == 2);
}

#[tokio::test(start_paused = true)]
async fn the_largest_gap_between_renewals_is_known() {
    // Aim: a second on a quiet machine; while the API server is away for a moment the gap is as long as that and stays known; one that costs
    // the lease is as long as the lease is held, at least.
    let fake = installed();
    let term = election(&fake, "a").win().await;
    tokio::time::sleep(Duration::from_millis(5_500)).await;
    let quiet = term.tenure().longest_gap();
    assert!((TERMS.renew..RENEWAL_LATE).contains(&quiet), "{quiet:?}");
    fake.state().mood = Mood::Says(500);
    tokio::time::sleep(Duration::from_millis(1_600)).await;
    fake.state().mood = Mood::Well;
    tokio::time::sleep(Duration::from_secs(10)).await;
    let late = term.tenure().longest_gap();
    assert!((RENEWAL_LATE..TERMS.hold).contains(&late) && term.tenure().holds(), "{late:?}");
    fake.state().mood = Mood::Says(500);
    term.tenure().lost().cancelled().await;
    assert!(term.tenure().longest_gap() >= TERMS.hold);
}

#[tokio::test(start_paused = true)]
async fn a_holder_whose_lease_another_took_learns_it_from_the_conflict() {
    // Aim: two holders for a moment (this one stood still, say): the first renewal is refused, and that is the end.
    let fake = installed();
    let term = election(&fake, "a").win().await;
    let mut lease = fake.state().objects[PATH].clone();
    lease["spec"]["holderIdentity"] = json!("b");
    fake.state().put(PATH, lease);
    let began = Instant::now();
    term.tenure().lost().cancelled().await;
    assert!(began.elapsed() < TERMS.renew + Duration::from_millis(100));
    term.release().await;
    assert_eq!(holder(&fake), "b", "what is another's is not given back");
}

#[tokio::test(start_paused = true)]
async fn who_has_lost_the_lease_wins_it_anew_and_not_by_its_memory() {
    // Aim: another took it soon after it was won: the former holder stands again, and waits for that one's end.
    let fake = installed();
    let mut election = election(&fake, "a");
    let term = election.win().await;
    let mut lease = fake.state().objects[PATH].clone();
    lease["spec"]["holderIdentity"] = json!("b");
    fake.state().put(PATH, lease);
    term.tenure().lost().cancelled().await;
    term.release().await;
    let begun = Instant::now();
    let again = election.win().await;
    assert!(begun.elapsed() >= TERMS.duration && again.tenure().holds(), "{:?}", begun.elapsed());
    assert_eq!(holder(&fake), "a");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_nothing_is_not_asked_without_pause() {
    // Aim: something between us and the API server says 404 to everything: a few calls a second, and the lease is won when it is back.
    let fake = installed();
    fake.state().mood = Mood::Says(404);
    let mut first = election(&fake, "a");
    let before = fake.state().calls;
    assert!(tokio::time::timeout(Duration::from_secs(10), first.win()).await.is_err());
    let calls = fake.state().calls - before;
    assert!(calls <= 2 * 10 * 4 + 4, "{calls} calls in 10 s");
    fake.state().mood = Mood::Well;
    assert!(first.win().await.tenure().holds());
}

#[tokio::test(start_paused = true)]
async fn answers_that_get_lost_end_in_a_hold_or_in_none() {
    // Aim: writes that arrive and are not answered cost nobody anything: the Lease is ours once an answer comes.
    let fake = installed();
    fake.state().mood = Mood::Mute;
    let mut first = election(&fake, "a");
    assert!(tokio::time::timeout(Duration::from_secs(10), first.win()).await.is_err());
    assert_eq!(holder(&fake), "a");
    fake.state().mood = Mood::Well;
    assert!(first.win().await.tenure().holds());
}

#[tokio::test(start_paused = true)]
async fn a_machine_that_slept_does_not_hold() {
    // Aim: the steady clock stood still, the wall clock did not: what it was holding is another's by now.
    let fake = installed();
    let offset = Arc::new(std::sync::Mutex::new(Duration::ZERO));
    let (base, slept) = (wall(), offset.clone());
    let wall: WallClock = Arc::new(move || base() + *slept.lock().unwrap());
    let term = Election::new(fake.client(), "mesh", "control", "a", wall).win().await;
    *offset.lock().unwrap() = Duration::from_secs(10);
    assert!(!term.tenure().holds());
    term.tenure().lost().cancelled().await;
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_does_not_exist_is_held_after_its_time() {
    // Aim: it may have been deleted under a holder; where nobody has held it, that costs one lease's time and a renewal's.
    let fake = Fake::default();
    let began = Instant::now();
    let term = election(&fake, "a").win().await;
    assert!(began.elapsed() >= TERMS.duration + TERMS.renew && began.elapsed() < Duration::from_secs(6));
    fake.state().objects.clear();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((holder(&fake).as_str(), term.tenure().holds()), ("a", true), "its holder makes it again");
}
