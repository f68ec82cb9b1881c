//! Changes of a path, as redirects and rewrites make them (Gateway API, `HTTPPathModifier`).

use http::uri::PathAndQuery;
use proto::mesh::path_change::Kind;

use crate::rejected::Wrong;

/// Longest path that is put in place of another, in bytes.
pub(super) const PATH_BYTES_MAX: usize = 8 << 10;

/// How a path changes. The query stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PathChange {
    /// To this.
    Full(String),
    /// Whole elements at the start; both without trailing slash.
    Prefix { matched: String, replacement: String },
}

impl PathChange {
    pub(super) fn compile(proto::mesh::PathChange { kind }: &proto::mesh::PathChange) -> Result<Self, Wrong> {
        match kind {
            None => Err(Wrong::new("kind", "is missing: full or prefix")),
            Some(Kind::Full(full)) => {
                checked(full, "full")?;
                Ok(Self::Full(full.clone()))
            }
            Some(Kind::Prefix(proto::mesh::PrefixChange { matched, replacement })) => {
                let part = |text: &str, field: &str| {
                    let text = text.trim_end_matches('/');
                    if !text.is_empty() {
                        checked(text, field).map_err(|wrong| wrong.within("prefix"))?;
                    }
                    Ok::<_, Wrong>(text.to_owned())
                };
                Ok(Self::Prefix { matched: part(matched, "matched")?, replacement: part(replacement, "replacement")? })
            }
        }
    }

    /// The path that comes of one; as it was where it does not begin with what was matched.
    pub(super) fn changed(&self, path: &str) -> String {
        match self {
            Self::Full(full) => full.clone(),
            Self::Prefix { matched, replacement } => {
                let rest = path.strip_prefix(matched.as_str()).filter(|rest| rest.is_empty() || rest.starts_with('/'));
                let Some(rest) = rest else { return path.to_owned() };
                let whole = format!("{replacement}{rest}");
                if whole.is_empty() { "/".to_owned() } else { whole }
            }
        }
    }

    pub(super) fn story(&self) -> String {
        let rooted = |text: &str| if text.is_empty() { "/".to_owned() } else { text.to_owned() };
        match self {
            Self::Full(full) => format!("path {full}"),
            Self::Prefix { matched, replacement } => format!("{} for {} in the path", rooted(replacement), rooted(matched)),
        }
    }
}

/// A path by itself: rooted, without query, and of characters that a request line may have.
fn checked(path: &str, field: &str) -> Result<(), Wrong> {
    let fits = path.starts_with('/') && !path.contains(['?', '#']) && path.bytes().all(|byte| byte.is_ascii_graphic());
    if !fits || path.len() > PATH_BYTES_MAX || PathAndQuery::try_from(path).is_err() {
        return Err(Wrong::new(field, format!("`{}` is not a path: it starts with `/` and has no query", path.escape_debug())));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn prefix(matched: &str, replacement: &str) -> PathChange {
        let change = proto::mesh::PrefixChange { matched: matched.into(), replacement: replacement.into() };
        PathChange::compile(&proto::mesh::PathChange { kind: Some(Kind::Prefix(change)) }).unwrap()
    }

    #[test]
    fn prefixes_are_replaced_element_by_element() {
        // Aim: Gateway API's own table, and paths that the rule did not mean.
        for (path, matched, replacement, wanted) in [
            ("/foo/bar", "/foo", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo", "/xyz/", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz", "/xyz/bar"),
            ("/foo/bar", "/foo/", "/xyz/", "/xyz/bar"),
            ("/foo", "/foo", "/xyz", "/xyz"),
            ("/foo/", "/foo", "/xyz", "/xyz/"),
            ("/foo/bar", "/foo", "", "/bar"),
            ("/foo/bar", "/foo", "/", "/bar"),
            ("/foo/", "/foo", "", "/"),
            ("/foo", "/foo", "", "/"),
            ("/foo/", "/foo", "/", "/"),
            ("/foo", "/foo", "/", "/"),
            ("/bar", "/", "/xyz", "/xyz/bar"),
            ("/", "/", "/xyz", "/xyz/"),
            ("/foobar", "/foo", "/xyz", "/foobar"),
            ("/a/foo", "/foo", "/xyz", "/a/foo"),
            ("/foo%2Fbar/x", "/foo%2Fbar", "/y", "/y/x"),
        ] {
            assert_eq!(prefix(matched, replacement).changed(path), wanted, "{path}: {matched} to {replacement}");
        }
        let full = PathChange::compile(&proto::mesh::PathChange { kind: Some(Kind::Full("/one/".into())) }).unwrap();
        assert_eq!(full.changed("/foo/bar"), "/one/");
    }

    #[test]
    fn what_is_no_path_is_refused() {
        // Aim: a change cannot bring in a query, a fragment, a line or another host.
        let long = format!("/{}", "a".repeat(PATH_BYTES_MAX));
        for text in ["", "a", "/a?b", "/a#b", "/a b", "/a\r\nx: y", "/ä", &long] {
            let kind = Some(Kind::Full(text.to_owned()));
            assert!(PathChange::compile(&proto::mesh::PathChange { kind }).is_err(), "{text}");
            let change = proto::mesh::PrefixChange { matched: "/a".into(), replacement: text.to_owned() };
            let kind = Some(Kind::Prefix(change));
            assert_eq!(PathChange::compile(&proto::mesh::PathChange { kind }).is_err(), !text.is_empty(), "{text}");
        }
        assert!(PathChange::compile(&proto::mesh::PathChange { kind: None }).is_err());
    }
}
