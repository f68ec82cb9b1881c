//! What keeps refreshes single: the rest of a login is tried whole, where requests meet it (`filter::guard`).

use std::sync::Arc;

use super::live::{LoginLive, RefreshOutcome, SessionTurn};
use super::session::{KeptSession, LoginSession};
use crate::callout::Callouts;

fn session(id: &str, due_secs: u64, refresh_token: &str) -> LoginSession {
    let kept = KeptSession {
        id: id.to_owned(),
        id_token: String::new(),
        access_token: None,
        refresh_token: Some(refresh_token.to_owned()),
        began_secs: 0,
        used_secs: 0,
        due_secs: Some(due_secs),
        issued_secs: 0,
    };
    LoginSession::new(kept, &"i".into(), serde_json::Map::new())
}

#[test]
fn a_refresh_is_one_at_a_time_and_of_the_newest() {
    // Aim: one asker is told; one that never comes back is given up; who has old tokens gets the newest, and refreshes by those.
    let live = LoginLive::new("shop/people", &Callouts::default());
    let old = session("a", 100, "r1");
    assert!(matches!(live.turn(&old, 100, 30), SessionTurn::Refresh(None)));
    assert!(matches!(live.turn(&old, 129, 30), SessionTurn::AsItIs));
    assert!(matches!(live.turn(&old, 130, 30), SessionTurn::Refresh(None)));
    assert!(matches!(live.turn(&session("b", 100, "r1"), 130, 30), SessionTurn::Refresh(None)));
    live.turned("a", RefreshOutcome::Done(Arc::new(session("a", 200, "r2"))));
    let by = |turn| if let SessionTurn::By(newer) = turn { newer.kept.refresh_token.clone() } else { None };
    assert_eq!(by(live.turn(&old, 150, 30)).as_deref(), Some("r2"));
    let SessionTurn::Refresh(Some(newest)) = live.turn(&old, 200, 30) else { panic!("the newest is due") };
    assert_eq!(newest.kept.refresh_token.as_deref(), Some("r2"));
    live.turned("a", RefreshOutcome::Waits(215));
    assert_eq!(by(live.turn(&old, 214, 30)).as_deref(), Some("r2"));
    assert!(matches!(live.turn(&old, 215, 30), SessionTurn::Refresh(Some(_))));
    live.turned("a", RefreshOutcome::Refused(Some(200)));
    assert!(matches!(live.turn(&old, 216, 30), SessionTurn::Over));
    assert!(live.newest("a").is_none());
    // Another replica was quicker: what it was given in the meantime was not refused.
    assert!(matches!(live.turn(&session("a", 300, "r3"), 310, 30), SessionTurn::Refresh(None)));
}
