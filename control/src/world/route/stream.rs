//! Rules of TCPRoute, TLSRoute and UDPRoute: backends, by connection or by client.

use super::Rule;
use crate::world::door::Cursor;

pub(super) fn read(at: &Cursor<'_>) -> Rule {
    let mut fields = at.fields();
    let rule = Rule::read(&mut fields);
    fields.done();
    rule
}
