//! The text of a NACK between our own ends: one refused resource a line. Written and read here only, so that what a proxy says is
//! what the control plane's book holds.

/// Longest text; what does not fit is counted in a last line.
pub const NACK_BYTES_MAX: usize = 4 << 10;
/// Longest line, so that one reason leaves room for others.
const LINE_BYTES_MAX: usize = 1 << 10;
/// Room kept for the last line.
const REST_BYTES_MAX: usize = 64;
/// Begins the line that counts what did not fit.
const REST: &str = "… and ";

/// One resource that is not in force, and why.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// The resource, type first: `RouteConfiguration shop/catalog:80`. Empty where the other end names none.
    pub resource: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Writes refusals (each as `TYPE NAME: reason`, see [`Refusal`]) as one text of at most [`NACK_BYTES_MAX`] bytes. Line breaks within
/// one become spaces. Not empty, whatever is given: an empty text would be no reason.
pub fn write<'a>(refusals: impl IntoIterator<Item = &'a str>) -> String {
    let (mut text, mut left) = (String::new(), 0_usize);
    for refusal in refusals {
        let line = one_line(refusal);
        if left > 0 || text.len() + line.len() + 1 > NACK_BYTES_MAX - REST_BYTES_MAX {
            left += 1;
            continue;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&line);
    }
    if left > 0 {
        text.push_str(&format!("\n{REST}{left} more"));
    }
    if text.is_empty() { "refused without a reason".to_owned() } else { text }
}

/// Reads what [`write()`] wrote; never empty. Other texts (stock clients') are refusals without a resource.
pub fn read(text: &str) -> Vec<Refusal> {
    let lines: Vec<Refusal> = text.lines().map(str::trim).filter(|line| !line.is_empty()).map(read_one).collect();
    if lines.is_empty() { vec![read_one("refused without a reason")] } else { lines }
}

fn read_one(line: &str) -> Refusal {
    // `TYPE NAME: reason`; a type is one word, and no name of a resource holds a space.
    let named = line.split_once(": ").filter(|(resource, _)| resource.split(' ').count() == 2 && !line.starts_with(REST));
    let (resource, reason) = named.unwrap_or(("", line));
    Refusal { resource: resource.to_owned(), reason: reason.to_owned() }
}

/// The text without breaks, cut at its bound.
fn one_line(text: &str) -> String {
    let words: Vec<&str> =
        text.split(|letter: char| letter.is_control() || letter.is_whitespace()).filter(|word| !word.is_empty()).collect();
    let mut line = words.join(" ");
    if line.len() > LINE_BYTES_MAX {
        line.truncate(line.floor_char_boundary(LINE_BYTES_MAX - '…'.len_utf8()));
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(resource: &str, reason: &str) -> Refusal {
        Refusal { resource: resource.to_owned(), reason: reason.to_owned() }
    }

    /// Aim: several refusals stay several, also where a reason has `; `, colons or line breaks of its own.
    #[test]
    fn two_refusals_stay_two() {
        let text =
            write(["RouteConfiguration shop/catalog:80: routes[2].match.regex: bad; very\n    ^^^ bad", "Cluster x: unknown policy"]);
        let wanted = [
            refusal("RouteConfiguration shop/catalog:80", "routes[2].match.regex: bad; very ^^^ bad"),
            refusal("Cluster x", "unknown policy"),
        ];
        assert_eq!(read(&text), wanted);
    }

    /// Aim: a text stays within its bound, holds every refusal that fits, and counts the others.
    #[test]
    fn what_does_not_fit_is_counted() {
        let many: Vec<String> = (0..1000).map(|number| format!("Cluster shop/c{number}:80: no")).collect();
        let text = write(many.iter().map(String::as_str));
        assert!(text.len() <= NACK_BYTES_MAX && text.len() > NACK_BYTES_MAX / 2, "{}", text.len());
        let read_back = read(&text);
        let (rest, named) = read_back.split_last().unwrap();
        assert_eq!(rest, &refusal("", &format!("… and {} more", 1000 - named.len())));
        assert!(named.iter().all(|refusal| refusal.reason == "no"));
        let long = format!("Cluster a: {}", "é".repeat(NACK_BYTES_MAX));
        let text = write([long.as_str(), "Cluster b: no"]);
        assert_eq!(read(&text).iter().map(|refusal| refusal.resource.as_str()).collect::<Vec<_>>(), ["Cluster a", "Cluster b"]);
    }

    /// Aim: nothing said, or said by somebody else, is still a refusal with words.
    #[test]
    fn a_refusal_without_form_has_words() {
        assert_eq!(read(""), [refusal("", "refused without a reason")]);
        assert_eq!(read(&write([])), [refusal("", "refused without a reason")]);
        assert_eq!(read("Error adding/updating cluster(s) a: b"), [refusal("", "Error adding/updating cluster(s) a: b")]);
    }

    proptest::proptest! {
        /// Aim: what is written is read back, line for line, and no text makes the reader panic.
        #[test]
        fn what_is_written_is_read(names in proptest::collection::vec(("[A-Z][a-z]{1,9}", "[a-z0-9/:@.]{1,20}", "[a-z;,: ]{0,20}[a-z]"), 1..9), noise in "\\PC{0,80}") {
            let lines: Vec<String> = names.iter().map(|(kind, name, reason)| one_line(&format!("{kind} {name}: {reason}"))).collect();
            let back: Vec<String> = read(&write(lines.iter().map(String::as_str))).iter().map(|refusal| format!("{}: {}", refusal.resource, refusal.reason)).collect();
            proptest::prop_assert_eq!(back, lines);
            proptest::prop_assert!(!read(&noise).is_empty());
        }
    }
}
