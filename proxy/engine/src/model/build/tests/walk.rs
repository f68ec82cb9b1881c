//! Every message that differs from a given one in one field, at any depth, also inside of what is packed.

use prost::Message;
use prost_types::Any;
use protox::prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};

/// A message with one field changed: whose field (`Message.field`), and where it stands.
pub(super) struct Changed {
    pub(super) field: String,
    pub(super) at: String,
    pub(super) message: DynamicMessage,
}

pub(super) struct Walk {
    pub(super) pool: DescriptorPool,
}

impl Walk {
    /// Every message that differs from this one in one field, at any depth.
    pub(super) fn changes(&self, message: &DynamicMessage, at: &str, made_up: usize) -> Vec<Changed> {
        let descriptor = message.descriptor();
        if descriptor.full_name() == "google.protobuf.Any" {
            return self.inside(message, at, made_up);
        }
        let mut all = Vec::new();
        for field in descriptor.fields() {
            let (owner, at) = (format!("{}.{}", descriptor.name(), field.name()), format!("{at}.{}", field.name()));
            for (value, inner) in self.values(message, &field, &at, made_up) {
                let mut changed = message.clone();
                changed.set_field(&field, value);
                // What is inside a wrapper or a Struct is told as the field that holds it.
                let (owner, at) = match inner {
                    Some((inner, place)) if !inner_of_google(&field) => (inner, place),
                    _ => (owner.clone(), at.clone()),
                };
                all.push(Changed { field: owner, at, message: changed });
            }
        }
        all
    }

    /// Other values of a field; for one inside it, whose that is and where.
    fn values(&self, message: &DynamicMessage, field: &FieldDescriptor, at: &str, made_up: usize) -> Vec<Told> {
        let current = message.get_field(field).into_owned();
        if field.is_map() {
            let Kind::Message(entry) = field.kind() else { unreachable!() };
            let Value::Map(map) = current else { unreachable!() };
            let mut all = Vec::new();
            for (key, value) in &map {
                for (other, inner) in self.others(&entry.map_entry_value_field().kind(), Some(value), at, made_up) {
                    let mut map = map.clone();
                    map.insert(key.clone(), other);
                    all.push((Value::Map(map), inner));
                }
            }
            for (other, inner) in self.others(&entry.map_entry_value_field().kind(), None, at, made_up) {
                let mut map = map.clone();
                map.insert(MapKey::String("mutated".into()), other);
                all.push((Value::Map(map), inner));
            }
            return all;
        }
        if field.is_list() {
            let Value::List(list) = current else { unreachable!() };
            let mut all = Vec::new();
            for place in 0..=list.len() {
                for (other, inner) in self.others(&field.kind(), list.get(place), &format!("{at}[{place}]"), made_up) {
                    let mut list = list.clone();
                    list.truncate(place);
                    list.push(other);
                    let Value::List(whole) = message.get_field(field).into_owned() else { unreachable!() };
                    list.extend(whole.into_iter().skip(place + 1));
                    all.push((Value::List(list), inner));
                }
            }
            return all;
        }
        let present = message.has_field(field) || !matches!(field.kind(), Kind::Message(_));
        let mut all = self.others(&field.kind(), present.then_some(&current), at, made_up);
        let wrapper = matches!(field.kind(), Kind::Message(inner) if inner.full_name().starts_with("google.protobuf.") && inner.full_name().ends_with("Value"));
        if !present && (wrapper || field.containing_oneof().is_some()) {
            // Present and empty is something else than absent.
            all.push((current, None));
        }
        all
    }

    fn others(&self, kind: &Kind, current: Option<&Value>, at: &str, made_up: usize) -> Vec<Told> {
        let plain = |values: Vec<Value>| values.into_iter().filter(|value| Some(value) != current).map(|value| (value, None)).collect();
        match kind {
            Kind::Bool => plain(vec![Value::Bool(true), Value::Bool(false)]),
            Kind::Double => plain(vec![Value::F64(50.0)]),
            Kind::Int32 => plain(vec![Value::I32(7)]),
            Kind::Int64 => plain(vec![Value::I64(7)]),
            Kind::Uint32 => plain(vec![Value::U32(7)]),
            Kind::Uint64 => plain(vec![Value::U64(7)]),
            Kind::String => plain(vec![Value::String("mutated".into()), Value::String(String::new())]),
            Kind::Bytes => plain(vec![Value::Bytes("mutated".into())]),
            Kind::Enum(words) => {
                let numbers = words.values().map(|word| word.number()).chain([77]);
                plain(numbers.map(Value::EnumNumber).collect())
            }
            Kind::Message(descriptor) => {
                let made_up = match current {
                    None if made_up == 0 => return vec![(Value::Message(DynamicMessage::new(descriptor.clone())), None)],
                    None => made_up - 1,
                    Some(_) => made_up,
                };
                let inner = current.and_then(Value::as_message).cloned().unwrap_or_else(|| DynamicMessage::new(descriptor.clone()));
                let changes = self.changes(&inner, at, made_up);
                changes.into_iter().map(|changed| (Value::Message(changed.message), Some((changed.field, changed.at)))).collect()
            }
            other => panic!("{at}: fields of {other:?} are new here"),
        }
    }

    /// What is packed into an `Any`; or, where that is nothing, some other message.
    fn inside(&self, any: &DynamicMessage, at: &str, made_up: usize) -> Vec<Changed> {
        let packed = any.transcode_to::<Any>().unwrap();
        let pool = self.pool.clone();
        let pack = |any: Any| {
            let mut message = DynamicMessage::new(pool.get_message_by_name("google.protobuf.Any").unwrap());
            message.transcode_from(&any).unwrap();
            message
        };
        if packed.type_url.is_empty() {
            let message = pack(Any { type_url: "type.googleapis.com/mutated".into(), value: Vec::new() });
            return vec![Changed { field: "Any.type_url".into(), at: at.to_owned(), message }];
        }
        let name = packed.type_url.rsplit('/').next().unwrap();
        let descriptor = self.pool.get_message_by_name(name).unwrap();
        let inner = DynamicMessage::decode(descriptor, packed.value.as_slice()).unwrap();
        let mut all = vec![Changed {
            field: "Any.type_url".into(),
            at: at.to_owned(),
            message: pack(Any { type_url: "type.googleapis.com/mutated".into(), ..packed.clone() }),
        }];
        let packed = |changed: DynamicMessage| pack(Any { value: changed.encode_to_vec(), type_url: packed.type_url.clone() });
        let empty = self.changes(&inner, at, made_up);
        all.extend(empty.into_iter().map(|changed| Changed { message: packed(changed.message), ..changed }));
        all
    }
}

/// A value, and for a change inside it whose field that was and where.
type Told = (Value, Option<(String, String)>);

fn inner_of_google(field: &FieldDescriptor) -> bool {
    let google = |kind: &Kind| matches!(kind, Kind::Message(inner) if inner.full_name().starts_with("google.protobuf.") && inner.full_name() != "google.protobuf.Any");
    match field.kind() {
        Kind::Message(entry) if field.is_map() => google(&entry.map_entry_value_field().kind()),
        kind => google(&kind),
    }
}
