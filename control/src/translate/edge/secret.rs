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
