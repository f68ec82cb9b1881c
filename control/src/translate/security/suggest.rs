//! Policies that allow just what was seen: one per application, a rule per caller. What could not be named, or not be told apart, is said
//! beside it; nothing is allowed on suspicion.

use std::collections::{BTreeMap, BTreeSet};

use proto::identity::Identity;
use serde::Serialize;
use serde_json::{Value, json};

use super::paths::{self, Asked};
use crate::world::key::OWN;
use crate::world::security::authorization::{NAME_BYTES_MAX, RULES_MAX};
use crate::world::{Kind, Name, Object, ObjectKey, World};

/// Labels that say which application a workload is, the usual one first: versions of one are judged alike.
const APPLICATION_LABELS: [&str; 2] = ["app", "app.kubernetes.io/name"];

/// What was asked of a server, and by whom.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObservedCall {
    /// What the caller proved; `None`: it spoke plaintext.
    pub identity: Option<Identity>,
    /// The application's port.
    pub port: u16,
    /// Empty: an opaque connection.
    pub method: String,
    /// A path, or a template of one; empty: none.
    pub path: String,
}

/// All that was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// How often what was asked, by (namespace, workload) of the server.
    pub calls: BTreeMap<Name, BTreeMap<ObservedCall, u64>>,
    /// Calls that were not told apart, by server.
    pub uncounted: BTreeMap<Name, u64>,
    /// Whether some were not remembered at all.
    pub incomplete: bool,
}

/// A policy and what is to be known of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SuggestedPolicy {
    /// The manifest.
    pub object: Value,
    /// Lines for people.
    pub remarks: Vec<String>,
}

/// What `policy suggest` says.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Suggestion {
    /// One per application, in order.
    pub policies: Vec<SuggestedPolicy>,
    /// Lines for people, of no policy.
    pub remarks: Vec<String>,
}

/// Suggests policies for the workloads of a namespace, or one of them; empty: all.
pub fn suggest(world: &World, observed: &Observed, (namespace, workload): (&str, &str)) -> Suggestion {
    let mut suggestion = Suggestion::default();
    if observed.incomplete {
        suggestion.remarks.push("there were too many different calls to remember all; ask earlier, or for less".to_owned());
    }
    let servers = observed.calls.keys().chain(observed.uncounted.keys()).collect::<BTreeSet<_>>();
    let mut applications: BTreeMap<(&str, BTreeMap<&str, &str>), Vec<&Name>> = BTreeMap::new();
    for server in servers.into_iter().filter(|server| namespace.is_empty() || server.0 == namespace) {
        let key = ObjectKey::new(Kind::Workload, &server.0, &server.1);
        let meant = workload.is_empty() || server.1 == workload;
        match world.get(&key).map(|object| selector(object)) {
            Some(selector) if !selector.is_empty() => applications.entry((&server.0, selector)).or_default().push(server),
            Some(_) if meant => {
                suggestion.remarks.push(format!("{key} has no labels by which a policy could select it; give it one, such as app"));
            }
            None if meant => suggestion.remarks.push(format!("{key} was called, and is not declared any more")),
            Some(_) | None => {}
        }
    }
    for ((namespace, selector), servers) in applications {
        if workload.is_empty() || servers.iter().any(|server| server.1 == workload) {
            suggestion.policies.push(Application { namespace, selector, servers }.policy(observed));
        }
    }
    if suggestion.policies.is_empty() && suggestion.remarks.is_empty() {
        suggestion.remarks.push("nobody has called a workload of the mesh there yet".to_owned());
    }
    suggestion
}

/// The labels that a policy for this workload selects by.
fn selector(object: &Object) -> BTreeMap<&str, &str> {
    let labels = &object.metadata.labels;
    let application = APPLICATION_LABELS.iter().find_map(|name| labels.get_key_value(*name));
    match application {
        Some((name, value)) => BTreeMap::from([(name.as_str(), value.as_str())]),
        None => labels.iter().filter(|(name, _)| !name.starts_with(OWN)).map(|(name, value)| (name.as_str(), value.as_str())).collect(),
    }
}

