//! `when`: a condition in CEL over what is known of a call.
//!
//! The library parses and evaluates. What it may be given is read here, once: only attributes that exist, only functions whose cost is
//! bounded by their texts, loops over one list and never within another. Every attribute becomes a numbered place, so that an evaluation
//! makes just the values that it looks at.

mod attribute;
mod read;
#[cfg(test)]
mod tests;

use std::sync::{Arc, LazyLock};
use std::thread;

use cel::common::types::{CelBool, CelInt, CelString};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;
use cel::{Context, Env, IdedExpr, Value};

use super::Call;
use attribute::Attribute;

/// Longest condition, in bytes.
pub const CONDITION_BYTES_MAX: usize = 4096;
/// Most parts of a condition: operators, attributes and literals.
pub const CONDITION_PARTS_MAX: usize = 256;
/// How deep they may be nested.
pub const CONDITION_DEPTH_MAX: usize = 32;
/// Most brackets that it may open, and most operators and dots, within texts too: the parser's own depth follows them.
const OPENED_MAX: usize = 64;
const MARKS_MAX: usize = 256;
/// Nesting that the parser takes.
const PARSED_DEPTH_MAX: u16 = 24;
/// Four times what the deepest text took, in a build without optimisation. Of it, only what is used is memory.
const PARSER_STACK_BYTES: usize = 32 << 20;
/// Most items of a claim that a condition looks at; of more nothing holds.
pub const CLAIM_ITEMS_MAX: usize = 256;

/// Functions of the language, without the syntax and the library of optional values.
static LANGUAGE: LazyLock<Arc<Env>> = LazyLock::new(|| {
    let macros = Env::stdlib();
    Arc::new(macros.with_optional_support(false))
});

/// A condition that can be evaluated.
#[derive(Debug)]
pub(super) struct Condition {
    expression: IdedExpr,
    attributes: Vec<Attribute>,
    /// It looks at the request or its token, which opaque bytes do not have.
    pub(super) of_requests: bool,
}

/// Parses a text within bounds, and reads what comes of it. In a thread of its own: the parser descends some twenty calls per bracket, and
/// what is wrong with it must end nobody else.
pub(crate) fn parsed<T: Send>(text: &str, bytes_max: usize, read: impl FnOnce(IdedExpr) -> Result<T, String> + Send) -> Result<T, String> {
    thread::scope(|scope| {
        let parser = thread::Builder::new().name("cel".to_owned()).stack_size(PARSER_STACK_BYTES);
        let compiling = parser
            .spawn_scoped(scope, || parse(text, bytes_max).and_then(read))
            .map_err(|error| format!("finds no room to be parsed: {error}"))?;
        compiling.join().unwrap_or_else(|_| Err("is more than the parser can take".to_owned()))
    })
}

fn parse(text: &str, bytes_max: usize) -> Result<IdedExpr, String> {
    if text.len() > bytes_max {
        return Err(format!("is longer than {bytes_max} bytes"));
    }
    let count = |marks: &[u8]| text.bytes().filter(|byte| marks.contains(byte)).count();
    if count(b"([{") > OPENED_MAX || count(b"+-*/%<>=!&|?:.,") > MARKS_MAX {
        return Err(format!("opens more than {OPENED_MAX} brackets, or holds more than {MARKS_MAX} operators and dots"));
    }
    LANGUAGE.parser().max_recursion_depth(PARSED_DEPTH_MAX).parse(text).map_err(|errors| {
        let first = errors.errors.first().map_or("", |error| error.msg.lines().next().unwrap_or_default());
        format!("is not CEL: {first}")
    })
}

/// Evaluates an expression with values for its names; `None`: it comes to nothing, or to no truth.
pub(crate) fn truth(expression: &IdedExpr, names: &dyn VariableResolver) -> Option<bool> {
    let mut context = Context::with_env(Arc::clone(&LANGUAGE));
    context.set_variable_resolver(names);
    let value = Value::resolve_val(expression, &context).ok()?;
    value.downcast_ref::<CelBool>().map(|truth| *truth.inner())
}

/// Judges a condition as the proxy would.
///
/// # Errors
/// Says what is wrong with it and what would be right.
pub fn check(text: &str) -> Result<(), String> {
    Condition::compile(text).map(drop)
}

/// Judges an expression for a value as the proxy would.
///
/// # Errors
/// Says what is wrong with it and what would be right.
pub fn check_value(text: &str) -> Result<(), String> {
    ValueOf::compile(text).map(drop)
}

/// An expression that is true or false.
#[derive(Debug)]
pub struct TruthOf(Condition);

impl TruthOf {
    /// Reads one.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn compile(text: &str) -> Result<Self, String> {
        Condition::compile(text).map(Self)
    }

    /// Whether it holds for a call; false where it comes to nothing.
    pub fn holds(&self, call: &Call<'_>) -> bool {
        self.holds_or(call, false)
    }

    /// The same; `otherwise` where it comes to nothing.
    pub fn holds_or(&self, call: &Call<'_>, otherwise: bool) -> bool {
        self.0.holds(call).unwrap_or(otherwise)
    }
}

/// An expression whose outcome is a text or a number.
#[derive(Debug)]
pub struct ValueOf(Condition);

impl ValueOf {
    /// Reads one.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn compile(text: &str) -> Result<Self, String> {
        Condition::compile_for(text, false).map(Self)
    }

    /// What it comes to, as text; `None`: something that it looks at is not there, or it comes to what no text says.
    pub fn of(&self, call: &Call<'_>) -> Option<String> {
        self.0.evaluate(call, |value| {
            if let Some(text) = value.downcast_ref::<CelString>() {
                return Some(text.inner().to_owned());
            }
            if let Some(number) = value.downcast_ref::<CelInt>() {
                return Some(number.inner().to_string());
            }
            value.downcast_ref::<CelBool>().map(|truth| truth.inner().to_string())
        })
    }
}

/// An evaluation that came to nothing: an attribute that is not there, or values that cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unanswered;

impl Condition {
    pub(super) fn compile(text: &str) -> Result<Self, String> {
        Self::compile_for(text, true)
    }

    /// `truth`: its outcome is to be true or false.
    fn compile_for(text: &str, truth: bool) -> Result<Self, String> {
        parsed(text, CONDITION_BYTES_MAX, |parsed| {
            let (expression, attributes) = read::read(parsed, truth)?;
            let of_requests = attributes.iter().any(Attribute::of_requests);
            Ok(Self { expression, attributes, of_requests })
        })
    }

    /// Whether it holds for a call.
    pub(super) fn holds(&self, call: &Call<'_>) -> Result<bool, Unanswered> {
        self.evaluate(call, |value| value.downcast_ref::<CelBool>().map(|truth| *truth.inner())).ok_or(Unanswered)
    }

    /// What `take` makes of its outcome; `None`: there is none.
    fn evaluate<T>(&self, call: &Call<'_>, take: impl FnOnce(&dyn Val) -> Option<T>) -> Option<T> {
        let known = Known { attributes: &self.attributes, call };
        let mut context = Context::with_env(Arc::clone(&LANGUAGE));
        context.set_variable_resolver(&known);
        let value = Value::resolve_val(&self.expression, &context).ok()?;
        take(&*value)
    }
}

/// Attributes of a call, by their places.
struct Known<'k> {
    attributes: &'k [Attribute],
    call: &'k Call<'k>,
}

impl VariableResolver for Known<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        let place: usize = variable.strip_prefix(read::PLACE)?.parse().ok()?;
        self.attributes.get(place)?.value(self.call)
    }
}
