//! OidcLogin as proxies are told, and the paths of logins, which are served on every host where one holds.

use std::collections::BTreeSet;
use std::time::Duration;

use engine::authenticate::KeysUri;
use proto::mesh::{self, ClaimHeader, EdgeLogin, EdgePolicy, LoginEndpoints, RoutePolicy, edge_login};
use proto::names;

use super::api_key::chosen;
use super::basic::file_name;
use super::ladder::{Climb, Held, Rung, Spot, places};
use super::{limits, secret, tokens};
use crate::translate::attach::Backend;
use crate::translate::edge_listeners;
use crate::world::content::ContentRef;
use crate::world::edge::{LoginPlaces, LoginProof, LoginSessions, LoginStore, LoginWhen, OidcLogin, SameSite};
use crate::world::problem::Severity;
use crate::world::traffic::Place;
use crate::world::{Index, Kind, Object, ObjectKey, Spec, World};

/// What sessions are sealed with where nobody names a Secret. No entry of a Secret is called so.
pub(in crate::translate) const MADE_KEYS: &str = "login-keys";
/// Where browsers come back to where nobody says so.
const REDIRECT_PATH: &str = "/oauth2/callback";
/// Where sessions are ended.
const LOGOUT_PATH: &str = "/oauth2/logout";
/// How long a session lives without a request, and at most.
pub(super) const IDLE: Duration = Duration::from_secs(3_600);
pub(super) const MAX: Duration = Duration::from_secs(12 * 3_600);
/// When a refresh begins.
const REFRESH_AT_PERCENT: u32 = 80;

impl Rung for OidcLogin {
    const KIND: Kind = Kind::OidcLogin;

    fn of(object: &Object) -> Option<&Self> {
        if let Spec::OidcLogin(spec) = &object.spec { Some(spec) } else { None }
    }

    fn fields(&self) -> Vec<&'static str> {
        let Self {
            attachment: _,
            optional,
            issuer,
            endpoints,
            client_id,
            proof,
            scopes,
            redirect_path,
            logout_path,
            after_logout,
            back_channel_path,
            when,
            session: LoginSessions { store, domain, same_site, idle, max, refresh_at_percent, keys },
            access_token,
            fills,
        } = self;
        let set = [
            ("mode", optional.is_some()),
            ("issuer", issuer.is_some()),
            ("endpoints", endpoints.is_some()),
            ("clientId", client_id.is_some()),
            ("clientSecretRef", proof.is_some()),
            ("scopes", scopes.is_some()),
            ("redirectPath", redirect_path.is_some()),
            ("logoutPath", logout_path.is_some()),
            ("postLogoutRedirect", after_logout.is_some()),
            ("backChannelLogoutPath", back_channel_path.is_some()),
            ("when", when.is_some()),
            ("session.store", store.is_some()),
            ("session.cookieDomain", domain.is_some()),
            ("session.sameSite", same_site.is_some()),
            ("session.idle", idle.is_some()),
            ("session.max", max.is_some()),
            ("session.refreshAtPercent", refresh_at_percent.is_some()),
            ("session.keySecretRef", keys.is_some()),
            ("forward.accessToken", access_token.is_some()),
            ("forward.claimsToHeaders", fills.is_some()),
        ];
        set.into_iter().filter(|(_, set)| *set).map(|(field, _)| field).collect()
    }

    fn take(&mut self, other: &Self, field: &'static str) {
        match field {
            "mode" => self.optional = other.optional,
            "issuer" => self.issuer.clone_from(&other.issuer),
            "endpoints" => self.endpoints.clone_from(&other.endpoints),
            "clientId" => self.client_id.clone_from(&other.client_id),
            "clientSecretRef" => self.proof.clone_from(&other.proof),
            "scopes" => self.scopes.clone_from(&other.scopes),
            "redirectPath" => self.redirect_path.clone_from(&other.redirect_path),
            "logoutPath" => self.logout_path.clone_from(&other.logout_path),
            "postLogoutRedirect" => self.after_logout.clone_from(&other.after_logout),
            "backChannelLogoutPath" => self.back_channel_path.clone_from(&other.back_channel_path),
            "when" => self.when = other.when,
            "session.store" => self.session.store.clone_from(&other.session.store),
            "session.cookieDomain" => self.session.domain.clone_from(&other.session.domain),
            "session.sameSite" => self.session.same_site = other.session.same_site,
            "session.idle" => self.session.idle = other.session.idle,
            "session.max" => self.session.max = other.session.max,
            "session.refreshAtPercent" => self.session.refresh_at_percent = other.session.refresh_at_percent,
            "session.keySecretRef" => self.session.keys.clone_from(&other.session.keys),
            "forward.accessToken" => self.access_token.clone_from(&other.access_token),
            _ => self.fills.clone_from(&other.fills),
        }
    }
}

