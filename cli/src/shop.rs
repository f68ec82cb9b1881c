//! The shop of `examples/shop`, carried by the binary for `up` without a folder.

use std::fs;
use std::path::Path;

use anyhow::Context;

/// File name and text of each manifest.
pub(crate) const MANIFESTS: [(&str, &str); 9] = [
    ("namespaces.yaml", include_str!("../../examples/shop/namespaces.yaml")),
    ("catalog.yaml", include_str!("../../examples/shop/catalog.yaml")),
    ("catalog-route.yaml", include_str!("../../examples/shop/catalog-route.yaml")),
    ("checkout.yaml", include_str!("../../examples/shop/checkout.yaml")),
    ("edge.yaml", include_str!("../../examples/shop/edge.yaml")),
    ("frontend.yaml", include_str!("../../examples/shop/frontend.yaml")),
    ("legacy.yaml", include_str!("../../examples/shop/legacy.yaml")),
    ("store.yaml", include_str!("../../examples/shop/store.yaml")),
    ("telemetry.yaml", include_str!("../../examples/shop/telemetry.yaml")),
];
/// What to try: `{edge}`, `{meshwright}` and `{dir}` stand for the edge's URL, this program and the folder.
const TRY: &str = include_str!("../../examples/shop/TRY.txt");
/// The file beside the manifests of any folder that says what to try there.
const TRY_FILE: &str = "TRY.txt";

/// Writes the shop's manifests into a folder, which is made.
///
/// # Errors
/// The folder or a file cannot be written.
pub(crate) fn write_to(folder: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for (name, text) in MANIFESTS.into_iter().chain([(TRY_FILE, TRY)]) {
        let path = folder.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What to try in a folder (its `TRY.txt`), ready to copy and paste; empty where there is none. Lines that need an edge are left
/// out where no edge runs.
pub(crate) fn what_to_try(folder: &Path, meshwright: &str, edge: Option<&str>) -> String {
    let text = fs::read_to_string(folder.join(TRY_FILE)).unwrap_or_default();
    fill(&text, &folder.display().to_string(), meshwright, edge)
}

fn fill(text: &str, folder: &str, meshwright: &str, edge: Option<&str>) -> String {
    text.lines()
        .filter(|line| edge.is_some() || !line.contains("{edge}"))
        .map(|line| {
            let line = line.replace("{meshwright}", meshwright).replace("{dir}", folder);
            line.replace("{edge}", edge.unwrap_or_default()) + "\n"
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: the binary carries every manifest of the folder, no more and no less.
    #[test]
    fn the_binary_carries_the_whole_shop() {
        let folder = tempfile::tempdir().unwrap();
        write_to(folder.path()).unwrap();
        let names = |path: &Path| {
            let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(folder.path()), names(Path::new("../examples/shop")));
    }

    /// Aim: lines to try hold no placeholder, and none that cannot be true.
    #[test]
    fn lines_to_try_are_filled() {
        let text = fill(TRY, "/shop", "target/release/meshwright", Some("http://127.0.0.1:8080"));
        assert!(text.contains("curl -s http://127.0.0.1:8080/buy\n") && text.contains("target/release/meshwright get proxies"));
        assert!(!text.contains('{') && text.contains("/shop/catalog-route.yaml"));
        assert!(!fill(TRY, "/shop", "m", None).contains("http:///"));
    }
}
