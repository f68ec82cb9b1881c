//! OidcLogin: people log in with their browsers at an OpenID provider.

use std::time::Duration;

use engine::authenticate::{KeysUri, claim_header};
use engine::login::{SESSION_MAX, issuer_address, trusted};

use super::api_key::mode;
use super::consumer::entry;
use super::counted_at::RedisServer;
use super::value::name;
use super::{Cursor, EdgeAttachment};
use crate::world::content::ContentRef;
use crate::world::door::{Fields, is_subdomain};
use crate::world::traffic::header;

/// Most scopes, and headers that are filled.
const LISTED_MAX: usize = 64;

/// How people log in. Fields that are absent are said by the next wider object, else by the defaults.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OidcLogin {
    /// Where it holds.
    pub attachment: EdgeAttachment,
    /// Whether a request without a session is let through.
    pub optional: Option<bool>,
    /// The provider, as its tokens name it.
    pub issuer: Option<String>,
    /// Where it is asked; it says so itself where that is absent.
    pub endpoints: Option<LoginPlaces>,
    /// Who asks.
    pub client_id: Option<String>,
    /// How the client proves itself; absent: not at all.
    pub proof: Option<LoginProof>,
    /// What it asks to be told.
    pub scopes: Option<Vec<String>>,
    /// Where browsers come back to.
    pub redirect_path: Option<String>,
    /// Where sessions are ended.
    pub logout_path: Option<String>,
    /// Where browsers go then: a path, or an address.
    pub after_logout: Option<String>,
    /// Where the provider itself ends sessions.
    pub back_channel_path: Option<String>,
    /// Whose requests are sent to the provider.
    pub when: Option<LoginWhen>,
    /// Sessions.
    pub session: LoginSessions,
    /// The header that carries the access token; `Some(None)`: none does.
    pub access_token: Option<Option<String>>,
    /// Path of a claim, and the header that it fills.
    pub fills: Option<Vec<(String, String)>>,
}

/// Where a provider is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginPlaces {
    /// Where browsers log in.
    pub authorization: KeysUri,
    /// Where tokens come from.
    pub token: KeysUri,
    /// Where keys are.
    pub jwks: KeysUri,
    /// Where browsers log out.
    pub end_session: Option<KeysUri>,
}

/// How a client proves itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LoginProof {
    /// By its secret: in the form, else in the header.
    Secret(ContentRef, bool),
    /// By a signature with its key, which has a name.
    PrivateKey(ContentRef, String),
}

/// Whose requests are sent to the provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as the field spells them")]
pub enum LoginWhen {
    Navigation,
    Always,
    Never,
}

/// From which sites' requests a session counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as the field spells them")]
pub enum SameSite {
    Lax,
    Strict,
    None,
}

/// Who keeps sessions.
#[derive(Clone, Debug, PartialEq)]
pub enum LoginStore {
    /// Browsers, whole.
    Cookie,
    /// A server; browsers have a ticket.
    Redis(Box<RedisServer>),
}

/// How sessions are kept, and how long.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoginSessions {
    /// By whom.
    pub store: Option<LoginStore>,
    /// Whose cookies they are; absent: the host's alone.
    pub domain: Option<String>,
    /// From which sites they count.
    pub same_site: Option<SameSite>,
    /// Without a request.
    pub idle: Option<Duration>,
    /// At most.
    pub max: Option<Duration>,
    /// A refresh begins once so much of the access token's time is over.
    pub refresh_at_percent: Option<u32>,
    /// What they are sealed with.
    pub keys: Option<ContentRef>,
}

