//! What guards want to know before a request goes on.

use std::rc::Rc;
use std::sync::Arc;

use engine::callout::{CalloutAway, CalloutTold};
use engine::decide::Plan;
use engine::failure::{LocalReply, Reason};
use engine::filter::Resume;
use engine::filter::guard::{BodyWanted, CheckAsk, IntrospectionAsk, Question, RateAsk};
use engine::login::{LOGOUT_BYTES_MAX, LoginMeans, LogoutAsk, SessionAsk, SessionTold};
use engine::model::{Forward, Target};
use engine::versions::has_streams;
use http::header::EXPECT;
use http::{HeaderMap, StatusCode, request};
use tokio::time::{Instant, timeout};

use super::{Answering, Connection, Door, Passing, shown};
use crate::ground::body::{Beginning, Received};
use crate::ground::limits::{BEGINNING_WAIT, QUEUE_WAIT, STORE_WAIT};
use crate::ground::line::Interim;
use crate::observe::Account;
use crate::road::asking;
use crate::road::journey::Leg;
use crate::road::reply::reply;

/// A request that waits.
type HeldRequest = (request::Parts, Received);

/// What came of waiting: the request goes on, or is answered.
#[allow(clippy::large_enum_variant, reason = "nearly all are the large one, which a box would cost an allocation")]
enum Onward {
    On(HeldRequest),
    Answered(LocalReply),
}

impl<D: Door> Connection<D> {
    /// Finds out what a guard wants to know, and asks it again.
    pub(super) fn find_out(
        self: &Rc<Self>,
        request: HeldRequest,
        Passing { plan, mut leg, .. }: Passing<'_>,
        (question, next): (Question, Resume),
        mut account: Account,
    ) -> Answering {
        let (rule, forward, place) = (Arc::clone(plan.rule), Arc::clone(plan.forward), plan.place);
        let (target, own) = (plan.target.cloned().map_err(LocalReply::clone), Rc::clone(self));
        Answering::Later(Box::pin(async move {
            let began = Instant::now();
            let found = match question {
                Question::Check(ask) => own.check(request, (&forward, &mut leg), ask).await,
                Question::Rate(ask) => {
                    own.rate(&forward, &ask).await;
                    Onward::On(request)
                }
                Question::Logout(ask) => own.logout(request, &mut leg, ask).await,
                other => own.known(request, &mut leg, other).await,
            };
            leg.waited += began.elapsed();
            let plan = Plan { rule: &rule, forward: &forward, place, target: target.as_ref() };
            match found {
                Onward::On(request) => own.pass(request, Passing { plan, leg, home: None }, next, account),
                Onward::Answered(answer) => {
                    account.identified(&mut leg.found);
                    shown(&plan, &leg, reply(&own.shared, &answer, leg.version, account))
                }
            }
        }))
    }

    /// What can be found out without the request's body.
    async fn known(&self, request: HeldRequest, leg: &mut Leg, question: Question) -> Onward {
        match question {
            Question::Password(password) => match self.shared.hashing.verify(Arc::clone(&password)).await {
                Some(good) => leg.found.tell(&password, good),
                None => {
                    leg.found.overflow();
                    return Onward::Answered(LocalReply::of(Reason::Overflow));
                }
            },
            Question::Limit(ask) => {
                let wait = ask.object.wait().unwrap_or(STORE_WAIT);
                let told = match self.shared.snapshots.limit_questions().ask(ask) {
                    Some(answer) => timeout(wait, answer).await.is_ok_and(|told| told.is_ok()),
                    None => false,
                };
                if !told {
                    leg.counted.unanswered();
                }
            }
            Question::Place(mut ask) => {
                if timeout(QUEUE_WAIT, ask.turn(&mut leg.counted)).await.is_err() {
                    return Onward::Answered(ask.late(&mut leg.counted));
                }
            }
            Question::Token(ask) => leg.found.tell_callout(self.token(&ask).await),
            Question::Login(ask) => {
                let told = asking::login(&self.shared, &ask).await;
                leg.found.tell_callout(told.map_or_else(CalloutTold::Away, CalloutTold::Answer));
            }
            Question::Session(ask) => {
                let told = self.kept_session(*ask).await;
                leg.found.tell_session(told);
            }
            // Asked with the rule at hand, which leads there, or with the body.
            Question::Check(_) | Question::Rate(_) | Question::Logout(_) => {}
        }
        Onward::On(request)
    }

