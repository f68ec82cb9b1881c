//! Paths that a rule asks for, judged as they are sent on: dot segments are resolved by then, everything else is as it came.

/// One path of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum PathPattern {
    /// `/` as a prefix.
    Any,
    Exact(Box<str>),
    /// Element by element; stored without trailing slash.
    Prefix(Box<str>),
    /// Ends so.
    Suffix(Box<str>),
    Template(Template),
}

/// A path with places for elements of any name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Template {
    elements: Box<[Element]>,
    /// All that follows is taken, too.
    open: bool,
    /// The whole elements before the first place.
    pub(super) known: Box<str>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Element {
    Named(Box<str>),
    Place,
}

/// Why a text is no path of its kind.
pub(super) type Why = &'static str;

const NO_PATH: Why = "does not start with `/`";
const QUERY: Why = "holds a query or fragment, which are not judged";
const PLACE: Why = "is no template: `{name}` stands for a whole element, and `{name=**}` for all that follow, at the end";

impl PathPattern {
    pub(super) fn exact(text: &str) -> Result<Self, Why> {
        rooted(text)?;
        Ok(Self::Exact(text.into()))
    }

    pub(super) fn prefix(text: &str) -> Result<Self, Why> {
        rooted(text)?;
        Ok(match text.trim_end_matches('/') {
            "" => Self::Any,
            elements => Self::Prefix(elements.into()),
        })
    }

    pub(super) fn suffix(text: &str) -> Result<Self, Why> {
        if text.is_empty() {
            return Err("is empty");
        }
        if text.contains(['?', '#']) {
            return Err(QUERY);
        }
        Ok(Self::Suffix(text.into()))
    }

    pub(super) fn template(text: &str) -> Result<Self, Why> {
        rooted(text)?;
        let mut elements = Vec::new();
        let mut open = false;
        for element in text.split('/').skip(1) {
            if open {
                return Err(PLACE);
            }
            match place(element)? {
                Some(Place::One) => elements.push(Element::Place),
                Some(Place::Rest) => open = true,
                None => elements.push(Element::Named(element.into())),
            }
        }
        let named = elements.iter().map_while(|element| match element {
            Element::Named(name) => Some(&**name),
            Element::Place => None,
        });
        let known = named.fold(String::new(), |known, name| known + "/" + name);
        Ok(Self::Template(Template { elements: elements.into(), open, known: known.into() }))
    }

    pub(super) fn holds(&self, path: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => path.strip_prefix(&**prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Suffix(suffix) => path.ends_with(&**suffix),
            Self::Template(template) => template.holds(path),
        }
    }
}

enum Place {
    One,
    Rest,
}

/// What an element of a template stands for; `None`: itself.
fn place(element: &str) -> Result<Option<Place>, Why> {
    if !element.contains(['{', '}']) {
        return Ok(None);
    }
    let inner = element.strip_prefix('{').and_then(|rest| rest.strip_suffix('}')).ok_or(PLACE)?;
    let (name, place) = match inner.strip_suffix("=**") {
        Some(name) => (name, Place::Rest),
        None => (inner, Place::One),
    };
    let good = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if good { Ok(Some(place)) } else { Err(PLACE) }
}

impl Template {
    fn holds(&self, path: &str) -> bool {
        let Some(mut rest) = path.strip_prefix('/') else { return false };
        let mut elements = self.elements.iter().peekable();
        while let Some(element) = elements.next() {
            let (first, after) = match rest.split_once('/') {
                Some((first, after)) => (first, Some(after)),
                None => (rest, None),
            };
            let met = match element {
                Element::Named(name) => first == &**name,
                Element::Place => !first.is_empty(),
            };
            let last = elements.peek().is_none() && !self.open;
            match (met, after) {
                (false, _) => return false,
                (true, None) => return last,
                (true, Some(_)) if last => return false,
                (true, Some(after)) => rest = after,
            }
        }
        self.open
    }
}

fn rooted(text: &str) -> Result<(), Why> {
    if !text.starts_with('/') {
        return Err(NO_PATH);
    }
    if text.contains(['?', '#']) {
        return Err(QUERY);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    type Make = fn(&str) -> Result<PathPattern, Why>;

    #[test]
    fn each_kind_holds_for_its_paths() {
        // Aim: elements are never split, a place is one element that is there, and an open template begins after its slash.
        let [exact, prefix, suffix, template]: [Make; 4] =
            [PathPattern::exact, PathPattern::prefix, PathPattern::suffix, PathPattern::template];
        let rows: [(Make, &str, &[&str], &[&str]); 9] = [
            (exact, "/a", &["/a"], &["/a/", "/A", "/ab"]),
            (prefix, "/v1/", &["/v1", "/v1/", "/v1/x"], &["/v1x", "/v", "/V1", "//v1"]),
            (prefix, "/", &["/", "/x", "*", ""], &[]),
            (suffix, ".png", &["/a.png", "/.png"], &["/a.png/", "/a.PNG"]),
            (template, "/users/{id}", &["/users/7", "/users/%2F"], &["/users/", "/users", "/users/7/", "/users/7/x", "/user/7"]),
            (template, "/users/{id}/posts", &["/users/7/posts"], &["/users//posts", "/users/7/posts/", "/users/posts"]),
            (template, "/a/{rest=**}", &["/a/", "/a/b", "/a/b/c"], &["/a", "/ab/c"]),
            (template, "/{any}/b/{rest=**}", &["/x/b/", "/x/b/c"], &["/x/b", "//b/c"]),
            (template, "/a", &["/a"], &["/a/", "/"]),
        ];
        for (make, text, yes, no) in rows {
            let pattern = make(text).unwrap();
            for path in yes {
                assert!(pattern.holds(path), "{text} {path}");
            }
            for path in no {
                assert!(!pattern.holds(path), "{text} {path}");
            }
        }
    }

    #[test]
    fn what_is_no_path_is_refused() {
        // Aim: patterns that are no path, or no template, are no silent gaps in a policy.
        for bad in ["a", "/a?b", "/a#b", ""] {
            assert!(PathPattern::exact(bad).is_err() && PathPattern::prefix(bad).is_err() && PathPattern::template(bad).is_err(), "{bad}");
        }
        for bad in ["/a{b}", "/{}", "/{a=*}", "/{a=**}/b", "/{a", "/a}", "/{a b}", "/{a=**}/{b}"] {
            assert_eq!(PathPattern::template(bad), Err(PLACE), "{bad}");
        }
        assert!(PathPattern::suffix("").is_err() && PathPattern::suffix("?x").is_err());
    }
}
