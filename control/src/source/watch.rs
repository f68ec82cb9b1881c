//! The folder on disk: read once, then watched. Every event only says "look again"; what is reported is the difference between two
//! looks, so an editor's dance of temporary files and renames is one change.
//!
//! A burst of events is waited out, because files that are written by one command belong together. What runs is part of nothing, and is
//! wanted soon: a file of that alone, the first one after a rest and written to its end, is read without waiting for others.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use notify::event::{AccessKind, AccessMode, ModifyKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::time::Instant;
use xxhash_rust::xxh3::xxh3_128;

use super::folder::FileChange;
use crate::world::tree::FILE_BYTES_MAX;

/// Quiet time that ends a burst of events.
const QUIET: Duration = Duration::from_millis(100);
/// The same for a single file after a rest as long as [`QUIET`], if it holds what runs and nothing else.
const QUIET_ALONE: Duration = Duration::from_millis(5);
/// Largest file that is read so: it is read twice where it holds something else.
const ALONE_BYTES_MAX: u64 = 64 * 1024;
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

/// What the kernel told of since the last look.
#[derive(Debug, Default, PartialEq, Eq)]
enum Burst {
    /// Of no manifest by name.
    #[default]
    Nothing,
    /// Of one, which is whole if nobody is about to write more of it.
    One { path: PathBuf, whole: bool },
    /// Of several, or of one that was taken away.
    Several,
}

impl Burst {
    /// Takes an event in that may stand for a change ([`changes`]).
    fn take(&mut self, event: &notify::Result<Event>) {
        let Ok(event) = event else {
            *self = Self::Several;
            return;
        };
        let whole = match event.kind {
            EventKind::Access(_) | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => Some(true),
            // Rights and times of what is written already; and a rename of which each end was told of.
            EventKind::Modify(ModifyKind::Metadata(_) | ModifyKind::Name(RenameMode::Both)) => return,
            EventKind::Create(_) | EventKind::Modify(ModifyKind::Data(_)) => Some(false),
            _ => None,
        };
        for path in event.paths.iter().filter(|path| is_manifest(path)) {
            *self = match (std::mem::take(self), whole) {
                (Self::Nothing, Some(whole)) => Self::One { path: path.clone(), whole },
                (Self::One { path: known, .. }, Some(whole)) if known == *path => Self::One { path: known, whole },
                _ => Self::Several,
            };
        }
        if event.need_rescan() {
            *self = Self::Several;
        }
    }

    /// The file that was told of, if it is the only one and whole.
    fn whole(&self) -> Option<&Path> {
        match self {
            Self::One { path, whole: true } => Some(path),
            _ => None,
        }
    }
}

/// A folder being watched.
pub struct Watch {
    folder: PathBuf,
    seen: BTreeMap<String, LastLook>,
    events: mpsc::Receiver<()>,
    poke: mpsc::Sender<()>,
    burst: Arc<Mutex<Burst>>,
    /// The end of the last burst.
    rests: Instant,
    watcher: Option<RecommendedWatcher>,
}

impl Watch {
    /// Reads the folder and starts to watch it. The changes are its whole content.
    ///
    /// # Errors
    /// The folder cannot be read. (Files in it that cannot be read are part of the answer.)
    pub fn start(folder: &Path) -> io::Result<(Self, Vec<FileChange>)> {
        let (poke, events) = mpsc::channel(1);
        let (folder, burst, rests) = (folder.to_owned(), Arc::default(), Instant::now());
        let mut watch = Self { folder, seen: BTreeMap::new(), events, poke, burst, rests, watcher: None };
        // Watch before the first look, so that nothing falls between the two.
        watch.listen();
        let changes = watch.look()?;
        Ok((watch, changes))
    }

    /// Waits for the next batch of changes; never an empty one. A folder that cannot be read at the moment keeps its content. `runs`: whether
    /// a file has what runs and nothing else, as it was and as it is.
    ///
    /// Cancel safe: what was found before a cancel is found again.
    pub async fn next(&mut self, runs: impl Fn(&FileChange) -> bool) -> Vec<FileChange> {
        loop {
            let pause = if self.watcher.is_some() { LOOK_WATCHED } else { LOOK_BLIND };
            if let Ok(Some(())) = tokio::time::timeout(pause, self.events.recv()).await {
                let end = Instant::now() + BURST_MAX;
                if self.rests.elapsed() >= QUIET
                    && let Some(change) = self.alone(&runs, end).await
                {
                    self.rests = Instant::now();
                    return vec![change];
                }
                while Instant::now() < end && matches!(tokio::time::timeout(QUIET, self.events.recv()).await, Ok(Some(()))) {}
                self.rests = Instant::now();
            } else if self.watcher.is_none() {
                self.listen();
            }
            *self.burst.lock() = Burst::Nothing;
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

    /// The one file that is changed, if there is no other, it is whole, and `runs` says that it need not wait for others.
    async fn alone(&mut self, runs: impl Fn(&FileChange) -> bool, end: Instant) -> Option<FileChange> {
        while *self.burst.lock() != Burst::Several
            && Instant::now() < end
            && matches!(tokio::time::timeout(QUIET_ALONE, self.events.recv()).await, Ok(Some(())))
        {}
        let told = self.burst.lock().whole()?.to_owned();
        // The kernel's events name files below an absolute path.
        let path = self.folder.join(told.strip_prefix(std::path::absolute(&self.folder).ok()?).ok()?);
        let file = path.to_string_lossy().into_owned();
        // A new file is the first of many more often than one that is known.
        let known = self.seen.get(&file)?;
        let stamp = stamp(&path).filter(|(_, bytes)| *bytes <= ALONE_BYTES_MAX)?;
        let text = read_text(&path).ok()?;
        let content = Ok(xxh3_128(text.as_bytes()));
        let change = FileChange { file: file.clone(), text: Some(Ok(text)) };
        if known.content == content || !runs(&change) {
            return None;
        }
        // Of what came since, another burst is made.
        *self.burst.lock() = Burst::Nothing;
        self.seen.insert(file, LastLook { stamp: Some(stamp), content });
        Some(change)
    }

    fn listen(&mut self) {
        let (poke, burst) = (self.poke.clone(), Arc::clone(&self.burst));
        let watcher = notify::recommended_watcher(move |event| {
            if changes(&event) {
                burst.lock().take(&event);
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
            let stamp = stamp(&path);
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
        } else if is_manifest(&path) {
            if paths.len() >= FILES_MAX {
                return Err(io::Error::other(format!("the folder has more than {FILES_MAX} manifests")));
            }
            paths.push(path);
        }
    }
    Ok(())
}

/// Whether a file's name is that of a manifest.
fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    !hidden && path.extension().is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known))
}

fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    fs::metadata(path).ok().and_then(|metadata| Some((metadata.modified().ok()?, metadata.len())))
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
    use notify::event::{CreateKind, DataChange, Flag, MetadataKind, RemoveKind};

