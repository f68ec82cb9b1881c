//! Logins: what becomes of a browser from its first request to its last, and of what is no browser of ours.

use bytes::Bytes;
use http::header::{COOKIE, HOST, LOCATION, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use proto::mesh::{self, ClaimHeader, EdgeLogin, edge_login};
use serde_json::json;

use super::{Edge, NOW, Outcome};
use crate::authenticate::tests as tokens;
use crate::callout::{CalloutAnswer, CalloutAway, CalloutTold};
use crate::consumers::AuthMethod;
use crate::filter::guard::Denied;
use crate::login::{Endpoints, SESSION_COOKIES_MAX};

pub(super) const ISSUER: &str = "https://id.example";

pub(super) fn secs(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

pub(super) fn login() -> EdgeLogin {
    EdgeLogin {
        policy: "shop/people".into(),
        issuer: ISSUER.into(),
        client_id: "edge".into(),
        secret: "shop/oidc/secret".into(),
        scopes: vec!["openid".into(), "email".into()],
        redirect_path: "/oauth2/callback".into(),
        logout_path: "/oauth2/logout".into(),
        post_logout_redirect: "/bye".into(),
        idle: secs(3_600),
        max: secs(12 * 3_600),
        refresh_at_percent: 80,
        keys: "login-keys".into(),
        access_token_header: "authorization".into(),
        claims_to_headers: vec![ClaimHeader { claim: "email".into(), header: "x-email".into() }],
        consumers: Some(mesh::ConsumerChoice { namespaces: vec!["shop".into()], ..mesh::ConsumerChoice::default() }),
        ..EdgeLogin::default()
    }
}

/// A site whose people log in: what guards its pages, and its login's own paths.
pub(super) struct Site {
    pub(super) pages: Edge,
    pub(super) paths: Edge,
    /// Name and value.
    pub(super) jar: Vec<(String, String)>,
}

impl Site {
    pub(super) fn of(login: EdgeLogin) -> Self {
        let edge = |policy| {
            let shown = |name: &str, value: &str| mesh::ShownSecret { name: name.into(), value: value.as_bytes().to_vec().into() };
            let token = mesh::TokenCredential { issuer: ISSUER.into(), claims: [("sub".to_owned(), "ada".to_owned())].into() };
            let credential =
                mesh::Credential { name: "t".into(), kind: Some(mesh::credential::Kind::Jwt(token)), ..mesh::Credential::default() };
            let ada =
                mesh::Consumer { namespace: "shop".into(), name: "ada".into(), credentials: vec![credential], ..mesh::Consumer::default() };
            let secrets = vec![shown("login-keys", &"k".repeat(64)), shown("shop/oidc/secret", "s3cret")];
            let book = mesh::Consumers { consumers: vec![ada], secrets, ..mesh::Consumers::default() };
            let edge = Edge::of(policy, &book);
            edge.providers[0].publish(endpoints(), tokens::rule().jwks.as_bytes()).unwrap();
            edge
        };
        let paths = mesh::EdgePolicy { login_paths: vec![login.clone()], ..mesh::EdgePolicy::default() };
        let pages = mesh::EdgePolicy { login: Some(login), strip_logins: true, ..mesh::EdgePolicy::default() };
        Self { pages: edge(pages), paths: edge(paths), jar: Vec::new() }
    }

    /// What a browser asks, which keeps the cookies of the answer.
    pub(super) fn browse(&mut self, target: &str) -> Outcome {
        self.ask(Method::GET, target, &[("sec-fetch-mode", "navigate")])
    }

    pub(super) fn ask(&mut self, method: Method, target: &str, headers: &[(&'static str, &str)]) -> Outcome {
        let mut request = Request::builder().method(method).uri(target).header(HOST, "shop.example:8443");
        request = request.header("x-forwarded-proto", "https");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !self.jar.is_empty() {
            let pairs: Vec<String> = self.jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
            request = request.header(COOKIE, pairs.join("; "));
        }
        let own = target.starts_with("/oauth2/");
        let edge = if own { &mut self.paths } else { &mut self.pages };
        let outcome = edge.ask(request.body(()).unwrap());
        self.keep(&outcome.headers);
        outcome
    }

    fn keep(&mut self, headers: &HeaderMap) {
        for cookie in headers.get_all(SET_COOKIE) {
            let text = cookie.to_str().unwrap();
            assert!(text.contains("; Secure; HttpOnly; SameSite="), "{text}");
            let (name, rest) = text.split_once('=').unwrap();
            let value = rest.split(';').next().unwrap();
            self.jar.retain(|(known, _)| known != name);
            if !text.contains("Max-Age=0") {
                self.jar.push((name.to_owned(), value.to_owned()));
            }
        }
    }

    pub(super) fn at(&mut self, now: u64) {
        (self.pages.now, self.paths.now) = (now, now);
    }

    pub(super) fn session(&self) -> usize {
        self.jar.iter().filter(|(name, _)| !name.ends_with("-b")).count()
    }

    /// Logs in from the start, as the provider says these claims.
    pub(super) fn log_in(&mut self, target: &str, answer: impl FnOnce(&str) -> CalloutTold) -> Outcome {
        let sent = self.browse(target);
        assert_eq!(sent.status, Some(302), "{:?}", sent.denied);
        let asked = location(&sent);
        self.paths.answers.push(answer(&parameter(&asked, "nonce")));
        let state = parameter(&asked, "state");
        self.browse(&format!("/oauth2/callback?code=abc&state={state}&iss=https%3A%2F%2Fid.example"))
    }
}

fn endpoints() -> Endpoints {
    let document = json!({
        "issuer": ISSUER, "authorization_endpoint": "https://id.example/auth?x=1", "token_endpoint": "https://id.example/token",
        "jwks_uri": "https://id.example/keys", "end_session_endpoint": "https://id.example/end",
        "authorization_response_iss_parameter_supported": true,
    });
    Endpoints::discovered(document.to_string().as_bytes(), ISSUER, &crate::login::issuer_address(ISSUER).unwrap()).unwrap()
}

pub(super) fn id_token(nonce: &str, changes: serde_json::Value) -> String {
    let mut claims =
        json!({"iss": ISSUER, "aud": "edge", "sub": "ada", "nonce": nonce, "exp": NOW + 600, "iat": NOW, "email": "ada@shop.example"});
    claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
    tokens::token(claims)
}

pub(super) fn answer(status: u16, body: &serde_json::Value) -> CalloutTold {
    let status = StatusCode::from_u16(status).unwrap();
    CalloutTold::Answer(CalloutAnswer { status, body: Bytes::from(body.to_string()), ..CalloutAnswer::default() })
}

pub(super) fn good(nonce: &str) -> CalloutTold {
    answer(
        200,
        &json!({"access_token": "access-1", "id_token": id_token(nonce, json!({})), "refresh_token": "refresh-1", "expires_in": 100}),
    )
}

pub(super) fn location(outcome: &Outcome) -> String {
    outcome.headers[LOCATION].to_str().unwrap().to_owned()
}

pub(super) fn parameter(url: &str, name: &str) -> String {
    let (_, query) = url.split_once('?').unwrap();
    let pairs = query.split('&').map(|pair| pair.split_once('=').unwrap());
    pairs.filter(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).next().unwrap_or_default()
}

#[test]
fn somebody_logs_in_and_out() {
    // Aim: the whole way of one browser: to the provider with all that protects the login, back to where it wanted to go, as who it is; what the
    // backend sees and does not see; and out again, at the provider too.
    let mut site = Site::of(login());
    let sent = site.browse("/cart?a=b");
    assert_eq!((sent.status, sent.denied), (Some(302), Some(Denied::LogIn)));
    let asked = location(&sent);
    assert!(asked.starts_with("https://id.example/auth?x=1&response_type=code&client_id=edge&"), "{asked}");
    for (name, value) in [
        ("redirect_uri", "https%3A%2F%2Fshop.example%3A8443%2Foauth2%2Fcallback"),
        ("scope", "openid%20email"),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(parameter(&asked, name), value);
    }
    assert_eq!(parameter(&asked, "code_challenge").len(), 43);
    assert_eq!(site.jar.len(), 1, "one cookie binds the browser");

    let back = site.log_in("/cart?a=b", good);
    assert_eq!((back.status, location(&back).as_str(), back.asked), (Some(303), "/cart?a=b", 1));
    let form = &site.paths.forms[0];
    assert!(form.contains("grant_type=authorization_code&code=abc&redirect_uri=https%3A%2F%2Fshop.example%3A8443%2F"), "{form}");
    assert!(form.contains("code_verifier=") && !form.contains("s3cret"), "{form}");

    let seen = site.ask(Method::GET, "/cart", &[("x-email", "root@shop.example"), ("accept", "application/json")]);
    assert_eq!((seen.status, seen.asked), (None, 0));
    let who = seen.found.identified().unwrap();
    assert_eq!((who.method, &*who.consumer.as_ref().unwrap().path), (AuthMethod::Login, "shop/ada"));
    assert_eq!(who.until_secs, Some(NOW + 12 * 3_600));
    let headers = &seen.request.headers;
    assert_eq!(headers["x-meshwright-consumer"], "shop/ada;groups=;method=Login");
    assert!(headers["x-email"] == "ada@shop.example" && headers["authorization"] == "Bearer access-1", "{headers:?}");
    assert_eq!(headers.get_all("x-email").iter().count(), 1);
    assert!(!headers.contains_key(COOKIE), "{headers:?}");

    let foreign = site.ask(Method::GET, "/oauth2/logout", &[("sec-fetch-site", "cross-site")]);
    assert!(foreign.status == Some(200) && foreign.body.contains("<form method=\"post\">") && site.session() > 0);
    let left = site.ask(Method::POST, "/oauth2/logout", &[("sec-fetch-site", "same-origin")]);
    let to = location(&left);
    assert!(left.status == Some(303) && to.starts_with("https://id.example/end?client_id=edge&id_token_hint=ey"), "{to}");
    assert!(to.ends_with("&post_logout_redirect_uri=https%3A%2F%2Fshop.example%3A8443%2Fbye"), "{to}");
    assert_eq!(site.session(), 0);
    assert_eq!(site.browse("/cart").status, Some(302));
    let nobody = site.browse("/oauth2/logout");
    assert_eq!((nobody.status, location(&nobody).as_str()), (Some(303), "/bye"));
}

#[test]
fn who_is_no_browser_is_told_so() {
    // Aim: only navigations are redirected; what cannot follow gets 401 with a challenge, and no cookie; `Never` and `Optional` send nobody away.
    let mut site = Site::of(login());
    for (method, headers) in [
        (Method::GET, &[("sec-fetch-mode", "cors")][..]),
        (Method::POST, &[("accept", "text/html")]),
        (Method::GET, &[("accept", "application/json")]),
    ] {
        let told = site.ask(method, "/", headers);
        assert_eq!((told.status, told.denied, told.challenges.as_slice()), (Some(401), Some(Denied::Nothing), &["Login".to_owned()][..]));
    }
    assert!(site.jar.is_empty());
    let mut never = Site::of(EdgeLogin { when: edge_login::When::Never.into(), ..login() });
    assert_eq!(never.browse("/").status, Some(401));
    let mut always = Site::of(EdgeLogin { when: edge_login::When::Always.into(), ..login() });
    assert_eq!(always.ask(Method::POST, "/a", &[]).status, Some(303));
    let mut optional = Site::of(EdgeLogin { optional: true, ..login() });
    let on = optional.ask(Method::GET, "/", &[("x-email", "root")]);
    assert!(on.status.is_none() && !on.request.headers.contains_key("x-email"));
}

#[test]
fn nobody_else_comes_back() {
    // Aim: what an attacker, another browser or a slow user brings back ends on a page that says so, and leaves nobody logged in.
    let begin = |site: &mut Site| parameter(&location(&site.browse("/a")), "state");
    let back = |state: &str, rest: &str| format!("/oauth2/callback?state={state}{rest}&iss=https%3A%2F%2Fid.example");
    let ends = |outcome: &Outcome, status: u16, denied| {
        assert_eq!((outcome.status, outcome.denied, outcome.asked), (Some(status), Some(denied), 0), "{}", outcome.body);
        assert!(outcome.body.contains("You are not logged in") && !outcome.headers.contains_key(LOCATION));
    };
    let mut site = Site::of(login());
    let state = begin(&mut site);
    let jar = site.jar.clone();
    ends(&site.browse("/oauth2/callback"), 400, Denied::LoginState);
    ends(&site.browse(&back("AAAA", "&code=a")), 400, Denied::LoginState);
    ends(&site.browse(&back(&state, "")), 400, Denied::LoginState);
    ends(&site.ask(Method::POST, &back(&state, "&code=a"), &[]), 400, Denied::LoginState);
    let no_issuer = format!("/oauth2/callback?state={state}&code=a");
    ends(&site.browse(&no_issuer), 400, Denied::LoginState);
    ends(&site.browse(&format!("{no_issuer}&iss=https%3A%2F%2Fevil.example")), 400, Denied::LoginState);
    ends(&site.browse(&back(&state, "&error=access_denied&error_description=%3Cscript%3E")), 403, Denied::LoginRefused);
    ends(&site.browse(&back(&state, "&error=temporarily_unavailable")), 503, Denied::Away);
    // Another browser, and one that keeps no cookies.
    site.jar.clear();
    ends(&site.browse(&back(&state, "&code=a")), 400, Denied::LoginState);
    begin(&mut site);
    ends(&site.browse(&back(&state, "&code=a")), 400, Denied::LoginState);
    // The same one, too late.
    site.jar = jar;
    site.at(NOW + 600);
    ends(&site.browse(&back(&state, "&code=a")), 400, Denied::LoginState);
    site.at(NOW + 599);
    site.paths.answers.push(CalloutTold::Away(CalloutAway::Silent));
    assert_eq!(site.browse(&back(&state, "&code=a")).status, Some(503));
    assert_eq!(site.session(), 0);
}

#[test]
fn a_provider_is_believed_as_far_as_it_proves() {
    // Aim: provider × answer: away, refusing, garbled, and ID tokens that are another's: nobody is logged in, and the page says why.
    for (told, status, denied) in [
        (CalloutTold::Away(CalloutAway::Unreached), 503, Denied::Away),
        (CalloutTold::Away(CalloutAway::Silent), 503, Denied::Away),
        (CalloutTold::Away(CalloutAway::Full), 503, Denied::Away),
        (answer(400, &json!({"error": "invalid_grant"})), 400, Denied::LoginState),
        (answer(401, &json!({"error": "invalid_client"})), 503, Denied::Away),
        (answer(200, &json!("garbage")), 503, Denied::Away),
        (answer(200, &json!({"access_token": "a"})), 503, Denied::Away),
        (answer(200, &json!({"access_token": "a", "id_token": "a.b.c"})), 403, Denied::LoginToken),
    ] {
        let mut site = Site::of(login());
        let back = site.log_in("/", |_| told);
        assert_eq!((back.status, back.denied, site.session()), (Some(status), Some(denied), 0));
    }
    for changes in [json!({"nonce": "other"}), json!({"aud": "other"}), json!({"iss": "https://other"}), json!({"exp": NOW - 60})] {
        let mut site = Site::of(login());
        let token = |nonce: &str| answer(200, &json!({"access_token": "a", "id_token": id_token(nonce, changes.clone())}));
        let back = site.log_in("/", token);
        assert_eq!((back.status, back.denied, site.session()), (Some(403), Some(Denied::LoginToken), 0), "{changes}");
    }
    let mut away = Site::of(login());
    away.pages.providers[0].failed();
    let told = away.browse("/");
    assert_eq!((told.status, told.denied, told.headers["retry-after"].to_str().unwrap()), (Some(503), Some(Denied::Away), "1"));
}

#[test]
fn three_logins_in_vain_are_the_last() {
    // Aim: a browser that drops its session is sent to the provider three times, and then told the cause; then it may try again. A session that
    // is seen starts the count anew.
    let mut site = Site::of(login());
    for _ in 0..3 {
        assert_eq!(site.log_in("/", good).status, Some(303));
        site.jar.retain(|(name, _)| name.ends_with("-b"));
    }
    let told = site.browse("/");
    assert_eq!((told.status, told.denied), (Some(400), Some(Denied::LoginLoop)));
    assert!(told.body.contains("kept no session"), "{}", told.body);
    assert_eq!(site.log_in("/", good).status, Some(303));
    assert!(site.jar.iter().any(|(name, value)| name.ends_with("-b") && value.ends_with(".1")));
    assert_eq!(site.browse("/").status, None);
    assert!(site.jar.iter().any(|(name, value)| name.ends_with("-b") && value.ends_with(".0")));
}

#[test]
fn many_tabs_log_in_at_once() {
    // Aim: any number of logins under way in one browser, ended in any order, with one cookie between them.
    let mut site = Site::of(login());
    let begun: Vec<String> = (0..20).map(|tab| location(&site.browse(&format!("/tab/{tab}")))).collect();
    assert_eq!(site.jar.len(), 1);
    for (tab, asked) in begun.iter().enumerate().rev() {
        site.paths.answers.push(good(&parameter(asked, "nonce")));
        let back = site.browse(&format!("/oauth2/callback?code=a&state={}&iss=https%3A%2F%2Fid.example", parameter(asked, "state")));
        assert_eq!((back.status, location(&back)), (Some(303), format!("/tab/{tab}")));
    }
}

#[test]
fn a_session_is_refreshed_beside_the_road() {
    // Aim: when a part of the token's time is over one request starts a refresh, and none waits for it; the next one has the new tokens and cookies;
    // a refusal ends the session, silence does not.
    let mut site = Site::of(login());
    site.log_in("/", good);
    site.at(NOW + 79);
    site.browse("/");
    assert!(site.pages.refreshes.is_empty());
    site.at(NOW + 80);
    for _ in 0..3 {
        let seen = site.browse("/");
        assert_eq!(
            (seen.status, seen.asked, &seen.request.headers["authorization"]),
            (None, 0, &HeaderValue::from_static("Bearer access-1"))
        );
    }
    assert_eq!(site.pages.refreshes.len(), 1, "one for all");
    let ask = site.pages.refreshes.pop().unwrap();
    let form = String::from_utf8(ask.request().into_body().to_vec()).unwrap();
    assert_eq!(form, "grant_type=refresh_token&refresh_token=refresh-1");
    let old = site.jar.clone();
    ask.settle(&answer(200, &json!({"access_token": "access-2", "refresh_token": "refresh-2", "expires_in": 100})), NOW + 81);
    let seen = site.browse("/");
    assert_eq!(seen.request.headers["authorization"], "Bearer access-2");
    assert_ne!(site.jar, old);
    // Whoever still has the old cookies has the new tokens, too.
    let newer = std::mem::replace(&mut site.jar, old);
    assert_eq!(site.browse("/").request.headers["authorization"], "Bearer access-2");
    site.jar = newer;

    site.at(NOW + 200);
    site.browse("/");
    site.pages.refreshes.pop().unwrap().settle(&CalloutTold::Away(CalloutAway::Unreached), NOW + 201);
    site.at(NOW + 205);
    assert_eq!(site.browse("/").status, None, "who is logged in stays so");
    assert!(site.pages.refreshes.is_empty(), "not again at once");
    site.at(NOW + 211);
    site.browse("/");
    let ask = site.pages.refreshes.pop().unwrap();
    assert!(String::from_utf8(ask.request().into_body().to_vec()).unwrap().ends_with("refresh-2"));
    ask.settle(&answer(400, &json!({"error": "invalid_grant"})), NOW + 212);
    let told = site.ask(Method::GET, "/", &[("sec-fetch-mode", "cors")]);
    assert_eq!((told.status, told.denied), (Some(401), Some(Denied::Nothing)));
    assert_eq!(site.browse("/").status, Some(302));
}

#[test]
fn a_session_ends_by_itself() {
    // Aim: unused for so long, or of that age: the browser logs in again. What is used goes on, and its cookies with it.
    let mut site = Site::of(EdgeLogin { refresh_at_percent: 100, ..login() });
    site.log_in("/", |nonce| answer(200, &json!({"access_token": "a", "id_token": id_token(nonce, json!({})), "expires_in": 100})));
    site.at(NOW + 3_599);
    assert_eq!(site.browse("/").status, None);
    site.at(NOW + 2 * 3_599);
    assert_eq!(site.browse("/").status, None, "its cookies were renewed");
    site.at(NOW + 3 * 3_599 + 1);
    assert_eq!(site.browse("/").status, Some(302));
    let mut long = Site::of(EdgeLogin { idle: secs(12 * 3_600), ..login() });
    long.log_in("/", good);
    long.at(NOW + 12 * 3_600 - 1);
    assert_eq!(long.browse("/").status, None);
    long.at(NOW + 12 * 3_600);
    assert_eq!(long.browse("/").status, Some(302));
}

#[test]
fn a_session_is_as_large_as_cookies_may_be() {
    // Aim: much fits into several cookies; more ends with a page that says so. Random text does not compress.
    let noise = |letters: usize| {
        use base64::Engine as _;
        let digests = (0..letters / 40).flat_map(|place| crate::consumers::digest(&place.to_le_bytes()));
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(digests.collect::<Vec<u8>>())
    };
    let token = |groups: usize, access: usize| {
        let (groups, access) = (noise(groups), noise(access));
        move |nonce: &str| answer(200, &json!({"access_token": access, "id_token": id_token(nonce, json!({"groups": groups}))}))
    };
    let mut site = Site::of(login());
    assert_eq!(site.log_in("/", token(4_000, 1_000)).status, Some(303));
    assert!((2..=SESSION_COOKIES_MAX).contains(&site.session()), "{}", site.session());
    assert_eq!(site.browse("/").status, None);
    let mut site = Site::of(login());
    let told = site.log_in("/", token(6_000, 12_000));
    assert_eq!((told.status, told.denied), (Some(500), Some(Denied::LoginTooLarge)), "{}", told.body);
    assert!(told.body.contains("store: Redis"));
}

#[test]
fn a_strict_session_begins_on_a_page_of_the_site() {
    // Aim: after a login a strict cookie is not yet sent along with what the provider has caused; a page goes on instead, and where it goes is text.
    let mut site = Site::of(EdgeLogin { same_site: edge_login::SameSite::Strict.into(), ..login() });
    let back = site.log_in("/a?b='c'&d=e", good);
    assert_eq!(back.status, Some(200));
    assert!(back.body.contains("url=/a?b=&#39;c&#39;&amp;d=e\""), "{}", back.body);
    assert!(site.session() > 0);
}

#[test]
fn other_logins_sessions_mean_nothing() {
    // Aim: issuer, client and domain are whose a session is: the same cookie value under another's name opens nothing; a stranger's keys neither.
    let mut site = Site::of(login());
    site.log_in("/", good);
    let mut other = Site::of(EdgeLogin { client_id: "other".into(), ..login() });
    let own = location(&other.browse("/"));
    assert!(own.contains("client_id=other"));
    let tag = |jar: &[(String, String)]| jar.iter().find_map(|(name, _)| name.strip_suffix("-b").map(str::to_owned)).unwrap();
    let (ours, theirs) = (tag(&site.jar), tag(&other.jar));
    assert_ne!(ours, theirs);
    other.jar = site.jar.iter().map(|(name, value)| (name.replace(&ours, &theirs), value.clone())).collect();
    assert_eq!(other.browse("/").status, Some(302));
}

#[test]
fn logins_that_share_a_path_are_told_apart() {
    // Aim: where two logins' browsers come back to one path, each login ends its own, and each has its own session; more than may share one are refused.
    let other = EdgeLogin { client_id: "other".into(), ..login() };
    let mut site = Site::of(other.clone());
    let both = mesh::EdgePolicy { login_paths: vec![login(), other.clone()], ..mesh::EdgePolicy::default() };
    let book = mesh::Consumers {
        secrets: vec![
            mesh::ShownSecret { name: "login-keys".into(), value: vec![b'k'; 64].into() },
            mesh::ShownSecret { name: "shop/oidc/secret".into(), value: b"s3cret".to_vec().into() },
        ],
        ..mesh::Consumers::default()
    };
    site.paths = Edge::of(both, &book);
    site.paths.providers[0].publish(endpoints(), tokens::rule().jwks.as_bytes()).unwrap();
    let token = |nonce: &str| answer(200, &json!({"access_token": "a", "id_token": id_token(nonce, json!({"aud": "other"}))}));
    assert_eq!(site.log_in("/", token).status, Some(303));
    assert_eq!(site.browse("/").status, None);
    let many = mesh::EdgePolicy { login_paths: vec![login(); 17], ..mesh::EdgePolicy::default() };
    let policy = mesh::RoutePolicy { edge: Some(many), ..mesh::RoutePolicy::default() };
    let mut route = crate::fixture::rule("r", crate::fixture::prefix("/"), &[("bad_backend", 1)]);
    route.typed_per_filter_config.insert(proto::names::POLICY.to_owned(), proto::xds::pack(&policy));
    let table = crate::fixture::table("t", vec![crate::fixture::host(&["*"], vec![route])]);
    let refused = crate::fixture::put(&mut crate::model::build::Parts::default(), "t", &table).unwrap_err();
    assert!(refused.to_string().contains("more than 16"), "{refused}");
}

#[test]
fn who_is_asked_whether_to_log_out_stays_fresh() {
    // Aim: looking at a session where it may end begins no refresh that nobody carries out: the next request begins it.
    let mut site = Site::of(login());
    site.log_in("/", good);
    site.at(NOW + 80);
    assert_eq!(site.ask(Method::GET, "/oauth2/logout", &[("sec-fetch-site", "cross-site")]).status, Some(200));
    site.browse("/");
    assert_eq!(site.pages.refreshes.len(), 1);
}

#[test]
fn no_cache_gives_a_session_to_others() {
    // Aim: an answer with a session's cookies is its browser's alone, whatever the backend says of caches; one without is as it was.
    let mut site = Site::of(login());
    site.log_in("/", good);
    assert_eq!(site.browse("/a.css").status, None);
    let plain = site.browse("/a.css");
    assert!(!plain.headers.contains_key(SET_COOKIE) && !plain.headers.contains_key("cache-control"), "{:?}", plain.headers);
    site.at(NOW + 400);
    let renewed = site.browse("/a.css");
    assert!(renewed.headers.contains_key(SET_COOKIE) && renewed.headers["cache-control"] == "private", "{:?}", renewed.headers);
}

#[test]
fn a_session_without_a_token_passes_nobodys_on() {
    // Aim: a session from before the object passed tokens on has none: the caller's own header is no stand-in for it.
    let mut site = Site::of(EdgeLogin { access_token_header: String::new(), ..login() });
    site.log_in("/", good);
    let later = Site::of(login());
    (site.pages, site.paths) = (later.pages, later.paths);
    let seen = site.ask(Method::GET, "/", &[("authorization", "Bearer forged")]);
    assert!(seen.status.is_none() && !seen.request.headers.contains_key("authorization"), "{:?}", seen.request.headers);
}

#[test]
fn tokens_of_no_time_are_not_refreshed_all_the_time() {
    // Aim: a provider whose tokens live for no time, by its own word, is asked once per ten seconds and session.
    let mut site = Site::of(login());
    let brief = |nonce: &str| {
        answer(200, &json!({"access_token": "a", "id_token": id_token(nonce, json!({})), "refresh_token": "r", "expires_in": 0}))
    };
    site.log_in("/", brief);
    site.at(NOW + 9);
    site.browse("/");
    assert!(site.pages.refreshes.is_empty());
    site.at(NOW + 10);
    site.browse("/");
    assert_eq!(site.pages.refreshes.len(), 1);
}

#[test]
fn a_provider_that_has_too_much_to_do_is_let_be() {
    // Aim: of 429 with a time a session's next refresh waits for that, within bounds; the session goes on meanwhile.
    for (said, pause) in [("60", 60), ("5", 10), ("86400", 300), ("soon", 10)] {
        let mut site = Site::of(login());
        site.log_in("/", good);
        site.at(NOW + 80);
        site.browse("/");
        let mut told = CalloutAnswer { status: StatusCode::TOO_MANY_REQUESTS, body: Bytes::from_static(b"{}"), ..CalloutAnswer::default() };
        told.headers.insert("retry-after", HeaderValue::from_static(said));
        site.pages.refreshes.pop().unwrap().settle(&CalloutTold::Answer(told), NOW + 81);
        site.at(NOW + 80 + pause);
        assert_eq!((site.browse("/").status, site.pages.refreshes.len()), (None, 0), "{said}");
        site.at(NOW + 81 + pause);
        site.browse("/");
        assert_eq!(site.pages.refreshes.len(), 1, "{said}");
    }
}
