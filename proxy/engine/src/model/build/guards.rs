//! What guards a rule at an edge, out of its policy (`edge.proto`).

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use prost::Message as _;
use proto::mesh::{EdgeLimits, EdgePolicy, EdgeTokens, RateLimitService, limit_store};

use super::authentication::{self, Cells};
use super::interned::Interned;
use crate::authenticate::Authentication;
use crate::authorize;
use crate::callout::Callouts;
use crate::consumers::ConsumerChoice;
use crate::filter::Stage;
use crate::filter::guard::{
    self, ApiKeys, Basic, CertificateGuard, EXTERNAL_MAX, External, ExternalGuard, Failures, Guard, Identify, Introspection, LimitGuard,
    LimitStage, TokenGuard,
};
use crate::limit::LimitMemories;
use crate::rejected::Wrong;

/// Guards in their fixed order (`edge-kinds.md`), which is said here and nowhere else: 5 maintenance, 6 limits that guard the guards,
/// 7 who calls, then what a service says of that, 8 whether they may, 9 rates and quotas. CORS (4) goes before all of them: it is the rule's own filter.
pub(super) fn guards(
    raw: &EdgePolicy,
    (cells, memories): (&mut Cells, &LimitMemories),
    (failures, services): (&mut FailureMemories, &mut Services),
) -> Result<Vec<Stage>, Wrong> {
    // How long a body may be is the rule's own (`build::policy`).
    let EdgePolicy { unavailable, api_keys, basic, tokens, authorization, limits, body_bytes_max: _, external, certificates } = raw;
    if !unavailable.is_empty() {
        return Ok(vec![Stage::Guard(Guard::Unavailable(unavailable.as_str().into()))]);
    }
    let keys = api_keys.as_ref().map(ApiKeys::compile).transpose().map_err(|wrong| wrong.within("api_keys"))?;
    let basic = basic.as_ref().map(|raw| Basic::compile(raw, failures.adopt(&raw.policy)));
    let basic = basic.transpose().map_err(|wrong| wrong.within("basic"))?;
    let tokens = tokens.as_ref().map(|raw| self::tokens(raw, cells, services)).transpose().map_err(|wrong| wrong.within("tokens"))?;
    let certificates = certificates.as_ref().map(ConsumerChoice::compile).transpose().map_err(|wrong| wrong.within("certificates"))?;
    let certificates = certificates.map(|consumers| CertificateGuard { consumers });
    let identify = Identify::new(tokens, keys, basic, certificates).map(|identify| Guard::Identify(Arc::new(identify)));
    let external = services.external(external)?;
    let authorize = authorization.as_ref().map(|raw| authorize::compile(raw).map(|all| Guard::Authorize(Arc::new(all))));
    let authorize = authorize.transpose().map_err(|wrong| wrong.within("authorization"))?;
    let asked = raw.external.len();
    let early = limited((limits, asked), LimitStage::BeforeAuth, memories)?;
    let late = limited((limits, asked), LimitStage::AfterAuth, memories)?;
    Ok(early.into_iter().chain(identify).chain(external).chain(authorize).chain(late).map(Stage::Guard).collect())
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