    use super::*;

    async fn names(watch: &mut Watch) -> Vec<(String, bool)> {
        let changes = tokio::time::timeout(Duration::from_secs(30), watch.next(|_| false)).await.expect("a change within 30 s");
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

    fn event(kind: EventKind, paths: &[&str]) -> notify::Result<Event> {
        Ok(paths.iter().fold(Event::new(kind), |event, path| event.add_path(PathBuf::from(path))))
    }

    #[test]
    fn one_whole_file_is_told_from_several() {
        // Aim: a write in place is whole when it is closed, a rename at once; a second manifest, one that goes and a lost event are several;
        // temporary files are neither.
        let name = |mode| EventKind::Modify(ModifyKind::Name(mode));
        let written = EventKind::Access(AccessKind::Close(AccessMode::Write));
        let (data, create) = (EventKind::Modify(ModifyKind::Data(DataChange::Any)), EventKind::Create(CreateKind::File));
        let rights = EventKind::Modify(ModifyKind::Metadata(MetadataKind::Any));
        let a = || Some(Path::new("a.yaml"));
        let cases = [
            (vec![event(data, &["a.yaml"])], None),
            (vec![event(data, &["a.yaml"]), event(written, &["a.yaml"]), event(rights, &["a.yaml"])], a()),
            (vec![event(written, &["a.yaml"]), event(data, &["a.yaml"])], None),
            (
                vec![
                    event(create, &[".a.yaml"]),
                    event(written, &[".a.yaml"]),
                    event(name(RenameMode::From), &[".a.yaml"]),
                    event(name(RenameMode::To), &["a.yaml"]),
                    event(name(RenameMode::Both), &[".a.yaml", "a.yaml"]),
                ],
                a(),
            ),
            (vec![event(written, &["a.yaml"]), event(create, &["b.yaml"])], None),
            (vec![event(EventKind::Remove(RemoveKind::File), &["a.yaml"]), event(written, &["a.yaml"])], None),
            (vec![event(name(RenameMode::From), &["a.yaml"]), event(name(RenameMode::To), &["a.yaml"])], None),
            (vec![event(written, &["a.yaml"]), Ok(Event::new(EventKind::Other).set_flag(Flag::Rescan))], None),
            (vec![event(written, &["a.yaml"]), Err(notify::Error::generic("lost"))], None),
            (vec![event(written, &["notes.txt"])], None),
        ];
        for (number, (events, whole)) in cases.into_iter().enumerate() {
            let mut burst = Burst::default();
            events.iter().for_each(|event| burst.take(event));
            assert_eq!(burst.whole(), whole, "{number}: {events:?}");
        }
    }

    #[tokio::test]
    async fn what_runs_does_not_wait_for_others() {
        // Aim: after a rest, one known file of what runs is told by itself, before its neighbour that comes a moment later; anything else, and
        // what follows at once, waits for the burst's end, and no change is told twice.
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        let names = ["a.yaml", "b.yaml", "other.yaml"];
        names.iter().for_each(|name| write(name, "1"));
        let (mut watch, _) = Watch::start(folder.path()).unwrap();
        assert!(watch.watcher.is_some());
        let runs = |change: &FileChange| !change.file.ends_with("other.yaml");
        let told =
            |changes: Vec<FileChange>| changes.iter().map(|change| change.file[change.file.len() - 6..].to_owned()).collect::<Vec<_>>();
        let (mut ever, tries) = (false, 10);
        for number in 0..tries {
            for (first, alone) in [("a.yaml", true), ("other.yaml", false), ("new.yaml", false)] {
                tokio::time::sleep(QUIET * 2).await;
                let (begun, text) = (std::time::Instant::now(), format!("{first} {number}"));
                write(first, &text);
                assert_eq!(told(watch.next(runs).await), [&first[first.len() - 6..]], "{first}");
                let soon = begun.elapsed() < QUIET;
                assert!(alone || !soon, "{first}");
                ever |= soon;
                // Two of them are a burst, and one change.
                write("b.yaml", &text);
                tokio::time::sleep(QUIET_ALONE * 4).await;
                write("other.yaml", &text.repeat(2));
                assert_eq!(told(watch.next(runs).await), ["b.yaml", "r.yaml"], "{first}");
            }
            fs::remove_file(folder.path().join("new.yaml")).unwrap();
            assert_eq!(told(watch.next(runs).await), ["w.yaml"]);
            // A machine that is busy may take longer between two events; it is not always.
            if ever {
                return;
            }
        }
        panic!("not once of {tries} times alone");
    }
}
