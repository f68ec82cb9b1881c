//! A path as a template: what looks like an id is taken together with all that stands in its place.

/// Most elements that are told apart.
const ELEMENTS_MAX: usize = 16;
/// Longest template.
const TEMPLATE_BYTES_MAX: usize = 256;
/// An element of letters and digits from this length on is an id if half of it is digits.
const MIXED_MIN: usize = 4;
/// One of hexadecimal digits and `-` from this length on is an id if there is a digit in it: hashes, UUIDs.
const HEXADECIMAL_MIN: usize = 8;
/// One with any digit from this length on: tokens.
const TOKEN_MIN: usize = 24;
/// What stands for all further elements.
const REST: &[u8] = b"/{rest=**}";

/// Appends the template of a path, at most `elements` of it, each id as `{id}`, `{id2}` and so on; nothing for what is no path.
pub(super) fn generalise(path: &[u8], elements: usize, out: &mut Vec<u8>) {
    let Some(path) = path.strip_prefix(b"/") else { return };
    let (start, mut ids) = (out.len(), 0_u8);
    for (number, element) in path.split(|byte| *byte == b'/').enumerate() {
        let long = out.len() - start + element.len() + REST.len() > TEMPLATE_BYTES_MAX;
        // Dots that nobody has resolved yet lead somewhere else.
        if number >= elements.min(ELEMENTS_MAX) || long || matches!(element, b"." | b"..") {
            out.extend_from_slice(REST);
            return;
        }
        out.push(b'/');
        if !is_id(element) {
            out.extend_from_slice(element);
            continue;
        }
        ids += 1;
        out.extend_from_slice(b"{id");
        match ids {
            1 => {}
            2..=9 => out.push(b'0' + ids),
            _ => out.extend_from_slice(&[b'0' + ids / 10, b'0' + ids % 10]),
        }
        out.push(b'}');
    }
}

/// Whether an element stands for many: numbers, hashes, tokens, and whatever cannot stand literally in a template.
fn is_id(element: &[u8]) -> bool {
    let (mut digits, mut hexadecimal) = (0, 0);
    for byte in element {
        match byte {
            b'0'..=b'9' => {
                digits += 1;
                hexadecimal += 1;
            }
            b'a'..=b'f' | b'A'..=b'F' | b'-' => hexadecimal += 1,
            b'g'..=b'z'
            | b'G'..=b'Z'
            | b'.'
            | b'_'
            | b'~'
            | b'!'
            | b'$'
            | b'&'
            | b'\''
            | b'('
            | b')'
            | b'+'
            | b','
            | b';'
            | b'='
            | b':' => {}
            // Encoded, foreign or meant for people: `%`, `@`, `{`, `*`.
            _ => return true,
        }
    }
    let all = element.len();
    digits > 0
        && (digits == all || all >= MIXED_MIN && digits * 2 >= all || all >= HEXADECIMAL_MIN && hexadecimal == all || all >= TOKEN_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(path: &str) -> String {
        let mut out = Vec::new();
        generalise(path.as_bytes(), usize::MAX, &mut out);
        String::from_utf8(out).unwrap()
    }

    /// Aim: what people name stays, what programs number is taken together, and what is no path is nothing.
    #[test]
    fn ids_are_taken_together() {
        for (path, wanted) in [
            ("/", "/"),
            ("/healthz", "/healthz"),
            ("/v1/items", "/v1/items"),
            ("/api/v2beta1/", "/api/v2beta1/"),
            ("/users/42", "/users/{id}"),
            ("/users/42/orders/7", "/users/{id}/orders/{id2}"),
            ("/files/0f8fad5b-d9cb-469f-a165-70867728950e", "/files/{id}"),
            ("/blobs/deadbeef", "/blobs/deadbeef"),
            ("/blobs/deadbeef1", "/blobs/{id}"),
            ("/orders/ord-20261129", "/orders/{id}"),
            ("/days/2026-11-29", "/days/{id}"),
            ("/mail/a@b.example", "/mail/{id}"),
            ("/find/caf%C3%A9", "/find/{id}"),
            ("/t/eyJhbGciOiJFUzI1NiJ9abcdef", "/t/{id}"),
            ("/shop.v1.Catalog/GetItem", "/shop.v1.Catalog/GetItem"),
            ("/oauth2/token", "/oauth2/token"),
            ("//a//b", "//a//b"),
            ("/a/../b", "/a/{rest=**}"),
            ("*", ""),
            ("", ""),
        ] {
            assert_eq!(template(path), wanted, "{path}");
        }
        let deep = template(&"/a".repeat(40));
        assert_eq!((deep.matches("/a").count(), deep.ends_with("/a/{rest=**}")), (ELEMENTS_MAX, true));
        assert_eq!(template(&format!("/a/{}/b", "x".repeat(300))), "/a/{rest=**}");
        assert_eq!(template(&"/7".repeat(16)).matches('{').count(), 16);
    }

    proptest::proptest! {
        /// Aim: no path makes it panic or long, and a template is one for the next.
        #[test]
        fn any_path_is_survived(path in proptest::collection::vec(proptest::num::u8::ANY, 0..600), elements in 0_usize..20) {
            let mut out = Vec::new();
            generalise(&path, elements, &mut out);
            proptest::prop_assert!(out.len() <= TEMPLATE_BYTES_MAX + REST.len());
            proptest::prop_assert!(out.is_empty() || out[0] == b'/');
        }
    }
}
