//! What guards a rule at an edge, out of its policy (`edge.proto`).

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Weak};

use prost::Message as _;
use proto::mesh::{EdgeLimits, EdgeLogin, EdgePolicy, EdgeTokens, LoginEndpoints, RateLimitService, RedisStore, limit_store};

use super::authentication::{self, Cells};
use super::interned::Interned;
use crate::authenticate::Authentication;
use crate::authorize;
use crate::callout::Callouts;
use crate::consumers::{ConsumerChoice, Digest};
use crate::filter::Stage;
use crate::filter::guard::{
    self, ApiKeys, Basic, CertificateGuard, EXTERNAL_MAX, External, ExternalGuard, Failures, Guard, Identify, Introspection, LimitGuard,
    LimitStage, LoginPaths, TokenGuard,
};
use crate::limit::{LimitMemories, RemoteStore};
use crate::login::{self, Login, LoginLive, ProviderCell};
use crate::rejected::Wrong;

/// Most logins that share their paths.
const LOGINS_MAX: usize = 16;

/// Guards in their fixed order (`edge-kinds.md`), which is said here and nowhere else: 5 maintenance, 6 limits that guard the guards,
/// 7 who calls, then what a service says of that, 8 whether they may, 9 rates and quotas. CORS (4) goes before all of them: it is the rule's own filter.
pub(super) fn guards(
    raw: &EdgePolicy,
    (cells, memories): (&mut Cells, &LimitMemories),
    (failures, services): (&mut FailureMemories, &mut Services),
) -> Result<Vec<Stage>, Wrong> {
    // How long a body may be is the rule's own (`build::policy`).
    let EdgePolicy {
        unavailable,
        api_keys,
        basic,
        tokens,
        authorization,
        limits,
        body_bytes_max: _,
        external,
        certificates,
        login,
        login_paths,
        strip_logins,
    } = raw;
    if !unavailable.is_empty() {
        return Ok(vec![Stage::Guard(Guard::Unavailable(unavailable.as_str().into()))]);
    }
    let asked = raw.external.len();
    if !login_paths.is_empty() {
        alone(raw)?;
        let early = limited((limits, asked), LimitStage::BeforeAuth, memories)?;
        let paths = services.login_paths(login_paths, memories)?;
        return Ok(early.into_iter().chain([paths]).map(Stage::Guard).collect());
    }
    let keys = api_keys.as_ref().map(ApiKeys::compile).transpose().map_err(|wrong| wrong.within("api_keys"))?;
    let basic = basic.as_ref().map(|raw| Basic::compile(raw, failures.adopt(&raw.policy)));
    let basic = basic.transpose().map_err(|wrong| wrong.within("basic"))?;
    let tokens = tokens.as_ref().map(|raw| self::tokens(raw, cells, services)).transpose().map_err(|wrong| wrong.within("tokens"))?;
    let certificates = certificates.as_ref().map(ConsumerChoice::compile).transpose().map_err(|wrong| wrong.within("certificates"))?;
    let certificates = certificates.map(|consumers| CertificateGuard { consumers });
    let login = login.as_ref().map(|raw| services.login(raw, memories).map_err(|wrong| wrong.within("login"))).transpose()?;
    let strip = strip_logins.then_some(Guard::StripLogins);
    let identify = Identify::new(tokens, keys, basic, (certificates, login)).map(|identify| Guard::Identify(Arc::new(identify)));
    let external = services.external(external)?;
    let authorize = authorization.as_ref().map(|raw| authorize::compile(raw).map(|all| Guard::Authorize(Arc::new(all))));
    let authorize = authorize.transpose().map_err(|wrong| wrong.within("authorization"))?;
    let early = limited((limits, asked), LimitStage::BeforeAuth, memories)?;
    let late = limited((limits, asked), LimitStage::AfterAuth, memories)?;
    Ok(early.into_iter().chain(identify).chain(strip).chain(external).chain(authorize).chain(late).map(Stage::Guard).collect())
}

