//! Logins among the ways to say who calls: sessions are looked at where a rule asks who calls, and the login's own paths are answered here.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, LOCATION, REFERRER_POLICY, RETRY_AFTER, SET_COOKIE};
use http::{HeaderName, HeaderValue, Method, StatusCode, request};

use super::denied::Denied;
use super::{Passed, Question, Watch, unavailable};
use crate::consumers::AuthMethod;
use crate::failure::{LocalReply, Reason};
use crate::filter::{Called, Exchange, HeaderOp};
use crate::login::{Leaving, Login, LoginFault, LoginHead, LoginMeans, LogoutAsk, Onwards, Returned, SessionTold};
use crate::matching::RequestHead;

/// Says how a client from outside came, whoever it came through: only the edge says it.
const CAME_BY: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Nothing of a page of ours is anybody else's. Where forms lead is not said: browsers that apply it to redirects, too, would not go on to the
/// provider, where a logout ends.
const PAGE_POLICY: HeaderValue = HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'");

/// What a provider sends by a browser that is for nobody else.
pub(super) const SECRET_PARAMETERS: [&str; 2] = ["code", "state"];

/// The paths of logins, whatever else a host serves: where providers send browsers back to, and where sessions are ended.
#[derive(Debug)]
pub struct LoginPaths {
    logins: Vec<Arc<Login>>,
}

impl LoginPaths {
    pub(crate) const fn new(logins: Vec<Arc<Login>>) -> Self {
        Self { logins }
    }

    /// The logins whose paths they are.
    pub fn logins(&self) -> &[Arc<Login>] {
        &self.logins
    }

    pub(super) fn on_request(&self, exchange: &mut Exchange<'_>) -> Passed {
        let Some(watch) = &mut exchange.watch else { return Passed::Answered(Box::new(unavailable())) };
        let head = head(exchange.request, exchange.called);
        let means = LoginMeans { book: watch.book, now_secs: watch.wall_secs };
        let path = exchange.request.uri.path();
        let back = || self.logins.iter().filter(|login| login.redirect_path == path);
        // Where several logins share a path, it is the one that has begun.
        if let Some(login) = back().find(|login| login.began(head, means)).or_else(|| back().next()) {
            return returned(login, head, watch);
        }
        let told: Vec<_> = self.logins.iter().filter(|login| login.back_channel_path.as_deref() == Some(path)).cloned().collect();
        if !told.is_empty() {
            return back_channel(told, head, watch);
        }
        let Some(first) = self.logins.iter().find(|login| login.logout_path == path) else {
            return Passed::Answered(Box::new(LocalReply::of(Reason::NoRoute)));
        };
        if !matches!(*head.method, Method::GET | Method::HEAD | Method::POST) {
            return Passed::Answered(Box::new(LocalReply::of(Reason::BadRequest)));
        }
        let shown = self.logins.iter().filter(|login| login.logout_path == path).find(|login| login.is_shown(head.headers, means));
        Passed::Answered(Box::new(match shown.unwrap_or(first).leave(head, means, watch.found.take_session()) {
            Leaving::Asks(ask) => return Passed::Asks(Box::new(Question::Session(ask))),
            Leaving::Out(onwards) => sent(onwards, StatusCode::SEE_OTHER),
            Leaving::Confirm => {
                let form = "<form method=\"post\"><button>Log out</button></form>";
                page(StatusCode::OK, None, "Log out?", "Another site has sent you here.", form)
            }
        }))
    }

    pub(super) fn story(&self) -> String {
        let told = |login: &Arc<Login>| {
            let back = login.back_channel_path.as_ref().map(|path| format!(", and ended by its provider at {path}")).unwrap_or_default();
            format!("{} is come back to at {} and left at {}{back}", login.policy, login.redirect_path, login.logout_path)
        };
        self.logins.iter().map(told).collect::<Vec<_>>().join("; ")
    }
}

