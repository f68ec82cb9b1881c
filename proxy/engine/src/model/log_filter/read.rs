//! Reading a filter: which names and functions it may hold, whether their types fit, and the [`Test`] that it is, if it is one.

use cel::IdedExpr;
use cel::common::ast::{CallExpr, Expr, LiteralValue, SelectExpr, operators};

use super::{Judge, Order, Place, Test, Variable};
use crate::authorize::{CONDITION_DEPTH_MAX, CONDITION_PARTS_MAX};
use crate::matching::compile::searched;
use crate::model::LogField;

/// Begins the name of a value's place; no name that is written begins so.
pub(super) const PLACE: char = '$';

/// What a filter may look at.
const VARIABLES: [(&str, Variable); 43] = [
    ("request.method", Variable::Text(LogField::Method)),
    ("request.scheme", Variable::Text(LogField::Scheme)),
    ("request.host", Variable::Text(LogField::Host)),
    ("request.path", Variable::Path),
    ("request.protocol", Variable::Text(LogField::Protocol)),
    ("request.user_agent", Variable::Text(LogField::UserAgent)),
    ("request.id", Variable::Text(LogField::RequestId)),
    ("request.bytes", Variable::Whole(LogField::RequestBytes)),
    ("response.code", Variable::Whole(LogField::Status)),
    ("response.grpc_code", Variable::Whole(LogField::GrpcStatus)),
    ("response.bytes", Variable::Whole(LogField::ResponseBytes)),
    ("reason", Variable::Text(LogField::Reason)),
    ("blame", Variable::Text(LogField::Blame)),
    ("direction", Variable::Text(LogField::Direction)),
    ("route", Variable::Text(LogField::Route)),
    ("rule", Variable::Text(LogField::Rule)),
    ("epoch", Variable::Whole(LogField::Epoch)),
    ("attempts", Variable::Whole(LogField::Attempts)),
    ("duration_ms", Variable::Millis(LogField::DurationMs)),
    ("upstream_ms", Variable::Millis(LogField::UpstreamMs)),
    ("mtls", Variable::Mtls),
    ("sampled", Variable::Sampled),
    ("trace_id", Variable::Text(LogField::TraceId)),
    ("source.namespace", Variable::Text(LogField::SourceNamespace)),
    ("source.workload", Variable::Text(LogField::SourceWorkload)),
    ("source.identity", Variable::Text(LogField::SourceIdentity)),
    ("source.address", Variable::Address(LogField::SourceAddress)),
    ("source.port", Variable::Port(LogField::SourceAddress)),
    ("destination.namespace", Variable::Text(LogField::DestinationNamespace)),
    ("destination.service", Variable::Text(LogField::DestinationService)),
    ("destination.workload", Variable::Text(LogField::DestinationWorkload)),
    ("destination.identity", Variable::Text(LogField::DestinationIdentity)),
    ("destination.address", Variable::Address(LogField::DestinationAddress)),
    ("destination.port", Variable::Port(LogField::DestinationAddress)),
    ("client_address", Variable::Text(LogField::ClientAddress)),
    ("consumer", Variable::Text(LogField::Consumer)),
    ("auth_method", Variable::Text(LogField::AuthMethod)),
    ("policy", Variable::Text(LogField::Policy)),
    ("would_deny", Variable::Text(LogField::WouldDeny)),
    ("audited", Variable::Text(LogField::Audited)),
    ("limit", Variable::Text(LogField::Limit)),
    ("fault", Variable::Text(LogField::Fault)),
    ("partial", Variable::Text(LogField::Partial)),
];
/// Functions by name, besides operators.
const FUNCTIONS: &str = "operators, in, size, contains, startsWith, endsWith, matches, int, double and string";

/// What a part comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sort {
    Truth,
    Text,
    Whole,
    Fraction,
    /// A list of texts, or of numbers; `None`: of nothing.
    List(Option<bool>),
}

impl Sort {
    const fn text(self) -> &'static str {
        match self {
            Self::Truth => "true or false",
            Self::Text => "a text",
            Self::Whole => "a whole number",
            Self::Fraction => "a number with a fraction",
            Self::List(_) => "a list",
        }
    }

    const fn is_number(self) -> bool {
        matches!(self, Self::Whole | Self::Fraction)
    }

    /// Whether one can be compared with the other.
    fn meets(self, other: Self) -> bool {
        self == other || (self.is_number() && other.is_number())
    }
}

