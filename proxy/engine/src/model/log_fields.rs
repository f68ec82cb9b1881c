//! A JSON line of chosen fields: which, in what order, and what stands around them. Compiled once, where it is configured.

use super::log_field::{LogField, LogPiece, unknown};

/// Most fields of a line.
pub const LOG_FIELDS_MAX: usize = 64;

/// Objects of a line that may be named whole, and their fields.
const WHOLE: [(&str, &[&str]); 3] = [
    ("source", &["namespace", "workload", "identity", "address"]),
    ("destination", &["namespace", "service", "workload", "identity", "address"]),
    ("mtls", &["version", "cipher", "group"]),
];

/// The fields of a line in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFields {
    pieces: Vec<LogPiece>,
}

impl LogFields {
    /// JSON as it stands, and between it the fields, which are written as JSON values.
    pub fn pieces(&self) -> &[LogPiece] {
        &self.pieces
    }

    /// Names that may be asked for.
    pub fn names() -> impl Iterator<Item = &'static str> {
        LogField::ALL.iter().map(|(name, _)| *name).chain(WHOLE.iter().map(|(name, _)| *name))
    }

    /// Reads names of fields, those within an object with a dot. An object stands where the first of its fields is named.
    ///
    /// # Errors
    /// What is wrong, in words: a name that is none, one that is named twice, none at all, or too many.
    pub fn parse<'n>(names: impl IntoIterator<Item = &'n str>) -> Result<Self, String> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut count = 0;
        for name in names {
            count += 1;
            if count > LOG_FIELDS_MAX {
                return Err(format!("there are more than {LOG_FIELDS_MAX} fields"));
            }
            match WHOLE.iter().find(|(whole, _)| *whole == name) {
                Some((whole, members)) => {
                    members.iter().try_for_each(|member| add(&mut entries, &format!("{whole}.{member}")))?;
                }
                None => add(&mut entries, name)?,
            }
        }
        if entries.is_empty() {
            return Err("there are no fields, and every line would be empty".to_owned());
        }
        Ok(Self { pieces: pieces(&entries) })
    }
}

/// A member of the line's object, or an object within it.
enum Entry {
    One(&'static str, LogField),
    Within(&'static str, Vec<(&'static str, LogField)>),
}

fn add(entries: &mut Vec<Entry>, name: &str) -> Result<(), String> {
    let (name, field) = LogField::ALL.iter().find(|(known, _)| *known == name).ok_or_else(|| unknown(name))?;
    let twice = || Err(format!("`{name}` is named twice"));
    let Some((object, member)) = name.split_once('.') else {
        if entries.iter().any(|entry| matches!(entry, Entry::One(other, _) if other == name)) {
            return twice();
        }
        entries.push(Entry::One(name, *field));
        return Ok(());
    };
    let within = entries.iter_mut().find_map(|entry| match entry {
        Entry::Within(other, members) if *other == object => Some(members),
        _ => None,
    });
    match within {
        Some(members) if members.iter().any(|(other, _)| *other == member) => return twice(),
        Some(members) => members.push((member, *field)),
        None => entries.push(Entry::Within(object, vec![(member, *field)])),
    }
    Ok(())
}

fn pieces(entries: &[Entry]) -> Vec<LogPiece> {
    let (mut pieces, mut literal) = (Vec::new(), String::new());
    let mut put = |literal: &mut String, name: &str, field: LogField| {
        literal.push_str(&format!("\"{name}\":"));
        pieces.push(LogPiece::Literal(std::mem::take(literal).into()));
        pieces.push(LogPiece::Field(field));
    };
    for (number, entry) in entries.iter().enumerate() {
        literal.push(if number == 0 { '{' } else { ',' });
        match entry {
            Entry::One(name, field) => put(&mut literal, name, *field),
            Entry::Within(object, members) => {
                literal.push_str(&format!("\"{object}\":"));
                for (number, (name, field)) in members.iter().enumerate() {
                    literal.push(if number == 0 { '{' } else { ',' });
                    put(&mut literal, name, *field);
                }
                literal.push('}');
            }
        }
    }
    literal.push('}');
    pieces.push(LogPiece::Literal(literal.into()));
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(names: &[&str]) -> Result<String, String> {
        let fields = LogFields::parse(names.iter().copied())?;
        let piece = |piece: &LogPiece| match piece {
            LogPiece::Literal(text) => text.to_string(),
            LogPiece::Field(field) => format!("<{field:?}>"),
        };
        Ok(fields.pieces().iter().map(piece).collect())
    }

    /// Aim: fields come in the order in which they are named, those of one object together, and whatever is wrong is told in words.
    #[test]
    fn fields_are_read_once() {
        assert_eq!(shown(&["status", "method"]).unwrap(), r#"{"status":<Status>,"method":<Method>}"#);
        assert_eq!(
            shown(&["time", "source.workload", "path", "source.namespace"]).unwrap(),
            r#"{"time":<Time>,"source":{"workload":<SourceWorkload>,"namespace":<SourceNamespace>},"path":<Path>}"#
        );
        assert_eq!(shown(&["mtls"]).unwrap(), r#"{"mtls":{"version":<TlsVersion>,"cipher":<TlsCipher>,"group":<TlsGroup>}}"#);
        let many = vec!["status"; LOG_FIELDS_MAX + 1];
        for (names, wanted) in [
            (&[][..], "no fields"),
            (&["statuz"][..], "`statuz` is no field"),
            (&["workload"][..], "did you mean `source.workload`?"),
            (&["status", "status"][..], "named twice"),
            (&["source", "source.workload"][..], "named twice"),
            (&["destination.workload", "destination"][..], "named twice"),
            (&many, "named twice"),
        ] {
            let told = shown(names).unwrap_err();
            assert!(told.contains(wanted), "{names:?}: {told}");
        }
        let all: Vec<&str> = LogField::ALL.iter().map(|(name, _)| *name).collect();
        assert!(shown(&all).is_ok());
        assert_eq!(LogFields::names().count(), LogField::ALL.len() + WHOLE.len());
    }
}