    /// What a store says of a session.
    async fn kept_session(&self, ask: SessionAsk) -> SessionTold {
        let answers = asking::kept(&self.shared, &ask.ask).await;
        self.shared.snapshots.load().consumers.with(|book| {
            let means = LoginMeans { book, now_secs: self.shared.wall_secs().into() };
            ask.told(answers.as_deref(), means)
        })
    }

    /// Whose sessions a provider ends, by its own word.
    async fn logout(&self, (mut parts, received): HeldRequest, leg: &mut Leg, ask: LogoutAsk) -> Onward {
        let wanted = BodyWanted { bytes_max: LOGOUT_BYTES_MAX, partial: false };
        let (received, beginning) = match self.look((&mut parts, received), wanted, leg).await {
            Glance::At(received, beginning) => (received, beginning),
            Glance::Told(received, CalloutTold::TooLong) => {
                leg.found.tell_session(SessionTold::NotMeant("it is longer than such a word is"));
                return Onward::On((parts, received));
            }
            Glance::Told(received, _) => {
                leg.found.tell_session(SessionTold::Away);
                return Onward::On((parts, received));
            }
            Glance::Answered(reason) => return Onward::Answered(LocalReply::of(reason)),
        };
        let told = match ask.read(&beginning.bytes, self.shared.wall_secs().into()) {
            Ok(ask) => self.kept_session(ask).await,
            Err(told) => told,
        };
        leg.found.tell_session(told);
        Onward::On((parts, received))
    }

    async fn token(&self, ask: &IntrospectionAsk) -> CalloutTold {
        let Some(_place) = ask.live().enter() else { return CalloutTold::Away(CalloutAway::Full) };
        asking::introspect(&self.shared, ask).await.map_or_else(CalloutTold::Away, CalloutTold::Answer)
    }

    /// What a rate-limit service says of a request: its guard looks there.
    async fn rate(&self, forward: &Forward, ask: &RateAsk) {
        // As many ask as may: it is no fault of the service's.
        let Some(_place) = ask.enter() else { return };
        let told = match (forward.asked.get(ask.place()), ask.request()) {
            (Some(Target::Cluster(cluster)), Ok(request)) => asking::ask(&self.shared, cluster, (request, true), ask.timeout()).await,
            // What it refers to cannot be used, or is not there yet.
            _ => Err(CalloutAway::Unreached),
        };
        let shared = &self.shared;
        if ask.told(told, (shared.moment(shared.clock.now()), shared.wall_secs().into())) {
            tracing::warn!(store = ask.store(), "a rate-limit service does not answer; each limit there goes by its onError");
        }
    }