/// Workloads that one policy selects.
struct Application<'a> {
    namespace: &'a str,
    selector: BTreeMap<&'a str, &'a str>,
    servers: Vec<&'a Name>,
}

impl Application<'_> {
    fn policy(&self, observed: &Observed) -> SuggestedPolicy {
        let (mut callers, mut plaintext, mut odd) = (BTreeMap::<&Identity, Asked>::new(), BTreeMap::<u16, u64>::new(), 0);
        for (call, count) in self.servers.iter().filter_map(|server| observed.calls.get(*server)).flatten() {
            match &call.identity {
                Some(_) if call.method.bytes().any(|byte| byte.is_ascii_lowercase()) => odd += count,
                Some(identity) => callers.entry(identity).or_default().add(call.port, &call.method, &call.path),
                None => *plaintext.entry(call.port).or_default() += count,
            }
        }
        let mut remarks = Vec::new();
        for (port, count) in plaintext {
            remarks.push(format!(
                "{} to port {port} came in plaintext, from callers that no rule can name: `meshwright get plaintext` says who they are. \
                 This policy denies them; give them sidecars and make the port Strict first",
                calls(count)
            ));
        }
        if odd > 0 {
            remarks.push(format!("{} had methods in lower case, which no rule can name: this policy denies them", calls(odd)));
        }
        let uncounted: u64 = self.servers.iter().filter_map(|server| observed.uncounted.get(*server)).sum();
        if uncounted > 0 {
            remarks.push(format!("{} were of too many kinds to be told apart: rules for them may be missing", calls(uncounted)));
        }
        let rules = rules(callers, &mut remarks);
        if rules.is_empty() {
            remarks.push("no caller has proved an identity: this would deny everybody".to_owned());
        }
        let object = json!({
            "apiVersion": crate::world::object::api_version(Kind::AuthorizationPolicy),
            "kind": Kind::AuthorizationPolicy.text(),
            "metadata": {"name": self.name(), "namespace": self.namespace},
            "spec": {"selector": {"matchLabels": self.selector}, "action": "Allow", "rules": rules},
        });
        SuggestedPolicy { object, remarks }
    }

    /// After the application, where its name can be one of an object.
    fn name(&self) -> String {
        let own = self.selector.values().next().copied().filter(|_| self.selector.len() == 1);
        let name = own.filter(|name| crate::world::is_label(name)).unwrap_or(&self.servers[0].1);
        format!("{name}-callers")
    }
}

fn calls(count: u64) -> String {
    if count == 1 { "1 call".to_owned() } else { format!("{count} calls") }
}

/// A rule for all that ask for the same.
fn rules(callers: BTreeMap<&Identity, Asked>, remarks: &mut Vec<String>) -> Vec<Value> {
    let mut alike: Vec<(Value, Vec<&Identity>)> = Vec::new();
    for (identity, asked) in callers {
        let to = paths::targets(asked, identity, remarks);
        match alike.iter_mut().find(|(known, _)| *known == to) {
            Some((_, identities)) if identities.len() < paths::LISTED_MAX => identities.push(identity),
            Some(_) | None => alike.push((to, vec![identity])),
        }
    }
    if alike.len() > RULES_MAX {
        remarks.push(format!("there are more than {RULES_MAX} callers that ask for different things; the others have no rule"));
        alike.truncate(RULES_MAX);
    }
    let mut names = BTreeSet::new();
    let rule = |(number, (to, identities)): (usize, (Value, Vec<&Identity>))| {
        let mut name = format!("{}.{}", identities[0].namespace(), identities[0].service_account());
        if name.len() > NAME_BYTES_MAX || !names.insert(name.clone()) {
            name = format!("caller-{number}");
        }
        let principals: Vec<String> = identities.iter().map(ToString::to_string).collect();
        json!({"name": name, "from": [{"principals": principals}], "to": to})
    };
    alike.into_iter().enumerate().map(rule).collect()
}
