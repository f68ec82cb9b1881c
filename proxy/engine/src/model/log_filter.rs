//! Which exchanges the access log tells of: an expression in CEL over one that has ended. Read and type-checked once, where it is configured.
//!
//! What most people write (comparisons with what is written down, joined by and, or, not) becomes a [`Test`], which costs a fraction of a
//! microsecond; anything else is evaluated by the library. A text that is not there is empty, a number that is not there is 0.

mod read;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::SocketAddr;

use cel::IdedExpr;
use cel::common::types::{CelBool, CelDouble, CelInt, CelString};
use cel::common::value::CowVal;
use cel::context::VariableResolver;
use regex::Regex;

use super::log_field::LogField;
use crate::authorize;

/// Longest filter, in bytes.
pub const LOG_FILTER_BYTES_MAX: usize = 1024;

/// An exchange that has ended, as a filter looks at it.
pub trait LogExchange: Sync {
    /// A field's text; empty: it is not there.
    fn text(&self, field: LogField) -> Cow<'_, str>;
    /// A field's number, milliseconds where it is a time; 0: it is not there.
    fn number(&self, field: LogField) -> f64;
    /// Where one of the two sides is.
    fn address(&self, field: LogField) -> SocketAddr;
    /// Whether mesh TLS carried it.
    fn is_mtls(&self) -> bool;
    /// Whether its trace is recorded.
    fn is_sampled(&self) -> bool;
}

/// Says which exchanges are told of.
#[derive(Debug)]
pub struct LogFilter {
    text: Box<str>,
    judge: Judge,
}

#[derive(Debug)]
enum Judge {
    Test(Test),
    Cel { expression: IdedExpr, places: Vec<Place> },
}

/// What a name of an expression stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variable {
    Text(LogField),
    /// A path without its query.
    Path,
    Whole(LogField),
    Millis(LogField),
    Address(LogField),
    Port(LogField),
    Mtls,
    Sampled,
}

/// A value that the library is given: a variable's, or whether it matches.
#[derive(Debug)]
enum Place {
    Variable(Variable),
    Matches(Variable, Regex),
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Equal,
    Unequal,
    Less,
    LessOrEqual,
    More,
    MoreOrEqual,
}

/// An expression without the library.
#[derive(Debug)]
enum Test {
    All(Vec<Test>),
    Any(Vec<Test>),
    Not(Box<Test>),
    Is(bool),
    Truth(Variable),
    Number(Variable, Order, f64),
    Text(Variable, Order, Box<str>),
    Numbers(Variable, Vec<f64>),
    Texts(Variable, Vec<Box<str>>),
    Starts(Variable, Box<str>),
    Ends(Variable, Box<str>),
    Contains(Variable, Box<str>),
    Matches(Variable, Regex),
}

impl PartialEq for LogFilter {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

impl LogFilter {
    /// Reads one.
    ///
    /// # Errors
    /// Says what is wrong with it and what would be right.
    pub fn compile(text: &str) -> Result<Self, String> {
        let judge = authorize::parsed(text, LOG_FILTER_BYTES_MAX, read::read)?;
        Ok(Self { text: text.into(), judge })
    }

