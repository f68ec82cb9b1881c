//! Paths that a rule asks for, judged as they are sent on: dot segments are resolved by then, everything else is as it came. What lets somebody
//! in holds for no path that an application may read as another one.

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

    /// `widens`: holding lets somebody in, so that what follows the text of a pattern must stay below it for every reader.
    pub(super) fn holds(&self, path: &str, widens: bool) -> bool {
        match self {
            Self::Any => true,
            Self::Exact(exact) => path == &**exact,
            Self::Prefix(prefix) => {
                let rest = path.strip_prefix(&**prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'));
                rest.is_some_and(|rest| !(widens && climbs(rest)))
            }
            Self::Suffix(suffix) => path.ends_with(&**suffix),
            Self::Template(template) => template.holds(path) && !(widens && path.get(template.known.len()..).is_some_and(climbs)),
        }
    }
}

/// Whether an application may read a step upwards, or to the same place, where nothing on the way resolved one: dots with a parameter behind
/// them (`..;a=b`), or beside a separator that is encoded or a backslash (`..%2f`, `x%5c..`).
fn climbs(path: &str) -> bool {
    let mut rest = path.as_bytes();
    loop {
        let (end, next) = separator(rest);
        let part = &rest[..end];
        let name = part.iter().position(|byte| *byte == b';').map_or(part, |end| &part[..end]);
        if is_dots(name) {
            return true;
        }
        match next {
            Some(next) => rest = &rest[next..],
            None => return false,
        }
    }
}

/// Where the first part ends, and where the next begins.
fn separator(path: &[u8]) -> (usize, Option<usize>) {
    for (at, byte) in path.iter().enumerate() {
        match byte {
            b'/' | b'\\' => return (at, Some(at + 1)),
            b'%' if matches!(path.get(at + 1..at + 3), Some([b'2', b'f' | b'F'] | [b'5', b'c' | b'C'])) => return (at, Some(at + 3)),
            _ => {}
        }
    }
    (path.len(), None)
}

/// `.` or `..`, each plain or as `%2e`.
fn is_dots(part: &[u8]) -> bool {
    let mut rest = part;
    for _ in 0..2 {
        rest = match rest {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return false,
        };
        if rest.is_empty() {
            return true;
        }
    }
    false
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
                assert!(pattern.holds(path, true) && pattern.holds(path, false), "{text} {path}");
            }
            for path in no {
                assert!(!pattern.holds(path, true) && !pattern.holds(path, false), "{text} {path}");
            }
        }
    }

    #[test]
    fn what_may_lead_elsewhere_lets_nobody_in() {
        // Aim: a path that some application resolves to another one meets what denies and not what allows; an exact text is what it says.
        let prefix = PathPattern::prefix("/public").unwrap();
        let [one, rest] = ["/public/{id}", "/public/{rest=**}"].map(|text| PathPattern::template(text).unwrap());
        for path in [
            "/public/..%2fadmin",
            "/public/..%2F..%2fadmin",
            "/public/x%2f..%2f..%2fadmin",
            "/public/..%5cadmin",
            "/public/..\\..\\admin",
            "/public/%2e%2E%2fadmin",
            "/public/..;",
            "/public/.;a=b",
        ] {
            for pattern in [&prefix, &one, &rest] {
                assert!(!pattern.holds(path, true) && pattern.holds(path, false), "{pattern:?} {path}");
            }
        }
        assert!(!prefix.holds("/public/..;/admin", true) && !rest.holds("/public/a/..;x/admin", true));
        for path in
            ["/public/a;b=..", "/public/a..;b", "/public/...;a", "/public/%2fa", "/public/..a%2fb", "/public/a%5cb", "/public/%252e%252e"]
        {
            assert!(prefix.holds(path, true) && one.holds(path, true) && rest.holds(path, true), "{path}");
        }
        assert!(PathPattern::exact("/a/..;/b").unwrap().holds("/a/..;/b", true) && PathPattern::prefix("/").unwrap().holds("/..;/b", true));
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
