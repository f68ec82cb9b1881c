//! Reading a condition: what it may hold, and its attributes by their places.

use cel::IdedExpr;
use cel::common::ast::{CallExpr, ComprehensionExpr, Expr, LiteralValue, SelectExpr, operators};

use super::attribute::Attribute;
use super::{CONDITION_DEPTH_MAX, CONDITION_PARTS_MAX};
use crate::matching;

/// Begins the name of an attribute's place; no name that is written begins so.
pub(super) const PLACE: char = '$';

/// Functions whose work is bounded by their texts.
const FUNCTIONS: [&str; 24] = [
    operators::CONDITIONAL,
    operators::LOGICAL_AND,
    operators::LOGICAL_OR,
    operators::LOGICAL_NOT,
    operators::SUBSTRACT,
    operators::ADD,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::EQUALS,
    operators::NOT_EQUALS,
    operators::GREATER_EQUALS,
    operators::LESS_EQUALS,
    operators::GREATER,
    operators::LESS,
    operators::NEGATE,
    operators::INDEX,
    operators::IN,
    "size",
    "contains",
    "startsWith",
    "endsWith",
    "int",
    "string",
];
/// What a loop is made of.
const OF_LOOPS: &str = operators::NOT_STRICTLY_FALSE;
/// Those whose outcome is no truth.
const NO_TRUTH: [&str; 9] = [
    operators::SUBSTRACT,
    operators::ADD,
    operators::MULTIPLY,
    operators::DIVIDE,
    operators::MODULO,
    operators::NEGATE,
    "size",
    "int",
    "string",
];
const ROOTS: [&str; 6] = ["request", "source", "destination", "token", "auth", "consumer"];
const HEADERS: &str = "request.headers";
const CLAIMS: &str = "token.claims";
/// The same, as edge kinds write it.
const AUTH_CLAIMS: &str = "auth.claims";
const CONSUMER_ATTRIBUTES: &str = "consumer.attributes";

/// The expression with its attributes taken out, and these.
pub(super) fn read(mut parsed: IdedExpr, truth: bool) -> Result<(IdedExpr, Vec<Attribute>), String> {
    let mut reading = Reading::default();
    reading.part(&mut parsed, 0)?;
    if truth {
        reading.judge_outcome(&parsed)?;
    }
    Ok((parsed, reading.attributes))
}

#[derive(Default)]
struct Reading {
    attributes: Vec<Attribute>,
    parts: usize,
    /// Names that a loop around this part gives.
    names: Vec<String>,
}

impl Reading {
    fn part(&mut self, part: &mut IdedExpr, depth: usize) -> Result<(), String> {
        self.parts += 1;
        if depth > CONDITION_DEPTH_MAX || self.parts > CONDITION_PARTS_MAX {
            return Err(format!("is nested deeper than {CONDITION_DEPTH_MAX}, or of more than {CONDITION_PARTS_MAX} parts"));
        }
        if let Some(attribute) = self.attribute(&part.expr)? {
            part.expr = self.placed(attribute);
            return Ok(());
        }
        match &mut part.expr {
            Expr::Literal(_) => Ok(()),
            Expr::Ident(name) if self.names.contains(name) => Ok(()),
            Expr::Ident(name) => Err(unknown(name)),
            Expr::Call(call) => self.call(call, depth),
            Expr::List(list) => list.elements.iter_mut().try_for_each(|element| self.part(element, depth + 1)),
            Expr::Comprehension(looped) => self.looped(looped, depth),
            Expr::Select(select) => Err(format!("`.{}` is asked of what has no members", select.field)),
            Expr::Map(_) | Expr::Struct(_) => Err("holds a map or a message, which nothing here is compared with".to_owned()),
            Expr::Unspecified => Err("is empty".to_owned()),
        }
    }

    fn call(&mut self, call: &mut CallExpr, depth: usize) -> Result<(), String> {
        let name = call.func_name.as_str();
        if name == "matches" {
            return Err(
                "`matches` takes an attribute and one regular expression that is written down, as in request.path.matches(\"^/a\")"
                    .to_owned(),
            );
        }
        if !FUNCTIONS.contains(&name) && (name != OF_LOOPS || self.names.is_empty()) {
            return Err(format!("`{name}` is no function here; there are operators, {}", FUNCTIONS[18..].join(", ") + ", matches"));
        }
        if let Some(target) = &mut call.target {
            self.part(target, depth + 1)?;
        }
        call.args.iter_mut().try_for_each(|argument| self.part(argument, depth + 1))
    }

    /// `all`, `exists` and `exists_one`: as many steps as their list has items, each as long as what is written.
    fn looped(&mut self, looped: &mut ComprehensionExpr, depth: usize) -> Result<(), String> {
        if !self.names.is_empty() {
            return Err("holds a loop within a loop, whose cost nothing would bound".to_owned());
        }
        if matches!(looped.accu_init.expr, Expr::List(_) | Expr::Map(_)) || looped.iter_var2.is_some() {
            return Err("holds a `map` or `filter`; there are `all`, `exists` and `exists_one`".to_owned());
        }
        self.part(&mut looped.iter_range, depth + 1)?;
        self.part(&mut looped.accu_init, depth + 1)?;
        self.names = vec![looped.iter_var.clone(), looped.accu_var.clone()];
        let inner = [&mut looped.loop_cond, &mut looped.loop_step, &mut looped.result];
        let read = inner.into_iter().try_for_each(|part| self.part(part, depth + 1));
        self.names.clear();
        read
    }

