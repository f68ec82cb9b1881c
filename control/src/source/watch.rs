//! The folder on disk: read once, then watched. Every event only says "look again"; what is reported is the difference between two
//! looks, so an editor's dance of temporary files and renames is one change.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use notify::event::{AccessKind, AccessMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

use super::folder::FileChange;
use crate::world::tree::FILE_BYTES_MAX;

/// Quiet time that ends a burst of events.
const QUIET: Duration = Duration::from_millis(100);
/// Longest burst.
const BURST_MAX: Duration = Duration::from_secs(1);
/// How often we look without being told, while the kernel tells us, and while it does not.
const LOOK_WATCHED: Duration = Duration::from_secs(10);
/// See [`LOOK_WATCHED`].
const LOOK_BLIND: Duration = Duration::from_secs(1);
/// Most files of a folder.
const FILES_MAX: usize = 10_000;
/// Deepest folder below the folder; also ends loops of links.
const DEPTH_MAX: usize = 16;
/// A file changed this shortly ago may change again within the clock's tick: read it, whatever its stamp says.
const FRESH: Duration = Duration::from_secs(2);

/// A file as it was at the last look.
#[derive(Debug)]
struct LastLook {
    stamp: Option<(SystemTime, u64)>,
    /// Hash of its text, or why it could not be read.
    content: Result<u128, String>,
}

/// A folder being watched.
pub struct Watch {
    folder: PathBuf,
    seen: BTreeMap<String, LastLook>,
    events: mpsc::Receiver<()>,
    poke: mpsc::Sender<()>,
    watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Reads the folder and starts to watch it. The changes are its whole content.
    ///
    /// # Errors
    /// The folder cannot be read. (Files in it that cannot be read are part of the answer.)
    pub fn start(folder: &Path) -> io::Result<(Self, Vec<FileChange>)> {
        let (poke, events) = mpsc::channel(1);
        let mut watch = Self { folder: folder.to_owned(), seen: BTreeMap::new(), events, poke, watcher: None };
        // Watch before the first look, so that nothing falls between the two.
        watch.listen();
        let changes = watch.look()?;
        Ok((watch, changes))
    }

    /// Waits for the next batch of changes; never an empty one. A folder that cannot be read at the moment keeps its content.
    ///
    /// Cancel safe: what was found before a cancel is found again.
    pub async fn next(&mut self) -> Vec<FileChange> {
        loop {
            let pause = if self.watcher.is_some() { LOOK_WATCHED } else { LOOK_BLIND };
            if let Ok(Some(())) = tokio::time::timeout(pause, self.events.recv()).await {
                let end = Instant::now() + BURST_MAX;
                while Instant::now() < end && matches!(tokio::time::timeout(QUIET, self.events.recv()).await, Ok(Some(()))) {}
            } else if self.watcher.is_none() {
                self.listen();
            }
            match self.look() {
                Ok(changes) if changes.is_empty() => {}
                Ok(changes) => return changes,
                Err(error) => {
                    tracing::warn!(folder = %self.folder.display(), %error, "the folder cannot be read; its objects stay as they were");
                    self.watcher = None;
                }
            }
        }
    }

    fn listen(&mut self) {
        let poke = self.poke.clone();
        let watcher = notify::recommended_watcher(move |event| {
            if changes(&event) {
                // A full channel means that a look is due anyway.
                let _ = poke.try_send(());
            }
        });
        let watched = watcher.and_then(|mut watcher| watcher.watch(&self.folder, RecursiveMode::Recursive).map(|()| watcher));
        match watched {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => tracing::debug!(folder = %self.folder.display(), %error, "cannot watch the folder; looking every second"),
        }
    }

    fn look(&mut self) -> io::Result<Vec<FileChange>> {
        let mut paths = Vec::new();
        walk(&self.folder, 0, &mut paths)?;
        let (mut before, mut now, mut changes) = (std::mem::take(&mut self.seen), BTreeMap::new(), Vec::new());
        for path in paths {
            let file = path.to_string_lossy().into_owned();
            let mut known = before.remove(&file);
            let stamp = fs::metadata(&path).ok().and_then(|metadata| Some((metadata.modified().ok()?, metadata.len())));
            let settled = stamp.is_some_and(|(changed, _)| changed.elapsed().is_ok_and(|age| age > FRESH));
            if let Some(known) = known.take_if(|known| settled && known.stamp == stamp) {
                now.insert(file, known);
                continue;
            }
            let text = read_text(&path);
            let content = text.as_ref().map(|text| xxh3_128(text.as_bytes())).map_err(Clone::clone);
            if known.is_none_or(|known| known.content != content) {
                changes.push(FileChange { file: file.clone(), text: Some(text) });
            }
            now.insert(file, LastLook { stamp, content });
        }
        changes.sort_by(|one, other| one.file.cmp(&other.file));
        changes.extend(before.into_keys().map(|file| FileChange { file, text: None }));
        self.seen = now;
        Ok(changes)
    }
}

