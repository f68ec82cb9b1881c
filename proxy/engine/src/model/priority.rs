//! Classes of requests: who goes first where a cluster is full.

use http::{HeaderMap, HeaderName};

use crate::rejected::Wrong;

/// Most classes of one policy.
pub const CLASSES_MAX: usize = 16;

/// Reads a request's class off a header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Priority {
    header: HeaderName,
    classes: Vec<String>,
    default: u8,
}

impl Priority {
    pub(crate) fn compile(raw: &proto::mesh::Priority) -> Result<Self, Wrong> {
        let proto::mesh::Priority { header, classes, default_class } = raw;
        let header = header.parse().map_err(|_| Wrong::new("header", format!("`{}` is not a header name", header.escape_debug())))?;
        if classes.is_empty() || classes.len() > CLASSES_MAX {
            return Err(Wrong::new("classes", format!("holds {} of 1 to {CLASSES_MAX} classes", classes.len())));
        }
        if let Some(twice) = classes.iter().enumerate().find(|(place, class)| classes.iter().take(*place).any(|other| other == *class)) {
            return Err(Wrong::new(format!("classes[{}]", twice.0), format!("`{}` is listed twice", twice.1.escape_debug())));
        }
        let default = u8::try_from(*default_class).ok().filter(|class| usize::from(*class) < classes.len());
        let default = default.ok_or_else(|| Wrong::new("default_class", format!("{default_class} is no place in classes")))?;
        Ok(Self { header, classes: classes.clone(), default })
    }

    /// The class of a request: 0 is the highest. Who names none, or one that there is not, is of the default class.
    pub fn class(&self, headers: &HeaderMap) -> u8 {
        let named = headers.get(&self.header);
        let place = named.and_then(|named| self.classes.iter().position(|class| class.as_bytes() == named.as_bytes()));
        place.and_then(|place| u8::try_from(place).ok()).unwrap_or(self.default)
    }

    /// What it does, in words.
    pub fn story(&self) -> String {
        format!("by header {}: {}", self.header, self.classes.join(", then "))
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn classes_are_read_off_the_header() {
        // Aim: the place in the list, the default for all else; lists that make no sense are refused.
        let raw = proto::mesh::Priority {
            header: "x-priority".into(),
            classes: ["high", "normal", "low"].map(String::from).to_vec(),
            default_class: 1,
        };
        let priority = Priority::compile(&raw).unwrap();
        for (text, class) in [(Some("high"), 0), (Some("low"), 2), (Some("High"), 1), (None, 1)] {
            let headers: HeaderMap =
                text.map(|text| (HeaderName::from_static("x-priority"), HeaderValue::from_static(text))).into_iter().collect();
            assert_eq!(priority.class(&headers), class, "{text:?}");
        }
        for bad in [
            proto::mesh::Priority { header: String::new(), ..raw.clone() },
            proto::mesh::Priority { classes: Vec::new(), default_class: 0, ..raw.clone() },
            proto::mesh::Priority { classes: vec!["a".into(), "a".into()], ..raw.clone() },
            proto::mesh::Priority { classes: (0..=CLASSES_MAX).map(|n| n.to_string()).collect(), ..raw.clone() },
            proto::mesh::Priority { default_class: 3, ..raw.clone() },
        ] {
            assert!(Priority::compile(&bad).is_err(), "{bad:?}");
        }
    }
}