impl OidcLogin {
    pub(in crate::world) fn read(mut fields: Fields<'_>) -> Option<Self> {
        let mut read = Self { attachment: EdgeAttachment::read(&mut fields), optional: mode(&mut fields), ..Self::default() };
        read.issuer = fields.get("issuer").and_then(|at| {
            let text = at.text()?;
            if let Err(why) = issuer_address(&text) {
                at.error(format!("it {why}"), "write it as https://HOST[/PATH], just as the provider does; http is for this machine");
            }
            Some(text)
        });
        let issuer = read.issuer.as_deref().and_then(|issuer| issuer_address(issuer).ok());
        read.endpoints = fields.get("endpoints").and_then(|at| places(&at, issuer.as_ref()));
        read.client_id = fields.get("clientId").and_then(|at| name(&at));
        read.proof = proof(&mut fields);
        read.scopes = fields.get("scopes").map(|at| scopes(&at));
        read.redirect_path = fields.get("redirectPath").and_then(|at| path(&at));
        read.logout_path = fields.get("logoutPath").and_then(|at| path(&at));
        if let (Some(one), Some(other)) = (&read.redirect_path, &read.logout_path)
            && one == other
        {
            fields.at().error("redirectPath and logoutPath are the same", "give each a path of its own");
        }
        read.after_logout = fields.get("postLogoutRedirect").and_then(|at| after(&at));
        let back_channel = fields.get("backChannelLogoutPath");
        read.back_channel_path = back_channel.as_ref().and_then(path);
        let words = [("Navigation", LoginWhen::Navigation), ("Always", LoginWhen::Always), ("Never", LoginWhen::Never)];
        read.when = fields.get("when").and_then(|at| at.word(&words));
        read.session = fields.get("session").map(|at| LoginSessions::read(&at)).unwrap_or_default();
        if let Some(at) = &back_channel {
            if !matches!(read.session.store, Some(LoginStore::Redis(_))) && !at.refused() {
                at.error("a provider cannot end sessions that browsers keep", "write session.store: Redis beside it, or remove it");
            }
            if read.back_channel_path.is_some() && [&read.redirect_path, &read.logout_path].contains(&&read.back_channel_path) {
                at.error("another path of the login is the same", "give each a path of its own");
            }
        }
        if let Some(at) = fields.get("forward") {
            let mut forward = at.fields();
            read.access_token = forward.get("accessToken").and_then(|at| access_token(&at));
            read.fills = forward.get("claimsToHeaders").map(|at| at.list(LISTED_MAX).iter().filter_map(fill).collect());
            forward.done();
        }
        fields.done();
        Some(read)
    }

    /// Entries of Secrets that proxies are told.
    pub fn secrets(&self) -> impl Iterator<Item = &ContentRef> {
        let shown = self.proof.iter().map(|proof| match proof {
            LoginProof::Secret(at, _) | LoginProof::PrivateKey(at, _) => at,
        });
        let password = match &self.session.store {
            Some(LoginStore::Redis(server)) => server.password.as_ref(),
            Some(LoginStore::Cookie) | None => None,
        };
        shown.chain(&self.session.keys).chain(password)
    }
}

impl LoginSessions {
    fn read(at: &Cursor<'_>) -> Self {
        let mut fields = at.fields();
        let store = store(&mut fields, at);
        let domain = fields.get("cookieDomain").and_then(|at| {
            let text = at.text()?;
            if text.is_empty() {
                return None;
            }
            if !is_subdomain(&text) || !text.contains('.') {
                at.error(
                    format!("`{}` is no domain of several hosts", text.escape_debug()),
                    "write one such as shop.example, without a dot before it",
                );
            }
            Some(text)
        });
        let same_site = fields.get("sameSite");
        let same_site = same_site.and_then(|at| at.word(&[("Lax", SameSite::Lax), ("Strict", SameSite::Strict), ("None", SameSite::None)]));
        let (idle, max) = (fields.get("idle").and_then(|at| time(&at)), fields.get("max").and_then(|at| time(&at)));
        if let (Some(idle), Some(max)) = (idle, max)
            && idle > max
        {
            at.error("idle is longer than max, so it never ends a session", "write idle up to max");
        }
        let refresh_at_percent =
            fields.get("refreshAtPercent").and_then(|at| at.int(1..=100)).and_then(|percent| u32::try_from(percent).ok());
        let keys = fields.get("keySecretRef").and_then(|at| entry(&at));
        fields.done();
        Self { store, domain, same_site, idle, max, refresh_at_percent, keys }
    }
}

/// Who keeps them: the word, and where that is.
fn store(fields: &mut Fields<'_>, whole: &Cursor<'_>) -> Option<LoginStore> {
    let (word, redis) = (fields.get("store"), fields.get("redis"));
    let kept = word.as_ref().and_then(|at| at.word(&[("Cookie", false), ("Redis", true)]));
    match (kept, redis) {
        (Some(true), Some(at)) => RedisServer::read(at.fields()).map(|server| LoginStore::Redis(Box::new(server))),
        (Some(true), None) => {
            whole.error("it does not say where Redis is", "write it: redis: {addresses: ['HOST:6379']}");
            None
        }
        (_, Some(at)) => {
            at.error("it says where Redis is, and sessions are not kept there", "write store: Redis, or remove it");
            None
        }
        (Some(false), None) => Some(LoginStore::Cookie),
        (None, None) => None,
    }
}

