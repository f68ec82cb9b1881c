//! The sources under `proto/`, compiled.

use std::fs;
use std::path::{Path, PathBuf};

/// All of them; `root` is where they lie, seen from the crate whose tests ask.
pub(crate) fn compiled(root: &str) -> protox::Compiler {
    let mut sources = Vec::new();
    collect(Path::new(root), &mut sources);
    sources.sort();
    let mut compiler = protox::Compiler::new([root]).unwrap();
    compiler.include_imports(true).include_source_info(true).open_files(&sources).unwrap();
    compiler
}

fn collect(folder: &Path, sources: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            sources.push(path);
        }
    }
}
