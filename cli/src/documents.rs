//! Manifests named on a command line: a file, a folder or standard input.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use proto::mesh::Document;

/// Bytes taken from one file or from standard input.
const FILE_BYTES_MAX: u64 = 16 << 20;
/// Files taken from one folder.
const FILES_MAX: usize = 10_000;
/// Folders within folders.
const DEPTH_MAX: usize = 32;

/// Reads everything that `-f` names: `-` is standard input; of a folder, all `*.yaml`, `*.yml` and `*.json` below it but no dotfiles,
/// in the order of their paths.
///
/// # Errors
/// A name does not exist or cannot be read, or nothing was found at all.
pub(crate) fn read(names: &[PathBuf]) -> anyhow::Result<Vec<Document>> {
    let mut documents = Vec::new();
    for name in names {
        if name.as_os_str() == "-" {
            documents.push(Document { path: "-".to_owned(), text: text(std::io::stdin().lock(), "standard input")? });
        } else if name.is_dir() {
            let mut files = Vec::new();
            collect(name, 0, &mut files)?;
            if files.is_empty() {
                bail!("{} holds no *.yaml, *.yml or *.json file", name.display());
            }
            files.sort();
            for file in files {
                documents.push(document(&file)?);
            }
        } else {
            documents.push(document(name)?);
        }
    }
    Ok(documents)
}

fn document(path: &Path) -> anyhow::Result<Document> {
    let shown = path.display().to_string();
    let file = fs::File::open(path).with_context(|| format!("cannot open {shown}"))?;
    Ok(Document { text: text(file, &shown)?, path: shown })
}

fn text(source: impl Read, shown: &str) -> anyhow::Result<String> {
    let mut bytes = Vec::new();
    source.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {shown}"))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        bail!("{shown} is larger than {} MiB; split it into several files", FILE_BYTES_MAX >> 20);
    }
    String::from_utf8(bytes).with_context(|| format!("{shown} is not UTF-8 text"))
}

fn collect(folder: &Path, depth: usize, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if depth > DEPTH_MAX {
        bail!("{} lies more than {DEPTH_MAX} folders deep; does a link lead back up?", folder.display());
    }
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        if path.is_dir() {
            collect(&path, depth + 1, files)?;
        } else if path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml" || extension == "json") {
            files.push(path);
        }
        if files.len() > FILES_MAX {
            bail!("{} holds more than {FILES_MAX} manifests; name a smaller folder", folder.display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: a folder is read to the bottom, in order, without dotfiles and strangers; an empty one is an error.
    #[test]
    fn folders_are_read_as_the_contract_says() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("b/.git")).unwrap();
        for name in ["b/x.yml", "a.yaml", "c.json", "b/.git/y.yaml", ".hidden.yaml", "README.md"] {
            fs::write(root.path().join(name), name).unwrap();
        }
        let found = read(&[root.path().to_owned()]).unwrap();
        assert_eq!(found.iter().map(|document| document.text.as_str()).collect::<Vec<_>>(), ["a.yaml", "b/x.yml", "c.json"]);

        let empty = tempfile::tempdir().unwrap();
        assert!(read(&[empty.path().to_owned()]).unwrap_err().to_string().contains("holds no"));
        assert!(read(&["nowhere.yaml".into()]).unwrap_err().to_string().contains("cannot open nowhere.yaml"));
    }
}