/// How people log in at some places; `None`: no object holds there.
///
/// # Errors
/// One holds, and nobody says where people log in, or as whose users.
pub(super) fn sent<'a>(index: &'a Index, places: &[Place]) -> Result<Option<EdgeLogin>, &'a ObjectKey> {
    if !index.has_logins() {
        return Ok(None);
    }
    let Some(held) = Climb::<OidcLogin>::of(index, places).held() else { return Ok(None) };
    let Some(narrowest) = held.by.first() else { return Ok(None) };
    told(index, narrowest, &held).map(Some).ok_or(&narrowest.key)
}

/// Whether a login holds at some places that nobody can use.
pub(super) fn is_incomplete(index: &Index, places: &[Place]) -> bool {
    sent(index, places).is_err()
}

/// What holds, defaults filled in.
fn told(index: &Index, narrowest: &Object, held: &Held<'_, OidcLogin>) -> Option<EdgeLogin> {
    let OidcLogin {
        attachment: _,
        optional,
        issuer,
        endpoints,
        client_id,
        proof,
        scopes,
        redirect_path,
        logout_path,
        after_logout,
        back_channel_path,
        when,
        session: LoginSessions { store, domain, same_site, idle, max, refresh_at_percent, keys },
        access_token,
        fills,
    } = &held.says;
    let (issuer, client_id) = (issuer.clone()?, client_id.clone()?);
    let owner = held.fields.iter().find(|(field, _)| *field == "issuer").map_or(narrowest, |(_, owner)| owner);
    let (secret, shown_by, key_id) = proved(proof.as_ref());
    let when = match when.unwrap_or(LoginWhen::Navigation) {
        LoginWhen::Navigation => edge_login::When::Navigation,
        LoginWhen::Always => edge_login::When::Always,
        LoginWhen::Never => edge_login::When::Never,
    };
    let same_site = match same_site.unwrap_or(SameSite::Lax) {
        SameSite::Lax => edge_login::SameSite::Lax,
        SameSite::Strict => edge_login::SameSite::Strict,
        SameSite::None => edge_login::SameSite::None,
    };
    let max = max.unwrap_or(MAX);
    let store = match store {
        Some(LoginStore::Redis(server)) => Some(limits::redis(server)),
        Some(LoginStore::Cookie) | None => None,
    };
    Some(EdgeLogin {
        policy: narrowest.key.path(),
        optional: optional.unwrap_or_default(),
        barred: barred(index, owner, &issuer, endpoints.as_ref()).unwrap_or_default(),
        issuer,
        client_id,
        secret,
        proof: shown_by.into(),
        key_id,
        scopes: scopes.clone().unwrap_or_else(|| vec!["openid".to_owned()]),
        redirect_path: redirect_path.clone().unwrap_or_else(|| REDIRECT_PATH.to_owned()),
        logout_path: logout_path.clone().unwrap_or_else(|| LOGOUT_PATH.to_owned()),
        post_logout_redirect: after_logout.clone().unwrap_or_default(),
        when: when.into(),
        cookie_domain: domain.clone().unwrap_or_default(),
        same_site: same_site.into(),
        // Of two objects each may say one: none outlives the other.
        idle: duration(idle.unwrap_or(IDLE).min(max)),
        max: duration(max),
        refresh_at_percent: refresh_at_percent.unwrap_or(REFRESH_AT_PERCENT),
        keys: keys.as_ref().map_or_else(|| MADE_KEYS.to_owned(), file_name),
        access_token_header: access_token.clone().flatten().unwrap_or_default(),
        claims_to_headers: fills
            .iter()
            .flatten()
            .map(|(claim, header)| ClaimHeader { claim: claim.clone(), header: header.clone() })
            .collect(),
        endpoints: endpoints.as_ref().map(places_told),
        consumers: Some(chosen(index, narrowest, &tokens::choice())),
        // Where a wider object has locked browsers as those who keep sessions it could end none.
        back_channel_path: back_channel_path.clone().filter(|_| store.is_some()).unwrap_or_default(),
        store,
    })
}