impl Variable {
    const fn sort(self) -> Sort {
        match self {
            Self::Text(_) | Self::Path | Self::Address(_) => Sort::Text,
            Self::Whole(_) | Self::Port(_) => Sort::Whole,
            Self::Millis(_) => Sort::Fraction,
            Self::Mtls | Self::Sampled => Sort::Truth,
        }
    }
}

/// What judges by an expression.
pub(super) fn read(mut parsed: IdedExpr) -> Result<Judge, String> {
    if let Some(test) = test(&parsed.expr) {
        // Its types are looked at all the same.
        Reading::default().whole(&mut parsed)?;
        return Ok(Judge::Test(test));
    }
    let mut reading = Reading::default();
    reading.whole(&mut parsed)?;
    Ok(Judge::Cel { expression: parsed, places: reading.places })
}

/// The places of an expression, which they are put into.
#[cfg(test)]
pub(super) fn places(parsed: &mut IdedExpr) -> Result<Vec<Place>, String> {
    let mut reading = Reading::default();
    reading.whole(parsed)?;
    Ok(reading.places)
}

#[derive(Default)]
struct Reading {
    places: Vec<Place>,
    parts: usize,
}

impl Reading {
    fn whole(&mut self, parsed: &mut IdedExpr) -> Result<(), String> {
        match self.part(parsed, 0)? {
            Sort::Truth => Ok(()),
            other => Err(format!("comes to {} and not to true or false: compare it with something", other.text())),
        }
    }

    /// Takes the names out of a part; what it comes to.
    fn part(&mut self, part: &mut IdedExpr, depth: usize) -> Result<Sort, String> {
        self.parts += 1;
        if depth > CONDITION_DEPTH_MAX || self.parts > CONDITION_PARTS_MAX {
            return Err(format!("is nested deeper than {CONDITION_DEPTH_MAX}, or of more than {CONDITION_PARTS_MAX} parts"));
        }
        if let Some(name) = name_of(&part.expr) {
            let variable = variable(&name).ok_or_else(|| unknown(&name))?;
            part.expr = self.placed(Place::Variable(variable));
            return Ok(variable.sort());
        }
        match &mut part.expr {
            Expr::Literal(literal) => sort_of(literal),
            Expr::List(list) => {
                let mut sort = None;
                for element in &mut list.elements {
                    let is_text = match self.part(element, depth + 1)? {
                        Sort::Text => true,
                        Sort::Whole | Sort::Fraction => false,
                        other => return Err(format!("holds a list of what is {}; there are lists of texts and of numbers", other.text())),
                    };
                    if sort.is_some_and(|before| before != is_text) {
                        return Err("holds a list of texts and numbers".to_owned());
                    }
                    sort = Some(is_text);
                }
                Ok(Sort::List(sort))
            }
            Expr::Call(call) => match self.matches(call)? {
                Some(place) => {
                    part.expr = place;
                    Ok(Sort::Truth)
                }
                None => self.call(call, depth),
            },
            Expr::Comprehension(_) => Err("holds a loop, and there is nothing to go through".to_owned()),
            Expr::Select(select) => Err(format!("`.{}` is asked of what has no members", select.field)),
            _ => Err("holds a map or a message, which nothing here is compared with".to_owned()),
        }
    }

    fn placed(&mut self, place: Place) -> Expr {
        self.places.push(place);
        Expr::Ident(format!("{PLACE}{}", self.places.len() - 1))
    }

    fn matches(&mut self, call: &CallExpr) -> Result<Option<Expr>, String> {
        if call.func_name != "matches" {
            return Ok(None);
        }
        let (variable, pattern) = matched(call)
            .ok_or("`matches` takes a name and one regular expression that is written down, as in request.path.matches(\"^/a\")")?;
        let regex = searched(pattern)?;
        Ok(Some(self.placed(Place::Matches(variable, regex))))
    }

    fn call(&mut self, call: &mut CallExpr, depth: usize) -> Result<Sort, String> {
        let mut sorts = Vec::with_capacity(call.args.len() + 1);
        for argument in call.target.iter_mut().map(|target| &mut **target).chain(&mut call.args) {
            sorts.push(self.part(argument, depth + 1)?);
        }
        let name = call.func_name.as_str();
        outcome(name, call.target.is_some(), &sorts).ok_or_else(|| match shown(name) {
            Some(shown) => {
                let given = sorts.iter().map(|sort| sort.text()).collect::<Vec<_>>().join(" and ");
                format!("gives `{shown}` {given}, which it does not take")
            }
            None => format!("`{name}` is no function here; there are {FUNCTIONS}"),
        })
    }
}