/// What a login looks at of a request.
pub(super) fn head(request: &request::Parts, called: Called) -> LoginHead<'_> {
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    let host = RequestHead::new(&request.method, &request.uri, &request.headers).host;
    let secure = called.tls || request.headers.get(CAME_BY).is_some_and(|by| by == "https");
    LoginHead { method: &request.method, target, headers: &request.headers, host, secure }
}

fn returned(login: &Arc<Login>, head: LoginHead<'_>, watch: &mut Watch<'_>) -> Passed {
    let means = LoginMeans { book: watch.book, now_secs: watch.wall_secs };
    let came = match watch.found.take_session() {
        Some(SessionTold::Kept(onwards)) => Ok(Returned::In(onwards)),
        Some(_) => Err(LoginFault::StoreAway),
        None => login.returned(head, means, watch.found.take_callout()),
    };
    match came {
        Ok(Returned::Asks(ask)) => Passed::Asks(Box::new(Question::Login(ask))),
        Ok(Returned::Keeps(ask)) => Passed::Asks(Box::new(Question::Session(ask))),
        Ok(Returned::In(onwards)) if login.is_strict() => Passed::Answered(Box::new(walked(onwards))),
        Ok(Returned::In(onwards)) => Passed::Answered(Box::new(sent(onwards, StatusCode::SEE_OTHER))),
        Err(fault) => refused(fault, watch),
    }
}

