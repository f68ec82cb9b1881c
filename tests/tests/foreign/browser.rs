//! A real browser in the storefront: Chromium, driven by `tests/clients/browser`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::guide;
use crate::mesh::{client, root, said};
use crate::storefront::Storefront;

/// Where `tests/run-all` puts what drives the browser.
fn modules() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    let path = target.join("browser");
    assert!(path.join("node_modules/playwright-core").is_dir(), "{} has no playwright-core; `tests/run-all` installs it", path.display());
    path
}

/// Debian's, and what others call it.
fn chromium() -> &'static Path {
    let known = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].map(Path::new);
    known.into_iter().find(|path| path.exists()).unwrap_or_else(|| panic!("no Chromium; `tests/run-all` installs it"))
}

/// Aim: Chromium, which believes the storefront's authority and no other of ours, loads the page over TLS 1.3, sees events as they are sent,
/// talks by WebSocket, logs in, stays so in another tab, logs out and is asked again; and no page is wider than a telephone. The
/// screenshots stay where `MESHWRIGHT_SCREENSHOTS` says.
#[test]
fn a_browser_walks_through_the_shop() {
    let store = Storefront::start(&mut guide::lines("storefront.md").into_iter());
    let folder = tempfile::tempdir().unwrap();
    let urls = ["http://shop.localhost:8080/", "https://shop.localhost:8443/", "https://id.localhost:8443/"].map(|url| store.here(url));
    let mut walk = Command::new("node");
    walk.arg(client("browser/walk.mjs")).arg(modules()).arg(chromium()).arg(store.authority()).args(urls).arg(folder.path());
    let output = walk.output().expect("node, version 20 or newer");
    if let Some(kept) = std::env::var_os("MESHWRIGHT_SCREENSHOTS") {
        keep(folder.path(), Path::new(&kept));
    }
    assert!(output.status.success(), "{}\n{}", said(&output), store.mesh.log());
    assert!(said(&output).contains("browser ok"), "{}", said(&output));
    store.leave();
}

fn keep(folder: &Path, kept: &Path) {
    fs::create_dir_all(kept).unwrap();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "png") {
            fs::copy(entry.path(), kept.join(entry.file_name())).unwrap();
        }
    }
}
