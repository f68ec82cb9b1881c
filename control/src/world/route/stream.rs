//! Rules of TCPRoute and TLSRoute: backends, by connection.

use super::Rule;
use crate::world::door::Cursor;

pub(super) fn read(at: &Cursor<'_>) -> Rule {
    let mut fields = at.fields();
    let rule = Rule::read(&mut fields);
    fields.done();
    rule
}