/// A provider says that sessions have ended (OpenID Connect Back-Channel Logout 1.0, section 2.8).
fn back_channel(logins: Vec<Arc<Login>>, head: LoginHead<'_>, watch: &mut Watch<'_>) -> Passed {
    let why = match watch.found.take_session() {
        Some(SessionTold::NotMeant(why)) => why,
        Some(SessionTold::Barred) => {
            let headers = vec![(CACHE_CONTROL, HeaderValue::from_static("no-store"))];
            return Passed::Answered(Box::new(LocalReply {
                status: StatusCode::OK,
                reason: None,
                headers,
                body: Bytes::new(),
                grpc_status: None,
            }));
        }
        // The provider may tell it again.
        Some(_) => {
            watch.found.refuse(Some(AuthMethod::Login), Denied::Away);
            let mut reply = LocalReply::of(Denied::Away.reason());
            reply.headers.push((RETRY_AFTER, HeaderValue::from_static("1")));
            return Passed::Answered(Box::new(reply));
        }
        None => match LogoutAsk::of(logins, head) {
            Ok(ask) => return Passed::Asks(Box::new(Question::Logout(ask))),
            Err(why) => why,
        },
    };
    watch.found.refuse(Some(AuthMethod::Login), Denied::LogoutToken);
    let body = format!("{{\"error\":\"invalid_request\",\"error_description\":\"{why}\"}}\n");
    let headers = vec![(CONTENT_TYPE, HeaderValue::from_static("application/json")), (CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    let reason = Some(Denied::LogoutToken.reason());
    Passed::Answered(Box::new(LocalReply { status: StatusCode::BAD_REQUEST, reason, headers, body: body.into(), grpc_status: None }))
}

/// Sends a request to the provider that shows nothing good.
pub(super) fn begun(login: &Login, head: LoginHead<'_>, watch: &mut Watch<'_>) -> Passed {
    let means = LoginMeans { book: watch.book, now_secs: watch.wall_secs };
    match login.begin(head, means) {
        Ok(onwards) => {
            watch.found.refuse(Some(AuthMethod::Login), Denied::LogIn);
            let reads = matches!(*head.method, Method::GET | Method::HEAD);
            Passed::Answered(Box::new(sent(onwards, if reads { StatusCode::FOUND } else { StatusCode::SEE_OTHER })))
        }
        Err(fault) => {
            let passed = refused(fault, watch);
            match passed {
                Passed::Answered(mut reply) if fault == LoginFault::InVain => {
                    reply.headers.extend(login.unbound(head).into_iter().map(|cookie| (SET_COOKIE, cookie)));
                    Passed::Answered(reply)
                }
                other => other,
            }
        }
    }
}

/// What the browser is to keep, with whatever answer comes. No cache between us gives one's session to others: of what an answer says of caches
/// the narrowest counts (RFC 9111, section 4.2.1; a cookie alone stops no cache, section 7.3).
pub(super) fn kept(cookies: Vec<HeaderValue>) -> Vec<HeaderOp> {
    let private = (!cookies.is_empty()).then(|| HeaderOp::Add(CACHE_CONTROL, HeaderValue::from_static("private")));
    cookies.into_iter().map(|cookie| HeaderOp::Add(SET_COOKIE, cookie)).chain(private).collect()
}

fn sent(Onwards { location, cookies }: Onwards, status: StatusCode) -> LocalReply {
    let mut headers = vec![(LOCATION, location), (CACHE_CONTROL, HeaderValue::from_static("no-store"))];
    headers.extend(cookies.into_iter().map(|cookie| (SET_COOKIE, cookie)));
    LocalReply { status, reason: None, headers, body: Bytes::new(), grpc_status: None }
}

/// Sends a browser on from a page of this site: a redirect would still be the provider's doing, and bring no strict cookie along.
fn walked(Onwards { location, cookies }: Onwards) -> LocalReply {
    let to = escaped(location.to_str().unwrap_or("/"));
    let rest = format!("<meta http-equiv=\"refresh\" content=\"0;url={to}\"><p><a href=\"{to}\">Go on</a></p>");
    let mut reply = page(StatusCode::OK, None, "Logged in", "", &rest);
    reply.headers.extend(cookies.into_iter().map(|cookie| (SET_COOKIE, cookie)));
    reply
}

fn refused(fault: LoginFault, watch: &mut Watch<'_>) -> Passed {
    let (denied, status, text) = match fault {
        LoginFault::Strange => (
            Denied::LoginState,
            StatusCode::BAD_REQUEST,
            "This login did not begin here with this browser, took longer than ten minutes, or has ended already. If it comes again, the browser \
             does not keep this site's cookies.",
        ),
        LoginFault::Issuer => (Denied::LoginState, StatusCode::BAD_REQUEST, "The answer does not come from the provider that was asked."),
        LoginFault::Refused => (Denied::LoginRefused, StatusCode::FORBIDDEN, "The provider refused the login."),
        LoginFault::Token(_) => (Denied::LoginToken, StatusCode::FORBIDDEN, "What the provider says of you cannot be believed."),
        LoginFault::Away => {
            (Denied::Away, StatusCode::SERVICE_UNAVAILABLE, "The provider of the login does not answer. Try again in a moment.")
        }
        LoginFault::StoreAway => {
            (Denied::Away, StatusCode::SERVICE_UNAVAILABLE, "Logins cannot be kept at the moment. Try again in a while.")
        }
        LoginFault::TooLarge => (
            Denied::LoginTooLarge,
            StatusCode::INTERNAL_SERVER_ERROR,
            "What the provider says of you is more than cookies can hold. Whoever runs this site can ask the provider for fewer claims, groups or \
             scopes, or keep sessions elsewhere (store: Redis).",
        ),
        LoginFault::InVain => (
            Denied::LoginLoop,
            StatusCode::BAD_REQUEST,
            "You were logged in three times in a row, and the browser kept no session. Let it keep this site's cookies, come by https, and try again.",
        ),
    };
    watch.found.refuse(Some(AuthMethod::Login), denied);
    let rest = "<p><a href=\"/\">Begin again</a></p>";
    let mut reply = page(status, Some(denied.reason()), "You are not logged in", text, rest);
    if status == StatusCode::SERVICE_UNAVAILABLE {
        reply.headers.push((RETRY_AFTER, HeaderValue::from_static("1")));
    }
    Passed::Answered(Box::new(reply))
}

fn page(status: StatusCode, reason: Option<Reason>, title: &str, text: &str, rest: &str) -> LocalReply {
    let body = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}</title><h1>{title}</h1><p>{text}</p>{rest}</html>\n"
    );
    let headers = vec![
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        (CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    ];
    LocalReply { status, reason, headers, body: body.into(), grpc_status: None }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}