/// Whether an event may stand for a change. Reading is none: each look reads, and would lead to the next one.
fn changes(event: &notify::Result<Event>) -> bool {
    let written = AccessKind::Close(AccessMode::Write);
    !matches!(event, Ok(event) if matches!(event.kind, EventKind::Access(kind) if kind != written))
}

/// Reads a folder once, sorted by path: for `analyze`, and for whoever does not want to watch.
///
/// # Errors
/// The folder cannot be read.
pub fn load(folder: &Path) -> io::Result<Vec<FileChange>> {
    let mut paths = Vec::new();
    walk(folder, 0, &mut paths)?;
    paths.sort();
    Ok(paths.iter().map(|path| FileChange { file: path.to_string_lossy().into_owned(), text: Some(read_text(path)) }).collect())
}

/// Collects manifests: `*.yaml`, `*.yml`, `*.json`, below too, no dotfiles. Links are followed, as in mounted ConfigMaps.
fn walk(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        let path = entry.path();
        // What vanishes between the two calls, or is a broken link, is not there.
        let Ok(metadata) = fs::metadata(&path) else { continue };
        if metadata.is_dir() {
            if depth < DEPTH_MAX {
                match walk(&path, depth + 1, paths) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    // Dropping what is in there would take objects away that nobody took away.
                    Err(error) => return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display()))),
                    Ok(()) => {}
                }
            }
        } else if path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known)) {
            if paths.len() >= FILES_MAX {
                return Err(io::Error::other(format!("the folder has more than {FILES_MAX} manifests")));
            }
            paths.push(path);
        }
    }
    Ok(())
}

fn read_text(path: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    let limit = FILE_BYTES_MAX as u64 + 1;
    let read = fs::File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes));
    read.map_err(|error| format!("cannot be read: {error}"))?;
    if bytes.len() > FILE_BYTES_MAX {
        return Err(format!("has more than {FILE_BYTES_MAX} bytes"));
    }
    String::from_utf8(bytes).map_err(|_| "is not UTF-8 text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn names(watch: &mut Watch) -> Vec<(String, bool)> {
        let changes = tokio::time::timeout(Duration::from_secs(30), watch.next()).await.expect("a change within 30 s");
        let name = |file: &str| Path::new(file).file_name().unwrap().to_string_lossy().into_owned();
        changes.iter().map(|change| (name(&change.file), change.text.is_some())).collect()
    }

    #[tokio::test]
    async fn a_rename_over_a_file_is_one_change() {
        // Aim: the first look has manifests only; an editor's save, a new folder and a removal each are one batch.
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("b.yaml"), "1").unwrap();
        fs::write(at("a.json"), "1").unwrap();
        fs::write(at(".hidden.yaml"), "1").unwrap();
        fs::write(at("notes.txt"), "1").unwrap();
        let (mut watch, first) = Watch::start(folder.path()).unwrap();
        assert_eq!(
            first.iter().map(|change| change.file.clone()).collect::<Vec<_>>(),
            ["a.json", "b.yaml"].map(|name| at(name).to_string_lossy().into_owned())
        );
        fs::write(at("b.yaml~"), "2").unwrap();
        fs::rename(at("b.yaml~"), at("b.yaml")).unwrap();
        assert_eq!(names(&mut watch).await, [("b.yaml".to_owned(), true)]);
        fs::create_dir(at("below")).unwrap();
        fs::write(at("below/c.yml"), [0xff]).unwrap();
        assert_eq!(names(&mut watch).await, [("c.yml".to_owned(), true)]);
        fs::remove_file(at("a.json")).unwrap();
        assert_eq!(names(&mut watch).await, [("a.json".to_owned(), false)]);
        assert!(Watch::start(&at("nowhere")).is_err());
    }

    #[tokio::test]
    async fn a_look_is_no_reason_for_the_next() {
        // Aim: reading the folder and its files is not taken for a change; a control plane at rest does not look all the time.
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("a.yaml"), "1").unwrap();
        let (mut watch, _) = Watch::start(folder.path()).unwrap();
        assert!(watch.watcher.is_some());
        assert!(watch.look().unwrap().is_empty());
        let told = tokio::time::timeout(Duration::from_millis(300), watch.events.recv()).await;
        assert!(told.is_err(), "a look was taken for a change");
        fs::write(folder.path().join("a.yaml"), "2").unwrap();
        assert!(tokio::time::timeout(Duration::from_secs(30), watch.events.recv()).await.is_ok());
    }
}