    /// The attribute that an expression is, if it is one.
    fn attribute(&self, expression: &Expr) -> Result<Option<Attribute>, String> {
        match expression {
            Expr::Select(SelectExpr { operand, field, test }) => {
                let Some(base) = self.name_of(&operand.expr) else { return Ok(None) };
                match (base.as_str(), *test) {
                    (HEADERS, false) => Attribute::header(field).map(Attribute::Header),
                    (HEADERS, true) => Attribute::header(field).map(Attribute::HasHeader),
                    (CONSUMER_ATTRIBUTES, false) => Ok(Attribute::OfConsumer(field.as_str().into())),
                    (CONSUMER_ATTRIBUTES, true) => Ok(Attribute::HasOfConsumer(field.as_str().into())),
                    (base, true) => match claim(base, field) {
                        Some(path) => Ok(Attribute::HasClaim(path)),
                        None => Err(format!("`has` asks for a header or a claim, which `{base}.{field}` is not")),
                    },
                    (base, false) => match claim(base, field) {
                        Some(path) => Ok(Attribute::Claim(path)),
                        None if self.is_within(base, field) => return Ok(None),
                        None => Attribute::named(&format!("{base}.{field}")),
                    },
                }
                .map(Some)
            }
            Expr::Call(call) => self.called(call),
            _ => Ok(None),
        }
    }

    /// `headers` and `claims` are no attributes themselves, but lead to some.
    fn is_within(&self, base: &str, field: &str) -> bool {
        let name = format!("{base}.{field}");
        [HEADERS, CLAIMS, AUTH_CLAIMS, CONSUMER_ATTRIBUTES].contains(&name.as_str())
    }

    fn called(&self, call: &CallExpr) -> Result<Option<Attribute>, String> {
        let (first, second) = match (&call.target, call.args.as_slice()) {
            (None, [first, second]) => (first, second),
            (Some(target), [only]) if call.func_name == "matches" => (&**target, only),
            _ => return Ok(None),
        };
        match call.func_name.as_str() {
            operators::INDEX => match (self.name_of(&first.expr).as_deref(), literal(&second.expr)) {
                (Some(HEADERS), Some(name)) => Attribute::header(name).map(|name| Some(Attribute::Header(name))),
                (Some(HEADERS), None) => Err("request.headers[…] takes a name that is written down".to_owned()),
                (Some(CONSUMER_ATTRIBUTES), Some(name)) => Ok(Some(Attribute::OfConsumer(name.into()))),
                (Some(base), Some(name)) => Ok(claim(base, name).map(Attribute::Claim)),
                _ => Ok(None),
            },
            operators::IN => match (literal(&first.expr), self.name_of(&second.expr).as_deref()) {
                (Some(name), Some(HEADERS)) => Attribute::header(name).map(|name| Some(Attribute::HasHeader(name))),
                (Some(name), Some(CONSUMER_ATTRIBUTES)) => Ok(Some(Attribute::HasOfConsumer(name.into()))),
                (Some(name), Some(CLAIMS | AUTH_CLAIMS)) => Ok(Some(Attribute::HasClaim(name.into()))),
                (None, Some(HEADERS | CLAIMS | AUTH_CLAIMS | CONSUMER_ATTRIBUTES)) => {
                    Err("`in` request.headers, claims or attributes takes a name that is written down".to_owned())
                }
                _ => Ok(None),
            },
            "matches" => match (self.attribute(&first.expr)?, literal(&second.expr)) {
                (Some(attribute), Some(text)) => Ok(Some(Attribute::Matches(Box::new(attribute), matching::compile::searched(text)?))),
                _ => Ok(None),
            },
            _ => Ok(None),
        }
    }

    /// The dotted name that an expression spells, if it begins with one of ours.
    fn name_of(&self, expression: &Expr) -> Option<String> {
        match expression {
            Expr::Ident(name) if ROOTS.contains(&name.as_str()) && !self.names.contains(name) => Some(name.clone()),
            Expr::Select(SelectExpr { operand, field, test: false }) => Some(format!("{}.{field}", self.name_of(&operand.expr)?)),
            Expr::Call(CallExpr { func_name, target: None, args }) if func_name == operators::INDEX => match args.as_slice() {
                [base, index] => {
                    let base = self.name_of(&base.expr).filter(|base| base.starts_with(CLAIMS) || base.starts_with(AUTH_CLAIMS))?;
                    Some(format!("{base}.{}", literal(&index.expr)?))
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn placed(&mut self, attribute: Attribute) -> Expr {
        self.attributes.push(attribute);
        Expr::Ident(format!("{PLACE}{}", self.attributes.len() - 1))
    }

    /// A condition is true or false; what is plainly neither is refused at once.
    fn judge_outcome(&self, whole: &IdedExpr) -> Result<(), String> {
        let place = |name: &str| name.strip_prefix(PLACE).and_then(|place| place.parse::<usize>().ok());
        let good = match &whole.expr {
            Expr::Literal(literal) => matches!(literal, LiteralValue::Boolean(_)),
            Expr::Ident(name) => place(name).and_then(|place| self.attributes.get(place)).is_some_and(Attribute::is_truth),
            Expr::Call(call) => !NO_TRUTH.contains(&call.func_name.as_str()),
            Expr::List(_) => false,
            _ => true,
        };
        if good { Ok(()) } else { Err("is neither true nor false: compare it with something".to_owned()) }
    }
}

fn literal(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

/// The path of a claim below `base`.
fn claim(base: &str, name: &str) -> Option<Box<str>> {
    let rest = base.strip_prefix(CLAIMS).or_else(|| base.strip_prefix(AUTH_CLAIMS))?;
    match rest.strip_prefix('.') {
        Some(outer) => Some(format!("{outer}.{name}").into()),
        None => rest.is_empty().then(|| name.into()),
    }
}

fn unknown(name: &str) -> String {
    format!("`{name}` is not known here; conditions look at {}", ROOTS.join(", "))
}