/// The file of what the client proves itself by, how it shows that, and the key's name.
fn proved(proof: Option<&LoginProof>) -> (String, edge_login::Proof, String) {
    match proof {
        None => (String::new(), edge_login::Proof::Basic, String::new()),
        Some(LoginProof::Secret(at, false)) => (file_name(at), edge_login::Proof::Basic, String::new()),
        Some(LoginProof::Secret(at, true)) => (file_name(at), edge_login::Proof::Post, String::new()),
        Some(LoginProof::PrivateKey(at, id)) => (file_name(at), edge_login::Proof::PrivateKeyJwt, id.clone()),
    }
}

fn places_told(LoginPlaces { authorization, token, jwks, end_session }: &LoginPlaces) -> LoginEndpoints {
    LoginEndpoints {
        authorization: authorization.uri().to_string(),
        token: token.uri().to_string(),
        jwks: jwks.uri().to_string(),
        end_session: end_session.as_ref().map(|place| place.uri().to_string()).unwrap_or_default(),
    }
}

fn duration(told: Duration) -> Option<prost_types::Duration> {
    prost_types::Duration::try_from(told).ok()
}

/// Why the provider may not be asked: what lies outside the mesh is for EgressPolicies to allow, and has to be of https. Places that a provider
/// names itself are allowed with it.
pub(super) fn barred(index: &Index, owner: &Object, issuer: &str, endpoints: Option<&LoginPlaces>) -> Option<String> {
    let issuer = engine::login::issuer_address(issuer).ok();
    let asked: Vec<_> = match endpoints {
        Some(LoginPlaces { token, jwks, .. }) => vec![token.clone(), jwks.clone()],
        None => issuer.into_iter().collect(),
    };
    let open = |at: &KeysUri| !at.is_secure() && !at.is_loopback() && !tokens::is_of_mesh(index, &owner.key.namespace, at);
    let plain = asked.iter().find(|at| open(at));
    plain
        .map(|at| format!("{} is not of https, and its name is none of the mesh's", at.uri()))
        .or_else(|| asked.iter().find_map(|at| tokens::barred(index, owner, at)))
}

/// Why an object's own words cannot be carried out: what it refers to is not there, or its provider may not be asked.
pub(super) fn fault(world: &World, object: &Object, spec: &OidcLogin) -> Option<String> {
    let barred = spec.issuer.as_ref().and_then(|issuer| barred(world.index(), object, issuer, spec.endpoints.as_ref()));
    let check = |at: &ContentRef, check: fn(&[u8]) -> Result<(), String>| {
        secret::shown(world, at).and_then(|shown| check(&shown.value).map_err(|why| format!("{at} {why}"))).err()
    };
    let unproved = || match spec.proof.as_ref()? {
        LoginProof::Secret(at, _) => secret::shown(world, at).err(),
        LoginProof::PrivateKey(at, _) => check(at, engine::login::check_private_key),
    };
    let unsealed = || check(spec.session.keys.as_ref()?, engine::login::check_seal_keys);
    let unkept = || match spec.session.store.as_ref()? {
        LoginStore::Redis(server) => secret::shown(world, server.password.as_ref()?).err(),
        LoginStore::Cookie => None,
    };
    barred.or_else(unproved).or_else(unsealed).or_else(unkept)
}

/// A path that a login serves by itself.
pub(in crate::translate) struct ServedPath {
    /// What proxies know its rule by.
    pub name: String,
    /// Exactly so.
    pub path: String,
    /// Answers all that comes.
    pub policy: RoutePolicy,
}