/// Refuses what stands beside the paths of logins and would hold for nobody: they are asked by people of whom nothing is known yet.
fn alone(raw: &EdgePolicy) -> Result<(), Wrong> {
    let beside = [
        ("api_keys", raw.api_keys.is_some()),
        ("basic", raw.basic.is_some()),
        ("tokens", raw.tokens.is_some()),
        ("authorization", raw.authorization.is_some()),
        ("limits", raw.limits.iter().any(|object| !object.before_auth)),
        ("external", !raw.external.is_empty()),
        ("certificates", raw.certificates.is_some()),
        ("login", raw.login.is_some()),
        ("strip_logins", raw.strip_logins),
    ];
    match beside.into_iter().find(|(_, said)| *said) {
        Some((field, _)) => Err(Wrong::new(field, "stands beside login_paths, where only limits before authentication hold")),
        None => Ok(()),
    }
}

/// The rate-limit services that objects name, with the objects' places.
pub(super) fn services(limits: &[EdgeLimits]) -> impl Iterator<Item = (usize, &RateLimitService)> {
    limits.iter().enumerate().filter_map(|(place, raw)| match &raw.store.as_ref()?.kind {
        Some(limit_store::Kind::Service(service)) => Some((place, service)),
        _ => None,
    })
}

/// The limits of one stage, the narrowest object first. Their services are asked after so many others.
fn limited((all, asked): (&[EdgeLimits], usize), stage: LimitStage, memories: &LimitMemories) -> Result<Option<Guard>, Wrong> {
    let of_stage = |(_, raw): &(usize, &EdgeLimits)| raw.before_auth == (stage == LimitStage::BeforeAuth);
    let read = |(index, raw): (usize, &EdgeLimits)| {
        // As `build::policy` lists them.
        let before = asked + services(all).take_while(|(place, _)| *place < index).count();
        guard::object(raw, memories, before).map(Arc::new).map_err(|wrong| wrong.within(format!("limits[{index}]")))
    };
    let objects = all.iter().enumerate().filter(of_stage).map(read).collect::<Result<_, _>>()?;
    Ok(LimitGuard::new(objects).map(|limits| Guard::Limit(Arc::new(limits), stage)))
}

fn tokens(raw: &EdgeTokens, cells: &mut Cells, services: &mut Services) -> Result<TokenGuard, Wrong> {
    let EdgeTokens { policy, optional, rules, introspection, consumers } = raw;
    let introspection = introspection.as_ref().map(|raw| services.introspection(raw)).transpose()?;
    let consumers = consumers.as_ref().map(ConsumerChoice::compile).transpose().map_err(|wrong| wrong.within("consumers"))?;
    let consumers = consumers.unwrap_or_default();
    let claims = rules.iter().map(|rule| Some(rule.consumer_claim.as_str()).filter(|claim| !claim.is_empty()).map(Into::into)).collect();
    // Opaque tokens need no rules.
    let only_opaque = rules.is_empty() && introspection.is_some();
    let rules = if only_opaque { Authentication::default() } else { authentication::of_rules(rules, None, cells)? };
    Ok(TokenGuard { rules, optional: *optional, claims, consumers, policy: policy.as_str().into(), introspection })
}

/// Services that policies ask, by content: rules that say the same share what was answered; by name, what is known of each.
#[derive(Debug, Default)]
pub(super) struct Services {
    externals: Interned<External>,
    introspections: Interned<Introspection>,
    logins: Interned<Login>,
    /// By issuer and what is given of it by hand.
    providers: BTreeMap<Vec<u8>, Weak<ProviderCell>>,
    /// By what tells logins apart that do not share their sessions.
    sessions: BTreeMap<Digest, Weak<LoginLive>>,
    pub(super) callouts: Arc<Callouts>,
}

impl Services {
    fn external(&mut self, raw: &[proto::mesh::ExternalAuth]) -> Result<Vec<Guard>, Wrong> {
        if raw.len() > EXTERNAL_MAX {
            return Err(Wrong::new("external", format!("holds {}, which is more than {EXTERNAL_MAX}", raw.len())));
        }
        let one = |(place, raw): (usize, &proto::mesh::ExternalAuth)| {
            let made = self.externals.get(&raw.encode_to_vec(), || External::compile(raw, &self.callouts));
            let external = made.map_err(|wrong| wrong.within(format!("external[{place}]")))?;
            Ok(Guard::External(ExternalGuard { external, place }))
        };
        raw.iter().enumerate().map(one).collect()
    }