/// What a function comes to, if it takes values of these sorts.
fn outcome(name: &str, of_something: bool, sorts: &[Sort]) -> Option<Sort> {
    use Sort::{Fraction, List, Text, Truth, Whole};
    Some(match (name, sorts) {
        (operators::LOGICAL_AND | operators::LOGICAL_OR, [Truth, Truth]) | (operators::LOGICAL_NOT, [Truth]) => Truth,
        (operators::CONDITIONAL, [Truth, one, other]) if one == other => *one,
        (operators::EQUALS | operators::NOT_EQUALS, [one, other]) if one.meets(*other) && !matches!(one, List(_)) => Truth,
        (operators::LESS | operators::LESS_EQUALS | operators::GREATER | operators::GREATER_EQUALS, [one, other])
            if one.meets(*other) && (*one == Text || one.is_number()) =>
        {
            Truth
        }
        (operators::IN, [one, List(of)]) if *one != Truth && of.is_none_or(|text| text == (*one == Text)) => Truth,
        (operators::ADD, [Text, Text]) => Text,
        (operators::ADD | operators::SUBSTRACT | operators::MULTIPLY | operators::DIVIDE, [one, other])
            if one == other && one.is_number() =>
        {
            *one
        }
        (operators::MODULO, [Whole, Whole]) => Whole,
        (operators::NEGATE, [one]) if one.is_number() => *one,
        ("size", [Text | List(_)]) => Whole,
        ("contains" | "startsWith" | "endsWith", [Text, Text]) if of_something => Truth,
        ("int", [Text | Whole | Fraction]) if !of_something => Whole,
        ("double", [Text | Whole | Fraction]) if !of_something => Fraction,
        ("string", [Text | Whole | Fraction]) if !of_something => Text,
        _ => return None,
    })
}

/// A function as people write it; `None`: there is none of that name.
fn shown(name: &str) -> Option<&str> {
    let operator = [
        (operators::CONDITIONAL, "?:"),
        (operators::LOGICAL_AND, "&&"),
        (operators::LOGICAL_OR, "||"),
        (operators::LOGICAL_NOT, "!"),
        (operators::SUBSTRACT, "-"),
        (operators::ADD, "+"),
        (operators::MULTIPLY, "*"),
        (operators::DIVIDE, "/"),
        (operators::MODULO, "%"),
        (operators::EQUALS, "=="),
        (operators::NOT_EQUALS, "!="),
        (operators::GREATER_EQUALS, ">="),
        (operators::LESS_EQUALS, "<="),
        (operators::GREATER, ">"),
        (operators::LESS, "<"),
        (operators::NEGATE, "-"),
        (operators::IN, "in"),
    ];
    let known = ["size", "contains", "startsWith", "endsWith", "int", "double", "string"];
    operator.iter().find(|(own, _)| *own == name).map(|(_, shown)| *shown).or_else(|| known.into_iter().find(|known| *known == name))
}

fn sort_of(literal: &LiteralValue) -> Result<Sort, String> {
    match literal {
        LiteralValue::Boolean(_) => Ok(Sort::Truth),
        LiteralValue::String(_) => Ok(Sort::Text),
        LiteralValue::Int(_) => Ok(Sort::Whole),
        LiteralValue::Double(_) => Ok(Sort::Fraction),
        LiteralValue::Bytes(_) | LiteralValue::Null | LiteralValue::UInt(_) => {
            Err("holds bytes, null or a number with `u`, which nothing here is compared with".to_owned())
        }
    }
}

fn variable(name: &str) -> Option<Variable> {
    VARIABLES.iter().find(|(known, _)| *known == name).map(|(_, variable)| *variable)
}

fn unknown(name: &str) -> String {
    let known = VARIABLES.iter().map(|(known, _)| *known).collect::<Vec<_>>().join(", ");
    format!("`{name}` is not known of an exchange that has ended; there are {known}")
}

/// The dotted name that an expression spells.
fn name_of(expression: &Expr) -> Option<String> {
    match expression {
        Expr::Ident(name) => Some(name.clone()),
        Expr::Select(SelectExpr { operand, field, test: false }) => Some(format!("{}.{field}", name_of(&operand.expr)?)),
        _ => None,
    }
}

