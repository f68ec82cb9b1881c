//! The code under `generated/` is what the sources under `proto/` say. It is kept, and not generated at every build, because the generator
//! takes longer to compile than what it writes. After a change of a source: `MESHWRIGHT_BLESS=1 cargo test -p proto --test generated`.

// Helpers may unwrap as tests do.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

mod sources;

/// Where the code is kept.
const KEPT: &str = "generated";

/// Aim: nobody changes a source without its code, or the code by hand.
#[test]
fn what_is_kept_is_what_the_sources_say() {
    let fresh = tempfile::tempdir().unwrap();
    let mut config = prost_build::Config::new();
    config
        .btree_map(["."])
        .bytes(["."])
        .enable_type_names()
        .type_name_domain(["."], "type.googleapis.com")
        .disable_comments([".google"])
        .include_file("mod.rs")
        .out_dir(fresh.path());
    tonic_prost_build::configure()
        .out_dir(fresh.path())
        .compile_fds_with_config(sources::compiled("proto").file_descriptor_set(), config)
        .unwrap();
    let wanted = files(fresh.path());
    if std::env::var_os("MESHWRIGHT_BLESS").is_some() {
        fs::remove_dir_all(KEPT).unwrap();
        fs::create_dir(KEPT).unwrap();
        wanted.iter().for_each(|(name, text)| fs::write(Path::new(KEPT).join(name), text).unwrap());
    }
    let kept = files(Path::new(KEPT));
    let differing: Vec<&String> = wanted.keys().chain(kept.keys()).filter(|name| wanted.get(*name) != kept.get(*name)).collect();
    assert!(
        differing.is_empty(),
        "run MESHWRIGHT_BLESS=1 cargo test -p proto --test generated: {differing:?} are not what the sources say"
    );
}

fn files(folder: &Path) -> BTreeMap<String, String> {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    entries.map(|entry| (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())).collect()
}
