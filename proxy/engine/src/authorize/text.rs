//! Texts that a rule compares with: whole, or with `*` at one end.

use super::hash::Set;

/// Of more exact texts than this a set is asked instead of each.
const FEW: usize = 8;

/// One text of a list.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum TextPattern {
    /// `*` alone.
    Any,
    Exact(Box<str>),
    /// Begins so.
    Prefix(Box<str>),
    /// Ends so, after at least one letter more.
    Suffix(Box<str>),
}

impl TextPattern {
    /// `*` at one end stands for anything. `None`: it stands elsewhere too, or the text is empty.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let pattern = match (text.strip_prefix('*'), text.strip_suffix('*')) {
            _ if text.is_empty() => return None,
            (Some(""), _) => Self::Any,
            (Some(_), Some(_)) => return None,
            (Some(rest), None) => Self::Suffix(rest.into()),
            (None, Some(rest)) => Self::Prefix(rest.into()),
            (None, None) => Self::Exact(text.into()),
        };
        let inner = match &pattern {
            Self::Any => "",
            Self::Exact(text) | Self::Prefix(text) | Self::Suffix(text) => text,
        };
        (!inner.contains('*')).then_some(pattern)
    }

    fn holds(&self, text: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::Suffix(suffix) => text.len() > suffix.len() && text.ends_with(&**suffix),
        }
    }
}

/// A list, of which one must hold. An empty one always holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Texts {
    /// All, where there are few exact ones; else those with a `*`.
    listed: Vec<TextPattern>,
    exact: Set<Box<str>>,
    all: Vec<TextPattern>,
}

impl Texts {
    pub(super) fn new(all: Vec<TextPattern>) -> Self {
        let is_exact = |pattern: &&TextPattern| matches!(pattern, TextPattern::Exact(_));
        if all.iter().filter(is_exact).count() <= FEW {
            return Self { listed: all.clone(), exact: Set::default(), all };
        }
        let mut texts = Self::default();
        for pattern in &all {
            match pattern {
                TextPattern::Exact(text) => drop(texts.exact.insert(text.clone())),
                other => texts.listed.push(other.clone()),
            }
        }
        Self { all, ..texts }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(super) fn all(&self) -> &[TextPattern] {
        &self.all
    }

    /// Whether one of them holds for a text, if there are any.
    pub(super) fn hold(&self, text: &str) -> bool {
        self.is_empty() || self.exact.contains(text) || self.listed.iter().any(|pattern| pattern.holds(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_at_one_end_only() {
        // Aim: what each form holds for, and what is no form.
        let rows = [
            ("*", "anything", true),
            ("a", "a", true),
            ("a", "ab", false),
            ("a*", "ab", true),
            ("a*", "ba", false),
            ("*/sa/checkout", "spiffe://td/ns/a/sa/checkout", true),
            ("*/sa/checkout", "/sa/checkout", false),
            ("*/sa/checkout", "spiffe://td/ns/a/sa/checkout2", false),
        ];
        for (pattern, text, wanted) in rows {
            let texts = Texts::new(vec![TextPattern::parse(pattern).unwrap()]);
            assert_eq!(texts.hold(text), wanted, "{pattern} {text}");
        }
        for bad in ["", "*a*", "a*b", "**", "*a*b"] {
            assert_eq!(TextPattern::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn many_are_asked_like_few() {
        // Aim: beyond the number that is walked the answer is the same.
        let mut all: Vec<TextPattern> = (0..100).map(|n| TextPattern::Exact(n.to_string().into())).collect();
        all.push(TextPattern::Suffix("x".into()));
        let texts = Texts::new(all);
        assert!(texts.hold("77") && texts.hold("7x") && !texts.hold("100"));
    }
}
