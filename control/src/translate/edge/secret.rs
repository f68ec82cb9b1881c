//! What proxies show to servers that the mesh relies on: passwords of stores, secrets of authorization servers' clients.

use engine::consumers::SECRET_BYTES_MAX;
use proto::mesh::ShownSecret;

use super::basic::file_name;
use crate::world::World;
use crate::world::content::ContentRef;

/// What is shown, out of a Secret's entry.
///
/// # Errors
/// There is none, or it is none; the text says so without it.
pub(super) fn shown(world: &World, at: &ContentRef) -> Result<ShownSecret, String> {
    let bytes = world.content(at).map_err(|error| error.to_string())?;
    let value = bytes.trim_ascii();
    if value.is_empty() || value.len() > SECRET_BYTES_MAX {
        return Err(format!("{at} has {} bytes: what is shown has 1 to {SECRET_BYTES_MAX}", value.len()));
    }
    Ok(ShownSecret { name: file_name(at), value: value.to_vec().into() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::translate::edge::tests::world;
    use crate::world::{Kind, ObjectKey};

    #[test]
    fn what_is_shown_has_its_bound() {
        // Aim: an entry is shown without the space around it, up to the bound; nothing, and a byte more, are said without the text.
        let (most, more) = ("x".repeat(SECRET_BYTES_MAX), "x".repeat(SECRET_BYTES_MAX + 1));
        let text = format!(
            "kind: RateLimit\nmetadata: {{name: l, namespace: shop}}\nspec: {{store: {{redis: {{addresses: ['redis:6379'], authRef: {{name: s, key: good}}}}}}, \
             limits: [{{name: all, requests: 1, per: 1s}}]}}\n---\napiVersion: v1\nkind: Secret\nmetadata: {{name: s, namespace: shop}}\n\
             stringData: {{good: \" s3cret\\n\", none: \" \", most: {most}, more: {more}}}"
        );
        let world = world(&[&text]);
        let entry = |key: &str| shown(&world, &ContentRef { object: ObjectKey::new(Kind::Secret, "shop", "s"), key: key.to_owned() });
        let good = entry("good").unwrap();
        assert_eq!((good.name.as_str(), &*good.value), ("shop/s/good", &b"s3cret"[..]));
        assert_eq!(entry("most").unwrap().value.len(), SECRET_BYTES_MAX);
        for (key, said) in [("none", "has 0 bytes"), ("more", "has 4097 bytes"), ("gone", "no entry `gone`")] {
            let why = entry(key).unwrap_err();
            assert!(why.contains(said) && !why.contains("xxx"), "{key}: {why}");
        }
    }
}