    /// As it was written.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Whether it holds; `None`: it comes to nothing.
    pub fn holds(&self, exchange: &dyn LogExchange) -> Option<bool> {
        match &self.judge {
            Judge::Test(test) => Some(test.holds(exchange)),
            Judge::Cel { expression, places } => authorize::truth(expression, &Known { places, exchange }),
        }
    }
}

impl Test {
    fn holds(&self, exchange: &dyn LogExchange) -> bool {
        match self {
            Self::All(tests) => tests.iter().all(|test| test.holds(exchange)),
            Self::Any(tests) => tests.iter().any(|test| test.holds(exchange)),
            Self::Not(test) => !test.holds(exchange),
            Self::Is(truth) => *truth,
            Self::Truth(variable) => variable.truth(exchange),
            Self::Number(variable, order, than) => order.of(&variable.number(exchange), than),
            Self::Text(variable, order, than) => order.of(&*variable.text(exchange), &**than),
            #[allow(clippy::float_cmp, reason = "equal is what was asked for")]
            Self::Numbers(variable, among) => {
                let number = variable.number(exchange);
                among.contains(&number)
            }
            Self::Texts(variable, among) => {
                let text = variable.text(exchange);
                among.iter().any(|one| **one == *text)
            }
            Self::Starts(variable, with) => variable.text(exchange).starts_with(&**with),
            Self::Ends(variable, with) => variable.text(exchange).ends_with(&**with),
            Self::Contains(variable, what) => variable.text(exchange).contains(&**what),
            Self::Matches(variable, regex) => regex.is_match(&variable.text(exchange)),
        }
    }
}

impl Order {
    fn of<T: PartialOrd + ?Sized>(self, left: &T, right: &T) -> bool {
        match self {
            Self::Equal => left == right,
            Self::Unequal => left != right,
            Self::Less => left < right,
            Self::LessOrEqual => left <= right,
            Self::More => left > right,
            Self::MoreOrEqual => left >= right,
        }
    }

    /// The same with its sides exchanged.
    const fn turned(self) -> Self {
        match self {
            Self::Equal | Self::Unequal => self,
            Self::Less => Self::More,
            Self::LessOrEqual => Self::MoreOrEqual,
            Self::More => Self::Less,
            Self::MoreOrEqual => Self::LessOrEqual,
        }
    }
}

impl Variable {
    fn text<'e>(self, exchange: &'e dyn LogExchange) -> Cow<'e, str> {
        match self {
            Self::Text(field) => exchange.text(field),
            Self::Path => match exchange.text(LogField::Path) {
                Cow::Borrowed(path) => path.split('?').next().unwrap_or_default().into(),
                Cow::Owned(path) => path.split('?').next().unwrap_or_default().to_owned().into(),
            },
            Self::Address(field) => exchange.address(field).ip().to_canonical().to_string().into(),
            Self::Whole(_) | Self::Millis(_) | Self::Port(_) | Self::Mtls | Self::Sampled => Cow::Borrowed(""),
        }
    }

    fn number(self, exchange: &dyn LogExchange) -> f64 {
        match self {
            Self::Whole(field) | Self::Millis(field) => exchange.number(field),
            Self::Port(field) => exchange.address(field).port().into(),
            Self::Text(_) | Self::Path | Self::Address(_) | Self::Mtls | Self::Sampled => 0.0,
        }
    }

    fn truth(self, exchange: &dyn LogExchange) -> bool {
        match self {
            Self::Mtls => exchange.is_mtls(),
            Self::Sampled => exchange.is_sampled(),
            _ => false,
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "it is a whole number")]
    fn value(self, exchange: &dyn LogExchange) -> CowVal<'_, '_> {
        match self {
            Self::Text(_) | Self::Path | Self::Address(_) => CowVal::owned(CelString::from(self.text(exchange))),
            Self::Whole(_) | Self::Port(_) => CowVal::owned(CelInt::from(self.number(exchange) as i64)),
            Self::Millis(_) => CowVal::owned(CelDouble::from(self.number(exchange))),
            Self::Mtls | Self::Sampled => CowVal::owned(CelBool::from(self.truth(exchange))),
        }
    }
}

/// Values for the library, by their places.
struct Known<'k> {
    places: &'k [Place],
    exchange: &'k dyn LogExchange,
}

impl VariableResolver for Known<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let place: usize = variable.strip_prefix(read::PLACE)?.parse().ok()?;
        Some(match self.places.get(place)? {
            Place::Variable(variable) => variable.value(self.exchange),
            Place::Matches(variable, regex) => CowVal::owned(CelBool::from(regex.is_match(&variable.text(self.exchange)))),
        })
    }
}
