//! Route tables: from a request to an action.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method};

use super::Cluster;
use crate::failure::LocalReply;
use crate::filter::Stage;

/// Virtual hosts and their rules, in Gateway API's order of precedence: the first rule that matches wins.
#[derive(Debug)]
pub struct RouteTable {
    /// Resource name.
    pub name: Arc<str>,
    /// Exact hosts (lower case, no port) to an index of `hosts`.
    pub exact: HashMap<String, usize>,
    /// `*.suffix` hosts, longest suffix first: (".suffix", index).
    pub suffix: Vec<(String, usize)>,
    /// The `*` host.
    pub any: Option<usize>,
    /// Rules per virtual host.
    pub hosts: Vec<Vec<Arc<Rule>>>,
    /// Stamp of the resource content behind it, unique in this process.
    pub content: u64,
}

/// One match of one rule, and what it leads to.
#[derive(Debug)]
pub struct Rule {
    /// Unique in this process; a key for interned metric handles. Kept while the rule's content is unchanged.
    pub id: u32,
    /// Which object wrote it.
    pub source: RuleSource,
    /// When it applies.
    pub matches: Match,
    /// What then happens.
    pub action: Action,
}

/// The object behind a rule, for logs, metrics and `explain`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSource {
    /// `HTTPRoute`, or `Service` for a Service's own default.
    pub kind: Arc<str>,
    /// Namespace of the object.
    pub namespace: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// Rule name, else its index.
    pub rule: Arc<str>,
    /// `NAMESPACE/NAME` for the `route` label; empty for a Service's default.
    pub label: Arc<str>,
}

/// A conjunction; empty parts always hold.
#[derive(Clone, Debug, Default)]
pub struct Match {
    /// On the path, without query.
    pub path: PathMatch,
    /// On the method.
    pub method: Option<Method>,
    /// Each must hold; the values of a repeated header are joined by a comma.
    pub headers: Vec<(HeaderName, ValueMatch)>,
    /// Each must hold; the first value of a repeated parameter counts.
    pub query: Vec<(String, ValueMatch)>,
}

/// How a path is compared.
#[derive(Clone, Debug, Default)]
pub enum PathMatch {
    /// Any path.
    #[default]
    Any,
    /// Whole string.
    Exact(String),
    /// Element-wise prefix, stored without trailing slash (Gateway API `PathPrefix`).
    Prefix(String),
    /// Plain string prefix (Envoy `prefix`).
    StringPrefix(String),
    /// Whole string, anchored.
    Regex(regex::Regex),
}

/// How a header or query value is compared.
#[derive(Clone, Debug)]
pub enum ValueMatch {
    /// Equal, case-sensitive.
    Exact(String),
    /// Anchored regular expression.
    Regex(regex::Regex),
    /// Starts with.
    Prefix(String),
    /// Ends with.
    Suffix(String),
    /// Contains.
    Contains(String),
    /// Present with any value (`true`) or absent (`false`).
    Present(bool),
    /// The opposite of another match; holds for what is absent.
    Not(Box<ValueMatch>),
}

/// What a rule leads to.
#[derive(Debug)]
pub enum Action {
    /// To a backend.
    Forward(Arc<Forward>),
    /// An answer of the mesh's own (bad reference: 500, fixed answer).
    Reply(LocalReply),
}

/// Weighted backends and what happens on the way.
#[derive(Debug)]
pub struct Forward {
    /// Backends with their weights; a backend with weight 0 is left out.
    pub backends: Vec<Backend>,
    /// Sum of weights; 0 means 500 `bad_backend`.
    pub weight_total: u64,
    /// Stages of the rule, in order.
    pub stages: Vec<Stage>,
    /// Whole-request timeout; `None`: none.
    pub request_timeout: Option<Duration>,
    /// Idle timeout of streams and opaque connections.
    pub idle_timeout: Option<Duration>,
}

impl Forward {
    /// What a request to one of its backends passes, and its answer: the backend's stages, then the rule's, as Envoy does.
    pub fn stages<'f>(&'f self, backend: &'f Backend) -> impl Iterator<Item = &'f Stage> {
        backend.stages.iter().chain(&self.stages)
    }
}

/// One weighted target.
#[derive(Debug)]
pub struct Backend {
    /// Its weight, at least 1.
    pub weight: u64,
    /// Where it leads: a cluster, or the answer for a bad reference (so that its share of requests fails, no more).
    pub target: Target,
    /// Stages of this backend alone.
    pub stages: Vec<Stage>,
}

/// See [`Backend::target`].
#[derive(Debug)]
pub enum Target {
    /// A cluster.
    Cluster(Arc<Cluster>),
    /// A fixed answer.
    Reply(LocalReply),
}
