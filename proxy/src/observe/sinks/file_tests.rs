use std::sync::OnceLock;

use super::super::super::collector::Way;
use super::super::queue::queue;
use super::*;
use crate::io::Network;

fn means(losses: &Arc<Losses>) -> SinkMeans {
    SinkMeans {
        clock: Clock::System,
        way: Way { network: Network::Kernel { mark: None }, tls: None },
        instance: "store-0".into(),
        services: Arc::new(OnceLock::new()),
        losses: Arc::clone(losses),
    }
}

/// A sink of so many bytes that looks anew at each write, and what it loses.
fn sink(path: &Path, bytes_max: u64, keep: u32) -> (FileSink, Arc<Losses>) {
    let losses = Arc::default();
    let file = LogFile { path: String::new(), bytes_max, keep };
    (FileSink::new(&file, path.to_str().unwrap().to_owned(), &means(&losses)), losses)
}

impl FileSink {
    fn line(&mut self, text: &str) {
        self.looked = None;
        self.write(&Sheet { bytes: text.as_bytes().to_vec(), lines: text.lines().count() as u64 });
    }
}

fn lost(losses: &Losses) -> u64 {
    losses.rows().find(|(sink, _)| *sink == "file").unwrap().1
}

/// Aim: a file is put aside before it grows beyond its bound, on ends of lines, so many are kept, and no line is lost or cut.
#[test]
fn files_are_put_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh.log");
    let (mut sink, losses) = sink(&path, 10, 2);
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).ok();
    sink.line("one\ntwo\n");
    assert_eq!((read("mesh.log").unwrap().as_str(), read("mesh.log.1")), ("one\ntwo\n", None));
    // One sheet over three files, one line longer than a file.
    sink.line("3\nfour\nfive\nlonger than a file\n6\n");
    assert_eq!(read("mesh.log").unwrap(), "6\n");
    assert_eq!((read("mesh.log.1").unwrap().as_str(), read("mesh.log.2").unwrap().as_str()), ("longer than a file\n", "four\nfive\n"));
    assert_eq!((read("mesh.log.3"), lost(&losses)), (None, 0));
    // What is there at the start counts.
    let (mut again, _) = self::sink(&path, 10, 2);
    again.line("123456789\n");
    assert_eq!((read("mesh.log").unwrap().as_str(), read("mesh.log.1").unwrap().as_str()), ("123456789\n", "6\n"));
}

/// Aim: a file that somebody else moves or removes is opened anew, as logrotate expects it.
#[test]
fn files_that_are_moved_are_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let (path, moved) = (folder.path().join("mesh.log"), folder.path().join("mesh.log.old"));
    let (mut sink, losses) = sink(&path, 1 << 20, 2);
    sink.line("one\n");
    fs::rename(&path, &moved).unwrap();
    sink.line("two\n");
    assert_eq!((fs::read_to_string(&moved).unwrap(), fs::read_to_string(&path).unwrap()), ("one\n".into(), "two\n".into()));
    fs::remove_file(&path).unwrap();
    sink.line("three\n");
    assert_eq!((fs::read_to_string(&path).unwrap().as_str(), lost(&losses)), ("three\n", 0));
}

/// Aim: what cannot be opened or written is counted line by line, and written again as soon as it can be.
#[test]
fn a_failing_disk_costs_lines_only() {
    let (mut full, losses) = sink(Path::new("/dev/full"), 1 << 20, 2);
    full.line("one\ntwo\n");
    assert_eq!(lost(&losses), 2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("later/mesh.log");
    let (mut sink, losses) = sink(&path, 1 << 20, 2);
    sink.line("one\ntwo\nthree\n");
    // Not tried again before it is time.
    sink.write(&Sheet { bytes: b"four\n".to_vec(), lines: 1 });
    assert_eq!(lost(&losses), 4);
    fs::create_dir(path.parent().unwrap()).unwrap();
    sink.line("five\n");
    assert_eq!((fs::read_to_string(&path).unwrap().as_str(), lost(&losses)), ("five\n", 4));
}

/// Aim: after a line of which only the beginning was written the next one is on a line of its own.
#[test]
fn a_torn_line_stays_alone() {
    struct Small(Vec<u8>, usize);
    impl Write for Small {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let room = bytes.len().min(self.1);
            if room == 0 {
                return Err(ErrorKind::StorageFull.into());
            }
            self.0.extend_from_slice(&bytes[..room]);
            self.1 -= room;
            Ok(room)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut disk = Small(Vec::new(), 6);
    let (written, outcome) = write_out(&mut disk, b"one\ntwo\n");
    assert_eq!((written, outcome.unwrap_err().kind(), disk.0.as_slice()), (6, ErrorKind::StorageFull, &b"one\ntw"[..]));
    let folder = tempfile::tempdir().unwrap();
    let mut open = OpenFile::at(&folder.path().join("a")).unwrap();
    open.is_torn = true;
    assert!(open.append(b"three\n").1.is_ok());
    assert_eq!(fs::read_to_string(folder.path().join("a")).unwrap(), "\nthree\n");
}

/// Aim: the thread writes what it was given and ends with its queue.
#[test]
fn a_queue_ends_in_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mesh.log");
    let (sink, _) = sink(&path, 1 << 20, 2);
    let (sender, queue) = queue();
    for n in 0..100 {
        sender.send(Sheet { bytes: format!("{n}\n").into_bytes(), lines: 1 }).unwrap();
    }
    drop(sender);
    sink.run(queue);
    assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 100);
}