    /// Whether a service lets a request go on.
    async fn check(&self, (mut parts, received): HeldRequest, (forward, leg): (&Forward, &mut Leg), ask: CheckAsk) -> Onward {
        let Some(_place) = ask.external.live().enter() else {
            leg.found.tell_callout(CalloutTold::Away(CalloutAway::Full));
            return Onward::On((parts, received));
        };
        let cluster = match forward.asked.get(ask.place) {
            Some(Target::Cluster(cluster)) => cluster,
            // What it refers to cannot be used, or is not there yet.
            Some(Target::Reply(answer)) if answer.reason == Some(Reason::BadBackend) && !ask.is_on_trial() => {
                return Onward::Answered(LocalReply {
                    status: StatusCode::INTERNAL_SERVER_ERROR,
                    ..LocalReply::of(Reason::PolicyUnavailable)
                });
            }
            Some(Target::Reply(_)) | None => {
                leg.found.tell_callout(CalloutTold::Away(CalloutAway::Unreached));
                return Onward::On((parts, received));
            }
        };
        let most = forward.policy.body_bytes_max;
        let is_long = |bytes: u64| most > 0 && bytes > most;
        // What is refused in any case is shown to nobody.
        if is_long(received.size_hint().lower()) {
            return Onward::Answered(too_long());
        }
        let (received, beginning) = match ask.body() {
            Some(wanted) if !received.is_end_stream() => match self.look((&mut parts, received), wanted, leg).await {
                Glance::At(_, beginning) if is_long(beginning.bytes.len() as u64) => return Onward::Answered(too_long()),
                Glance::At(received, beginning) => (received, Some(beginning)),
                Glance::Told(received, told) => {
                    leg.found.tell_callout(told);
                    return Onward::On((parts, received));
                }
                Glance::Answered(reason) => return Onward::Answered(LocalReply::of(reason)),
            },
            _ => (received, None),
        };
        let Beginning { bytes, more } = beginning.unwrap_or_else(|| Beginning { bytes: bytes::Bytes::new(), more: false });
        // Its head says gRPC by now.
        let bytes = leg.web.map_or_else(|| bytes.clone(), |web| web.shown(&bytes));
        let (grpc, within) = (ask.is_grpc(), ask.timeout());
        let answered = match ask.request(bytes, more) {
            Ok(request) => asking::ask(&self.shared, cluster, (request, grpc), within).await,
            Err(error) => {
                tracing::warn!(%error, "a question to a service cannot be written down");
                Err(CalloutAway::Unreached)
            }
        };
        leg.found.tell_callout(answered.map_or_else(CalloutTold::Away, CalloutTold::Answer));
        Onward::On((parts, received))
    }

    /// Reads as much of a request's body as a service is to be shown.
    async fn look(&self, (parts, received): (&mut request::Parts, Received), wanted: BodyWanted, leg: &mut Leg) -> Glance {
        let BodyWanted { bytes_max, partial } = wanted;
        let length = received.size_hint().exact();
        if !partial && length.is_some_and(|length| length > bytes_max as u64) {
            return Glance::Told(received, CalloutTold::TooLong);
        }
        let room = length.and_then(|length| usize::try_from(length).ok()).map_or(bytes_max, |length| length.min(bytes_max));
        let Some(place) = self.shared.replays.place(room) else { return Glance::Told(received, CalloutTold::Away(CalloutAway::Full)) };
        if leg.expects {
            // The service is an upstream that wants the body. hyper asks for it by itself when it is read.
            if has_streams(leg.version)
                && let Some(line) = received.line()
            {
                line.pass(Interim { status: StatusCode::CONTINUE, headers: HeaderMap::new() });
            }
            leg.expects = false;
            parts.headers.remove(EXPECT);
        }
        match timeout(BEGINNING_WAIT, received.look(bytes_max, place)).await {
            Err(_) => Glance::Answered(Reason::RequestTimeout),
            Ok(Err(_)) => Glance::Answered(Reason::BadRequest),
            Ok(Ok((received, beginning))) if beginning.more && !partial => Glance::Told(received, CalloutTold::TooLong),
            Ok(Ok((received, beginning))) => Glance::At(received, beginning),
        }
    }
}

/// Of a body that is longer than the rule lets it be.
fn too_long() -> LocalReply {
    LocalReply { status: StatusCode::PAYLOAD_TOO_LARGE, ..LocalReply::of(Reason::TooLarge) }
}

/// What comes of reading the beginning of a body.
enum Glance {
    At(Received, Beginning),
    /// It is not to be shown.
    Told(Received, CalloutTold),
    /// It did not come.
    Answered(Reason),
}