fn variable_of(expression: &Expr) -> Option<Variable> {
    variable(&name_of(expression)?)
}

fn text_of(expression: &Expr) -> Option<&str> {
    match expression {
        Expr::Literal(LiteralValue::String(text)) => Some(text.inner()),
        _ => None,
    }
}

#[allow(clippy::cast_precision_loss, reason = "numbers of exchanges are compared as such")]
fn number_of(expression: &Expr) -> Option<f64> {
    match expression {
        Expr::Literal(LiteralValue::Int(number)) => Some(*number.inner() as f64),
        Expr::Literal(LiteralValue::Double(number)) => Some(*number.inner()),
        _ => None,
    }
}

/// The name and the pattern of `matches`.
fn matched(call: &CallExpr) -> Option<(Variable, &str)> {
    let (first, second) = match (&call.target, call.args.as_slice()) {
        (None, [first, second]) => (first, second),
        (Some(target), [only]) => (&**target, only),
        _ => return None,
    };
    let variable = variable_of(&first.expr).filter(|variable| variable.sort() == Sort::Text)?;
    Some((variable, text_of(&second.expr)?))
}

/// The test that an expression is, if it is one; whether its types fit is judged elsewhere.
fn test(expression: &Expr) -> Option<Test> {
    match expression {
        Expr::Literal(LiteralValue::Boolean(truth)) => return Some(Test::Is(*truth.inner())),
        Expr::Ident(_) | Expr::Select(_) => return variable_of(expression).filter(|one| one.sort() == Sort::Truth).map(Test::Truth),
        _ => {}
    }
    let Expr::Call(call) = expression else { return None };
    if call.func_name == "matches" {
        let (variable, pattern) = matched(call)?;
        return Some(Test::Matches(variable, searched(pattern).ok()?));
    }
    let first = call.target.as_deref().or_else(|| call.args.first()).map(|part| &part.expr)?;
    let second = if call.target.is_some() { call.args.first() } else { call.args.get(1) }.map(|part| &part.expr);
    let texts = |make: fn(Variable, Box<str>) -> Test| {
        let variable = variable_of(first).filter(|variable| variable.sort() == Sort::Text)?;
        Some(make(variable, text_of(second?)?.into()))
    };
    match call.func_name.as_str() {
        operators::LOGICAL_NOT => Some(Test::Not(Box::new(test(first)?))),
        operators::LOGICAL_AND => Some(Test::All(vec![test(first)?, test(second?)?])),
        operators::LOGICAL_OR => Some(Test::Any(vec![test(first)?, test(second?)?])),
        operators::EQUALS => compared(first, Order::Equal, second?),
        operators::NOT_EQUALS => compared(first, Order::Unequal, second?),
        operators::LESS => compared(first, Order::Less, second?),
        operators::LESS_EQUALS => compared(first, Order::LessOrEqual, second?),
        operators::GREATER => compared(first, Order::More, second?),
        operators::GREATER_EQUALS => compared(first, Order::MoreOrEqual, second?),
        operators::IN => among(first, second?),
        "startsWith" => texts(Test::Starts),
        "endsWith" => texts(Test::Ends),
        "contains" => texts(Test::Contains),
        _ => None,
    }
}

fn compared(left: &Expr, order: Order, right: &Expr) -> Option<Test> {
    let (variable, order, than) = match variable_of(left) {
        Some(variable) => (variable, order, right),
        None => (variable_of(right)?, order.turned(), left),
    };
    match variable.sort() {
        Sort::Text => Some(Test::Text(variable, order, text_of(than)?.into())),
        Sort::Whole | Sort::Fraction => Some(Test::Number(variable, order, number_of(than)?)),
        Sort::Truth | Sort::List(_) => None,
    }
}

fn among(one: &Expr, list: &Expr) -> Option<Test> {
    let Expr::List(list) = list else { return None };
    let variable = variable_of(one)?;
    let elements = list.elements.iter();
    match variable.sort() {
        Sort::Text => Some(Test::Texts(variable, elements.map(|one| text_of(&one.expr).map(Into::into)).collect::<Option<_>>()?)),
        Sort::Whole | Sort::Fraction => Some(Test::Numbers(variable, elements.map(|one| number_of(&one.expr)).collect::<Option<_>>()?)),
        Sort::Truth | Sort::List(_) => None,
    }
}
