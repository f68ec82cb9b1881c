//! Why a resource was refused: the words that the NACK, `get objects` and the log print.

/// A resource that this proxy cannot run. Only this one is refused; its last good content stays in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Type URL of the resource.
    pub type_url: String,
    /// Name of the resource.
    pub name: String,
    /// Path of the field at fault, e.g. `virtual_hosts[0].routes[2].match.safe_regex`; empty when the whole is at fault.
    pub field: String,
    /// What is wrong with it, and where it helps, what would be right.
    pub why: String,
}

impl Rejected {
    /// The type without its package: `Listener`, `RouteConfiguration`, …
    pub fn short_type(&self) -> &str {
        self.type_url.rsplit(['.', '/']).next().unwrap_or(&self.type_url)
    }
}

impl std::fmt::Display for Rejected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}: ", self.short_type(), self.name)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.why)
    }
}

impl std::error::Error for Rejected {}

/// A fault inside a resource, on its way up: every level puts its own field name in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wrong {
    field: String,
    why: String,
}

impl Wrong {
    pub(crate) fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self { field: field.into(), why: why.into() }
    }

    /// A field that the published schema has and this proxy does not carry out.
    pub(crate) fn unsupported(field: impl Into<String>) -> Self {
        Self::new(field, "is not supported by this proxy")
    }

    /// Names the level that holds the field.
    pub(crate) fn within(mut self, outer: impl std::fmt::Display) -> Self {
        self.field = if self.field.is_empty() { outer.to_string() } else { format!("{outer}.{}", self.field) };
        self
    }

    /// For whoever has no resource to name.
    pub(crate) fn text(self) -> String {
        if self.field.is_empty() { self.why } else { format!("{}: {}", self.field, self.why) }
    }

    pub(crate) fn of(self, type_url: &str, name: &str) -> Rejected {
        Rejected { type_url: type_url.to_owned(), name: name.to_owned(), field: self.field, why: self.why }
    }
}

/// Refuses `field` when `set` is true.
pub(crate) fn refuse(set: bool, field: &str) -> Result<(), Wrong> {
    if set { Err(Wrong::unsupported(field)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_names_type_object_field_and_reason() {
        // Aim: the text that people read in a NACK holds all four parts, and no empty one.
        let wrong = Wrong::new("regex", "too long").within("match").within("routes[2]");
        let rejected = wrong.of(proto::xds::ROUTE, "shop/catalog:80");
        assert_eq!(rejected.to_string(), "RouteConfiguration shop/catalog:80: routes[2].match.regex: too long");
        assert_eq!(Wrong::new("", "malformed").of(proto::xds::CLUSTER, "a").to_string(), "Cluster a: malformed");
    }
}