fn time(at: &Cursor<'_>) -> Option<Duration> {
    let time = at.duration()?;
    if time < Duration::from_secs(60) || time > SESSION_MAX {
        at.error("no such life of a session", format!("use 1m to {}h", SESSION_MAX.as_secs() / 3_600));
        return None;
    }
    Some(time)
}

fn places(at: &Cursor<'_>, issuer: Option<&KeysUri>) -> Option<LoginPlaces> {
    let mut fields = at.fields();
    if issuer.is_none() {
        at.error("endpoints of no issuer", "say whose they are: issuer");
    }
    let read = |at: Cursor<'_>| {
        let text = at.text()?;
        let read = issuer.map(|issuer| trusted(&text, issuer))?;
        if let Err(why) = read {
            at.error(format!("it {why}"), "write it as https://HOST[:PORT]/PATH");
        }
        read.ok()
    };
    // What is plain there is judged by whose name it is, which changes.
    let asked = |at: Cursor<'_>| {
        let read = KeysUri::read(&at.text()?);
        if let Err(why) = read {
            at.error(format!("it {why}"), "write it as https://HOST[:PORT]/PATH, or as http://SERVICE.NAMESPACE/PATH");
        }
        read.ok()
    };
    let (authorization, token, jwks) =
        (fields.need("authorization").and_then(read), fields.need("token").and_then(asked), fields.need("jwks").and_then(asked));
    let end_session = fields.get("endSession").map(read);
    fields.done();
    let end_session = match end_session {
        Some(place) => Some(place?),
        None => None,
    };
    Some(LoginPlaces { authorization: authorization?, token: token?, jwks: jwks?, end_session })
}

fn proof(fields: &mut Fields<'_>) -> Option<LoginProof> {
    let (secret, key) = (fields.get("clientSecretRef"), fields.get("privateKeyJwt"));
    let auth = fields.get("clientAuth");
    let post = auth.as_ref().and_then(|at| at.word(&[("Basic", false), ("Post", true)]));
    if let (Some(at), None) = (&auth, &secret) {
        at.error("it says how a secret is shown, and there is none", "name it: clientSecretRef");
    }
    match (secret, key) {
        (Some(_), Some(at)) => {
            at.error("a client proves itself by its secret or by its key", "remove one of clientSecretRef and privateKeyJwt");
            None
        }
        (Some(at), None) => entry(&at).map(|secret| LoginProof::Secret(secret, post.unwrap_or_default())),
        (None, Some(at)) => {
            let mut key = at.fields();
            let secret = key.need("secretRef").and_then(|at| entry(&at));
            let id = key.get("keyId").map_or(Some(String::new()), |at| name(&at));
            key.done();
            Some(LoginProof::PrivateKey(secret?, id?))
        }
        (None, None) => None,
    }
}

fn scopes(at: &Cursor<'_>) -> Vec<String> {
    let listed: Vec<String> = at.list(LISTED_MAX).iter().filter_map(name).collect();
    // RFC 6749, section 3.3.
    let good = |scope: &String| scope.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte));
    if let Some(scope) = listed.iter().find(|scope| !good(scope)) {
        at.error(format!("`{}` is no scope", scope.escape_debug()), "use visible letters without quotes");
    }
    if at.is_list() && !listed.iter().any(|scope| scope == "openid") {
        at.error("without the scope openid a provider says nothing of who logs in", "add it");
    }
    listed
}

/// A path of the login's own: one that is matched as it stands.
fn path(at: &Cursor<'_>) -> Option<String> {
    let text = name(at)?;
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && !b"?#%\\".contains(&byte));
    if !plain || !text.starts_with('/') || text.contains("//") || text.contains("/.") || text.len() < 2 {
        at.error(format!("`{}` is no path of a login", text.escape_debug()), "write one such as /oauth2/callback");
        return None;
    }
    Some(text)
}

fn after(at: &Cursor<'_>) -> Option<String> {
    let text = name(at)?;
    let plain = text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
    let own = text.starts_with('/') && !text.starts_with("//");
    if !plain || !(own || KeysUri::read(&text).is_ok()) {
        at.error(format!("`{}` leads nowhere", text.escape_debug()), "write a path, or https://HOST/PATH");
        return None;
    }
    Some(text)
}

