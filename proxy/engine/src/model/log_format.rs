//! The access log's form: which fields of an exchange make a line, and what stands between them. Compiled once, where it is configured.

use std::sync::Arc;

use super::log_field::{LogField, LogPiece, unknown};
use super::log_fields::LogFields;

/// Longest template, in bytes.
pub const TEMPLATE_BYTES_MAX: usize = 4096;
/// Most fields and texts of a template.
const PIECES_MAX: usize = 128;

/// The form of a line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line, all fields in their order.
    #[default]
    Json,
    /// One JSON object a line, of some fields.
    Fields(Arc<LogFields>),
    /// As Apache's and nginx's `combined`.
    Combined,
    /// By a template.
    Text(Arc<LogTemplate>),
}

impl LogFormat {
    /// Whether a line says where the client came from (`Referer`), which most lines do not.
    pub fn tells_referer(&self) -> bool {
        match self {
            Self::Json => false,
            Self::Combined => true,
            Self::Fields(fields) => fields.pieces().contains(&LogPiece::Field(LogField::Referer)),
            Self::Text(template) => template.pieces.contains(&LogPiece::Field(LogField::Referer)),
        }
    }
}

/// A line's text with places for fields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogTemplate {
    pieces: Vec<LogPiece>,
}

impl LogTemplate {
    /// Its parts in order.
    pub fn pieces(&self) -> &[LogPiece] {
        &self.pieces
    }

    /// Reads `{field}` between texts; `{{` and `}}` are braces.
    ///
    /// # Errors
    /// What is wrong with it, in words: a field that is none, a brace that is left open, a line's end in it, or it is empty or too long.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("it is empty, and every line would be".to_owned());
        }
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(format!("it has {} bytes, which is more than {TEMPLATE_BYTES_MAX}", text.len()));
        }
        if text.chars().any(|one| one.is_control() && one != '\t') {
            return Err("it holds a line's end or another control character: a line of the log is one line".to_owned());
        }
        let (mut pieces, mut literal) = (Vec::new(), String::new());
        let mut rest = text.chars();
        while let Some(one) = rest.next() {
            let doubled = rest.as_str().starts_with(one);
            match one {
                '{' | '}' if doubled => {
                    rest.next();
                    literal.push(one);
                }
                '{' => {
                    let (name, behind) = rest.as_str().split_once('}').ok_or("a `{` is never closed; a brace is written `{{`")?;
                    let field = LogField::of(name).ok_or_else(|| unknown(name))?;
                    rest = behind.chars();
                    if !literal.is_empty() {
                        pieces.push(LogPiece::Literal(std::mem::take(&mut literal).into()));
                    }
                    pieces.push(LogPiece::Field(field));
                }
                '}' => return Err("a `}` closes nothing; a brace is written `}}`".to_owned()),
                other => literal.push(other),
            }
        }
        if !literal.is_empty() {
            pieces.push(LogPiece::Literal(literal.into()));
        }
        match pieces.len() {
            0..=PIECES_MAX => Ok(Self { pieces }),
            more => Err(format!("it has {more} fields and texts, which is more than {PIECES_MAX}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: fields and texts come out in order, doubled braces are braces, and whatever is wrong is told in words.
    #[test]
    fn a_template_is_read_once() {
        let template = LogTemplate::parse("{{{method}}} {path}{status}\t\"é\"").unwrap();
        let literal = |text: &str| LogPiece::Literal(text.into());
        let wanted = [
            literal("{"),
            LogPiece::Field(LogField::Method),
            literal("} "),
            LogPiece::Field(LogField::Path),
            LogPiece::Field(LogField::Status),
            literal("\t\"é\""),
        ];
        assert_eq!(template.pieces(), wanted);
        for (text, wanted) in [
            ("", "empty"),
            ("a\nb", "line's end"),
            ("{method", "never closed"),
            ("method}", "closes nothing"),
            ("{nothing}", "`nothing` is no field"),
            ("{workload}", "did you mean `source.workload`?"),
            ("{useragent}", "did you mean `user_agent`?"),
            ("{}", "`` is no field"),
            (&"{path}".repeat(PIECES_MAX + 1), "more than 128"),
            (&"x".repeat(TEMPLATE_BYTES_MAX + 1), "more than 4096"),
        ] {
            let told = LogTemplate::parse(text).unwrap_err();
            assert!(told.contains(wanted), "{text}: {told}");
        }
        assert_eq!(LogField::ALL.len(), 49);
    }

    proptest::proptest! {
        /// Aim: no text makes it panic, and what is read has no empty texts.
        #[test]
        fn any_text_is_survived(text in "[{}a-z._ ]{0,40}") {
            if let Ok(template) = LogTemplate::parse(&text) {
                proptest::prop_assert!(template.pieces().iter().all(|piece| *piece != LogPiece::Literal("".into())));
            }
        }
    }
}