    fn introspection(&mut self, raw: &proto::mesh::Introspection) -> Result<Arc<Introspection>, Wrong> {
        let made = self.introspections.get(&raw.encode_to_vec(), || Introspection::compile(raw, &self.callouts));
        made.map_err(|wrong| wrong.within("introspection"))
    }

    fn login(&mut self, raw: &EdgeLogin, memories: &LimitMemories) -> Result<Arc<Login>, Wrong> {
        let provider = self.provider(raw)?;
        let live = self.sessions(raw);
        let store =
            raw.store.as_ref().map(|store| kept_at(&raw.policy, store, memories).map_err(|wrong| wrong.within("store"))).transpose()?;
        memories.login_keeps_at(&raw.policy, store.as_ref());
        self.logins.get(&raw.encode_to_vec(), || Login::compile(raw, provider, live, store))
    }

    fn provider(&mut self, raw: &EdgeLogin) -> Result<Arc<ProviderCell>, Wrong> {
        let at = login::issuer_address(&raw.issuer).map_err(|why| Wrong::new("issuer", why))?;
        let given = raw.endpoints.as_ref().map(|given| login::given(given, &at)).transpose()?;
        let mut key = raw.issuer.clone().into_bytes();
        key.push(0);
        key.extend(raw.endpoints.as_ref().map(LoginEndpoints::encode_to_vec).unwrap_or_default());
        if let Some(held) = self.providers.get(&key).and_then(Weak::upgrade) {
            return Ok(held);
        }
        self.providers.retain(|_, held| held.strong_count() > 0);
        let made = ProviderCell::new(&raw.issuer, at, given);
        self.providers.insert(key, Arc::downgrade(&made));
        Ok(made)
    }

    fn sessions(&mut self, raw: &EdgeLogin) -> Arc<LoginLive> {
        let key = login::owner(raw);
        if let Some(held) = self.sessions.get(&key).and_then(Weak::upgrade) {
            return held;
        }
        self.sessions.retain(|_, held| held.strong_count() > 0);
        let made = LoginLive::new(&raw.policy, &self.callouts);
        self.sessions.insert(key, Arc::downgrade(&made));
        made
    }

    fn login_paths(&mut self, raw: &[EdgeLogin], memories: &LimitMemories) -> Result<Guard, Wrong> {
        if raw.len() > LOGINS_MAX {
            return Err(Wrong::new("login_paths", format!("holds {}, which is more than {LOGINS_MAX}", raw.len())));
        }
        let one =
            |(place, raw): (usize, &EdgeLogin)| self.login(raw, memories).map_err(|wrong| wrong.within(format!("login_paths[{place}]")));
        let logins = raw.iter().enumerate().map(one).collect::<Result<_, _>>()?;
        Ok(Guard::LoginPaths(Arc::new(LoginPaths::new(logins))))
    }

    /// Providers that some login names.
    pub(super) fn providers(&self) -> Vec<Arc<ProviderCell>> {
        self.providers.values().filter_map(Weak::upgrade).collect()
    }
}

/// Who keeps sessions.
fn kept_at(policy: &str, store: &RedisStore, memories: &LimitMemories) -> Result<Arc<RemoteStore>, Wrong> {
    if store.ahead_percent > 0 {
        return Err(Wrong::new("ahead_percent", "is of limits, and nothing of a session is taken ahead"));
    }
    guard::redis(policy, store, memories)
}

/// Who failed lately, by the object's name.
#[derive(Debug, Default)]
pub(super) struct FailureMemories(HashMap<String, Weak<Failures>>);

impl FailureMemories {
    fn adopt(&mut self, name: &str) -> Arc<Failures> {
        if let Some(held) = self.0.get(name).and_then(Weak::upgrade) {
            return held;
        }
        self.0.retain(|_, held| held.strong_count() > 0);
        let fresh = Arc::default();
        self.0.insert(name.to_owned(), Arc::downgrade(&fresh));
        fresh
    }
}