fn access_token(at: &Cursor<'_>) -> Option<Option<String>> {
    if at.text()? == "None" { Some(None) } else { filled(at).map(Some) }
}

fn fill(at: &Cursor<'_>) -> Option<(String, String)> {
    let mut fields = at.fields();
    let claim = fields.need("claim").and_then(|at| name(&at));
    let header = fields.need("header").and_then(|at| filled(&at));
    fields.done();
    Some((claim?, header?))
}

fn filled(at: &Cursor<'_>) -> Option<String> {
    name(at)?;
    let name = header(at)?;
    if !claim_header(&name) {
        at.error(format!("`{name}` is not a login's to fill"), "choose a header of your own, such as x-user");
        return None;
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::parse;
    use crate::world::{Candidate, Spec};

    fn candidate(spec: &str) -> Candidate {
        let text =
            format!("apiVersion: meshwright.dev/v1alpha1\nkind: OidcLogin\nmetadata: {{name: l, namespace: shop}}\nspec: {{{spec}}}\n");
        parse("f.yaml", &text).candidates.remove(0)
    }

    #[test]
    fn every_field_is_read() {
        // Aim: each word keeps its value, and what is not said stays open for wider objects.
        let good = |spec: &str| {
            let candidate = candidate(spec);
            assert!(candidate.problems.is_empty(), "{spec}: {:?}", candidate.problems);
            let Some(Spec::OidcLogin(read)) = candidate.object.map(|object| object.spec.clone()) else { panic!("{spec}") };
            *read
        };
        let read = good(
            "mode: Optional, issuer: 'https://id.example/a', endpoints: {authorization: 'https://id.example/auth', token: 'https://id.example/token', \
             jwks: 'https://keys.example/', endSession: 'https://id.example/end'}, clientId: edge, clientSecretRef: {name: s, key: k}, \
             clientAuth: Post, scopes: [openid, email], redirectPath: /cb, logoutPath: /out, postLogoutRedirect: /bye, when: Always, \
             session: {store: Cookie, cookieDomain: shop.example, sameSite: Strict, idle: 1h, max: 12h, refreshAtPercent: 70, keySecretRef: \
             {name: keys, key: k}}, forward: {accessToken: X-Token, claimsToHeaders: [{claim: email, header: X-Email}]}",
        );
        assert_eq!((read.optional, read.issuer.as_deref()), (Some(true), Some("https://id.example/a")));
        assert_eq!(read.endpoints.as_ref().unwrap().jwks.host(), "keys.example");
        assert!(matches!(&read.proof, Some(LoginProof::Secret(_, true))) && read.secrets().count() == 2);
        assert_eq!((read.redirect_path.as_deref(), read.logout_path.as_deref()), (Some("/cb"), Some("/out")));
        assert_eq!((read.when, read.session.same_site), (Some(LoginWhen::Always), Some(SameSite::Strict)));
        assert_eq!(read.session.refresh_at_percent, Some(70));
        assert_eq!(read.access_token, Some(Some("x-token".to_owned())));
        assert_eq!(read.fills, Some(vec![("email".to_owned(), "x-email".to_owned())]));
        let stored = good(
            "backChannelLogoutPath: /ended, session: {store: Redis, redis: {addresses: ['Redis.data:6379'], authRef: {name: r, key: k}, tls: true}}",
        );
        let Some(LoginStore::Redis(server)) = &stored.session.store else { panic!("{stored:?}") };
        assert_eq!((server.address(), server.tls, server.timeout), ("Redis.data:6379", true, Duration::from_millis(50)));
        assert_eq!((stored.back_channel_path.as_deref(), stored.secrets().count()), (Some("/ended"), 1));
        assert_eq!(good("session: {store: Cookie}").session.store, Some(LoginStore::Cookie));
        assert_eq!(good("locked: false"), OidcLogin::default());
        assert_eq!(good("forward: {accessToken: None}").access_token, Some(None));
        assert_eq!(good("forward: {accessToken: Authorization}").access_token, Some(Some("authorization".to_owned())));
        assert_eq!(good("forward: {accessToken: X-Token}").access_token, Some(Some("x-token".to_owned())));
        assert!(matches!(good("privateKeyJwt: {secretRef: {name: s, key: k}, keyId: a}").proof, Some(LoginProof::PrivateKey(..))));
        assert!(good("issuer: 'http://127.0.0.1:9000'").issuer.is_some());
        let inside = good(
            "issuer: 'https://id.example', endpoints: {authorization: 'https://id.example/a', token: 'http://id.auth/t', jwks: 'http://id.auth/k'}",
        );
        assert_eq!(inside.endpoints.unwrap().token.host(), "id.auth");
    }

    #[test]
    fn what_cannot_be_honoured_is_refused() {
        // Aim: every bound and every mistake is told by name.
        let endpoints = |one: &str| {
            format!(
                "issuer: 'https://id.example', endpoints: {{authorization: '{one}', token: 'https://id.example/t', jwks: 'https://id.example/k'}}"
            )
        };
        for (spec, told) in [
            ("issuer: 'http://id.example'".to_owned(), "is not of https"),
            ("issuer: id.example".to_owned(), "it "),
            (endpoints("http://id.example/auth"), "is not of https"),
            ("endpoints: {}".to_owned(), "endpoints of no issuer"),
            ("clientAuth: Post".to_owned(), "there is none"),
            ("clientSecretRef: {name: s, key: k}, privateKeyJwt: {secretRef: {name: s, key: k}}".to_owned(), "by its secret or by its key"),
            ("scopes: [email]".to_owned(), "without the scope openid"),
            ("scopes: [openid, 'a b']".to_owned(), "is no scope"),
            ("redirectPath: cb".to_owned(), "is no path"),
            ("redirectPath: '/a?b'".to_owned(), "is no path"),
            ("redirectPath: '/a/../b'".to_owned(), "is no path"),
            ("redirectPath: /a, logoutPath: /a".to_owned(), "are the same"),
            ("postLogoutRedirect: '//evil'".to_owned(), "leads nowhere"),
            ("backChannelLogoutPath: /b".to_owned(), "sessions that browsers keep"),
            ("backChannelLogoutPath: /b, session: {store: Cookie}".to_owned(), "sessions that browsers keep"),
            (
                "backChannelLogoutPath: /b, logoutPath: /b, session: {store: Redis, redis: {addresses: ['r:1']}}".to_owned(),
                "another path of the login is the same",
            ),
            ("backChannelLogoutPath: b, session: {store: Redis, redis: {addresses: ['r:1']}}".to_owned(), "is no path"),
            ("when: Sometimes".to_owned(), "unknown value `Sometimes`"),
            ("session: {store: Redis}".to_owned(), "does not say where Redis is"),
            ("session: {redis: {addresses: ['r:1']}}".to_owned(), "sessions are not kept there"),
            ("session: {store: Cookie, redis: {addresses: ['r:1']}}".to_owned(), "sessions are not kept there"),
            ("session: {store: Redis, redis: {addresses: [r]}}".to_owned(), "names no port"),
            ("session: {store: Redis, redis: {addresses: ['r:1'], aheadPercent: 1}}".to_owned(), "unknown field"),
            ("session: {store: Redis, redis: {addresses: ['r:1'], timeout: 2s}}".to_owned(), "up to 1s"),
            ("session: {store: File}".to_owned(), "unknown value `File`"),
            ("session: {cookieDomain: example}".to_owned(), "is no domain"),
            ("session: {cookieDomain: .shop.example}".to_owned(), "is no domain"),
            ("session: {idle: 2h, max: 1h}".to_owned(), "never ends"),
            ("session: {idle: 1s}".to_owned(), "no such life"),
            ("session: {max: 721h}".to_owned(), "no such life"),
            ("session: {refreshAtPercent: 0}".to_owned(), "out of range"),
            ("forward: {accessToken: 'a b'}".to_owned(), ""),
            ("forward: {accessToken: host}".to_owned(), "is not a login's to fill"),
            ("forward: {accessToken: {header: x-a}}".to_owned(), ""),
            (format!("forward: {{accessToken: {}}}", "a".repeat(2_049)), "2049 bytes"),
            ("forward: {claimsToHeaders: [{claim: a, header: x-meshwright-consumer}]}".to_owned(), "is not a login's to fill"),
            ("locked: true, targetRefs: [{kind: HTTPRoute, name: r}]".to_owned(), "can be locked"),
            ("password: x".to_owned(), "unknown field"),
        ] {
            let candidate = candidate(&spec);
            assert!(candidate.object.is_none(), "{spec} is taken");
            let found: String = candidate.problems.iter().map(|problem| format!("{}: {}; ", problem.field, problem.message)).collect();
            assert!(found.contains(told), "{spec}: {found}");
        }
    }
}
