//! The words of a match, how one is read, whether it holds for a request, and which of many holds first.

pub(crate) mod compile;
mod head;
mod holds;
mod index;

use http::{HeaderName, Method};

pub(crate) use head::plain_host;
pub use head::{RequestHead, without_port};
pub(crate) use holds::{Miss, decoded, header, header_of_policy, matches, misses, parameter, path};
pub(crate) use index::Index;

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
