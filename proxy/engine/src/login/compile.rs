//! Logins out of what proxies are sent.

use std::sync::Arc;

use http::HeaderName;
use proto::mesh::{EdgeLogin, LoginEndpoints, edge_login};

use super::asked::LoginWhen;
use super::cookies::{LoginCookies, SameSite};
use super::exchange::ClientProof;
use super::live::LoginLive;
use super::provider::{Endpoints, ProviderCell, trusted};
use super::session::SessionLives;
use super::{Login, SESSION_MAX};
use crate::authenticate::{KeysUri, claim_header};
use crate::consumers::{ConsumerChoice, Digest, digest};
use crate::limit::RemoteStore;
use crate::raw::duration;
use crate::rejected::Wrong;

/// Most scopes, and headers that are filled.
const LISTED_MAX: usize = 64;
/// Longest of what names something.
const TEXT_BYTES_MAX: usize = 2_048;

impl Login {
    /// `provider`, `live`, `store`: what outlives the object.
    pub(crate) fn compile(
        raw: &EdgeLogin,
        provider: Arc<ProviderCell>,
        live: Arc<LoginLive>,
        store: Option<Arc<RemoteStore>>,
    ) -> Result<Self, Wrong> {
        let back_channel_path = (!raw.back_channel_path.is_empty()).then(|| raw.back_channel_path.clone());
        if back_channel_path.is_some() && store.is_none() {
            return Err(Wrong::new("back_channel_path", "ends sessions that browsers keep, which only a store could"));
        }
        let paths = [("redirect_path", &raw.redirect_path), ("logout_path", &raw.logout_path)];
        let back = back_channel_path.iter().map(|path| ("back_channel_path", path));
        for (field, path) in paths.into_iter().chain(back) {
            if !path.starts_with('/') || path.len() > TEXT_BYTES_MAX || path.contains(['?', '#']) {
                return Err(Wrong::new(field, "is no path"));
            }
        }
        if raw.client_id.is_empty() || raw.scopes.len() > LISTED_MAX || raw.claims_to_headers.len() > LISTED_MAX {
            return Err(Wrong::new("client_id", format!("is empty, or more than {LISTED_MAX} scopes or headers are named")));
        }
        let fills = raw.claims_to_headers.iter().map(|fill| Ok((fill.claim.clone(), header(&fill.header, "claims_to_headers")?)));
        let token = Some(raw.access_token_header.as_str()).filter(|name| !name.is_empty());
        let own = owner(raw);
        let tag: String = own.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let consumers = raw.consumers.as_ref().map(ConsumerChoice::compile).transpose().map_err(|wrong| wrong.within("consumers"))?;
        Ok(Self {
            policy: raw.policy.as_str().into(),
            optional: raw.optional,
            redirect_path: raw.redirect_path.clone(),
            logout_path: raw.logout_path.clone(),
            back_channel_path,
            when: when(raw),
            consumers: consumers.unwrap_or_default(),
            issuer: raw.issuer.as_str().into(),
            client_id: raw.client_id.clone(),
            proof: proof(raw),
            secret: raw.secret.as_str().into(),
            key_id: raw.key_id.clone(),
            scopes: raw.scopes.join(" "),
            after_logout: if raw.post_logout_redirect.is_empty() { "/".to_owned() } else { raw.post_logout_redirect.clone() },
            cookies: LoginCookies::new(&tag, &raw.cookie_domain, same_site(raw)),
            lives: lives(raw)?,
            keys: raw.keys.as_str().into(),
            owner: own,
            access_token: token.map(|name| header(name, "access_token_header")).transpose()?,
            fills: fills.collect::<Result<_, Wrong>>()?,
            provider,
            barred: !raw.barred.is_empty(),
            live,
            store,
        })
    }
}

fn header(name: &str, field: &str) -> Result<HeaderName, Wrong> {
    let read = name.parse().ok().filter(|_| claim_header(name));
    read.ok_or_else(|| Wrong::new(field, format!("`{}` is not a login's to fill", name.escape_debug())))
}

fn lives(raw: &EdgeLogin) -> Result<SessionLives, Wrong> {
    let time = |told: Option<&prost_types::Duration>, field: &str| {
        let time = duration(told, field)?.filter(|time| time.as_secs() > 0 && *time <= SESSION_MAX);
        time.ok_or_else(|| Wrong::new(field, format!("is not from 1s up to {}s", SESSION_MAX.as_secs())))
    };
    if !(1..=100).contains(&raw.refresh_at_percent) {
        return Err(Wrong::new("refresh_at_percent", "is not from 1 to 100"));
    }
    let (idle, max) = (time(raw.idle.as_ref(), "idle")?, time(raw.max.as_ref(), "max")?);
    Ok(SessionLives { idle, max, refresh_at_percent: raw.refresh_at_percent })
}

fn proof(raw: &EdgeLogin) -> ClientProof {
    match raw.proof() {
        _ if raw.secret.is_empty() => ClientProof::None,
        edge_login::Proof::Basic => ClientProof::Basic,
        edge_login::Proof::Post => ClientProof::Post,
        edge_login::Proof::PrivateKeyJwt => ClientProof::PrivateKeyJwt,
    }
}

fn when(raw: &EdgeLogin) -> LoginWhen {
    match raw.when() {
        edge_login::When::Navigation => LoginWhen::Navigation,
        edge_login::When::Always => LoginWhen::Always,
        edge_login::When::Never => LoginWhen::Never,
    }
}

fn same_site(raw: &EdgeLogin) -> SameSite {
    match raw.same_site() {
        edge_login::SameSite::Lax => SameSite::Lax,
        edge_login::SameSite::Strict => SameSite::Strict,
        edge_login::SameSite::None => SameSite::None,
    }
}

/// What tells logins apart that do not share their sessions.
pub(crate) fn owner(raw: &EdgeLogin) -> Digest {
    digest(format!("{}\0{}\0{}", raw.issuer, raw.client_id, raw.cookie_domain).as_bytes())
}

/// The endpoints that are given by hand. Where proxies ask themselves may be plain: the control plane bars what is not the mesh's own name.
pub(crate) fn given(raw: &LoginEndpoints, issuer: &KeysUri) -> Result<Endpoints, Wrong> {
    let read = |text: &str, field: &str| trusted(text, issuer).map_err(|why| Wrong::new(format!("endpoints.{field}"), why));
    let asked = |text: &str, field: &str| KeysUri::read(text).map_err(|why| Wrong::new(format!("endpoints.{field}"), why));
    Ok(Endpoints {
        authorization: read(&raw.authorization, "authorization")?,
        token: asked(&raw.token, "token")?,
        jwks: asked(&raw.jwks, "jwks")?,
        end_session: if raw.end_session.is_empty() { None } else { Some(read(&raw.end_session, "end_session")?) },
        says_issuer: false,
    })
}