/// What serves the paths of logins at one host: before all others, so that no route takes them. `spots`: where its requests come by; adds the
/// services that are asked.
pub(in crate::translate) fn paths<'a>(
    index: &'a Index,
    listener: &Spot<'_>,
    spots: impl Iterator<Item = Spot<'a>>,
    backends: &mut BTreeSet<Backend>,
) -> Vec<ServedPath> {
    if !index.has_logins() {
        return Vec::new();
    }
    let own = places(listener);
    let mut logins: Vec<EdgeLogin> = Vec::new();
    for places in std::iter::once(own.clone()).chain(spots.map(|spot| places(&spot))) {
        let Ok(Some(login)) = sent(index, &places) else { continue };
        // What only those look at who ask who calls makes no other login of it.
        let login = EdgeLogin { optional: false, when: 0, claims_to_headers: Vec::new(), ..login };
        let same =
            |known: &EdgeLogin| EdgeLogin { policy: login.policy.clone(), consumers: login.consumers.clone(), ..known.clone() } == login;
        if !logins.iter().any(same) {
            logins.push(login);
        }
    }
    let mut all: Vec<&str> = logins.iter().flat_map(own_paths).filter(|path| !path.is_empty()).collect();
    all.sort_unstable();
    all.dedup();
    // What guards the guards guards these, too.
    let guarded: Vec<mesh::EdgeLimits> = limits::sent(index, &own, backends).into_iter().filter(|limit| limit.before_auth).collect();
    let served = all.into_iter().map(|path| {
        let at_path = |login: &&EdgeLogin| own_paths(login).contains(&path);
        let login_paths: Vec<EdgeLogin> = logins.iter().filter(at_path).take(LOGINS_AT_ONE_PATH_MAX).cloned().collect();
        let object = login_paths.first().map(|login| login.policy.clone()).unwrap_or_default();
        let (namespace, name) = object.split_once('/').unwrap_or_default();
        let edge = EdgePolicy { login_paths, limits: guarded.clone(), ..EdgePolicy::default() };
        ServedPath {
            name: names::rule(Kind::OidcLogin.text(), namespace, name, path),
            path: path.to_owned(),
            policy: RoutePolicy { edge: Some(edge), ..RoutePolicy::default() },
        }
    });
    served.collect()
}

fn own_paths(login: &EdgeLogin) -> [&str; 3] {
    [&login.redirect_path, &login.logout_path, &login.back_channel_path]
}

/// Most logins that share a path on one host: of further ones nobody comes back.
const LOGINS_AT_ONE_PATH_MAX: usize = 16;

/// What is worth to be told about one: severity, field, message, remedy. `plain`: it holds where requests come in without TLS.
pub(in crate::translate) fn findings(spec: &OidcLogin, plain: bool) -> Vec<(Severity, String, String, String)> {
    let mut found = Vec::new();
    let mut say = |severity, field: &str, message: &str, remedy: &str| {
        found.push((severity, field.to_owned(), message.to_owned(), remedy.to_owned()));
    };
    if plain {
        let message =
            "it holds at a listener without TLS, where browsers keep no session (but for localhost), unless something in front ends TLS";
        say(Severity::Warning, "spec.targetRefs", message, "serve these hosts by HTTPS, and redirect from HTTP");
    }
    if let Some(LoginStore::Redis(server)) = &spec.session.store
        && !server.tls
        && server.password.is_none()
    {
        let message = "whoever reaches Redis can end everybody's session there: it asks for no password";
        say(Severity::Info, "spec.session.redis", message, "give it a password (authRef), and TLS where its way is not the mesh's");
    }
    if spec.session.same_site == Some(SameSite::None) {
        let message = "every site may have a browser send requests in its user's name";
        say(Severity::Warning, "spec.session.sameSite", message, "write Lax, unless your pages are shown inside others'");
    }
    if spec.session.domain.is_some() {
        let message = "every host below that domain gets the sessions' cookies: whoever runs one can take over what its users send";
        say(Severity::Info, "spec.session.cookieDomain", message, "leave it out where one host is enough");
    }
    found
}

/// Whether an object holds for requests that come in without TLS.
pub(in crate::translate) fn is_plain(index: &Index, object: &Object) -> bool {
    let Spec::OidcLogin(spec) = &object.spec else { return false };
    let named = spec.attachment.places(&object.key);
    index.gateways.keys().any(|gateway| {
        let listeners = edge_listeners::listeners(index, gateway);
        listeners.iter().filter(|judged| judged.listener.protocol == "HTTP").any(|judged| {
            let spot = Spot { gateway, owner: &judged.owner.key, listener: &judged.listener.name, route: None };
            places(&spot).iter().any(|place| *place != Place::Mesh && named.contains(place))
        })
    })
}
