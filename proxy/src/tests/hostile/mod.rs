//! Hostile input: what is sent, what is answered, and what it costs. `docs/hostile.md` is the table of it.

mod answers;
mod floods;
mod frames;
mod paths;
mod read;
mod slow;
mod smuggling;
mod spoofing;
mod streams;

use std::cell::RefCell;

use nix::sys::resource::{UsageWho, getrusage};

use super::*;
use crate::tests::counting::{held, highest};
use read::{Message, messages};

/// What applications answer where nothing else is said.
const DONE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
/// How long nothing moves until all is said. Virtual.
const QUIET: Duration = Duration::from_millis(200);

/// Where the hostile one stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    /// It is the application that calls through its own sidecar.
    Outbound,
    /// It calls a sidecar in plaintext, from outside the mesh, where that is permitted.
    Inbound,
    /// It calls an edge.
    Edge,
}

impl Door {
    const ALL: [Self; 3] = [Self::Outbound, Self::Inbound, Self::Edge];

    fn world(self, application: Protocol) -> World {
        let mode = if self == Self::Inbound { MtlsMode::Permissive } else { MtlsMode::Strict };
        World::new(Setup { mode, application, ..Setup::default() })
    }

    fn dial(self, world: &World) -> Socket {
        match self {
            Self::Outbound => world.dial(SERVICE),
            Self::Inbound => world.dial_server(),
            Self::Edge => world.knock(),
        }
    }
}

/// What each connection of an application got.
type Seen = Rc<RefCell<Vec<Vec<u8>>>>;

/// Records what reaches applications; each has its word when it has heard nothing new for a while.
fn record(world: &mut World, answer: &'static str) -> Seen {
    let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
    let seen = Seen::default();
    let recorded = Rc::clone(&seen);
    tokio::task::spawn_local(async move {
        while let Some((_, mut socket)) = applications.recv().await {
            let number = seen.borrow().len();
            seen.borrow_mut().push(Vec::new());
            let seen = Rc::clone(&seen);
            tokio::task::spawn_local(async move {
                let (mut room, mut answered) = (vec![0; 16 << 10], true);
                loop {
                    match tokio::time::timeout(QUIET / 10, socket.read(&mut room)).await {
                        Ok(Ok(count @ 1..)) => {
                            seen.borrow_mut()[number].extend_from_slice(&room[..count]);
                            answered = false;
                        }
                        Ok(_) => return,
                        Err(_) if answered => {
                            let Ok(count @ 1..) = socket.read(&mut room).await else { return };
                            seen.borrow_mut()[number].extend_from_slice(&room[..count]);
                            answered = false;
                        }
                        Err(_) => {
                            let _ = socket.write_all(answer.as_bytes()).await;
                            answered = true;
                        }
                    }
                }
            });
        }
    });
    recorded
}

/// What a hostile one got to hear.
#[derive(Debug)]
struct Heard {
    text: String,
    /// Its connection was ended.
    closed: bool,
}

/// Everything that comes until nothing does.
async fn hear(socket: &mut Socket) -> Heard {
    let mut bytes = Vec::new();
    loop {
        match tokio::time::timeout(QUIET, socket.read_buf(&mut bytes)).await {
            Ok(Ok(1..)) => {}
            ended => return Heard { text: String::from_utf8_lossy(&bytes).into_owned(), closed: ended.is_ok() },
        }
    }
}

/// What something cost this thread.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// The most memory that was held at once, beyond what was held before.
    bytes: i64,
    /// Of the processor, in a development build.
    cpu: Duration,
}

/// Measures from its making on.
struct Meter {
    held: i64,
    cpu: Duration,
}

impl Meter {
    fn begin() -> Self {
        highest();
        Self { held: held(), cpu: cpu() }
    }

    fn read(&self) -> Cost {
        Cost { bytes: highest() - self.held, cpu: cpu() - self.cpu }
    }

    /// Judges what it cost, and says so where the output is shown.
    fn judge(&self, what: &str, bytes_max: i64) {
        let cost = self.read();
        println!("{what}: {} KiB, {:?}", cost.bytes >> 10, cost.cpu);
        assert!(cost.bytes <= bytes_max, "{what}: {cost:?} is more than {} KiB", bytes_max >> 10);
    }
}

/// What this thread has used of the processor.
fn cpu() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    [usage.user_time(), usage.system_time()]
        .iter()
        .map(|time| Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64))
        .sum()
}

/// What a case says when it is not as it should be.
type Judged = Result<(), String>;

fn check(holds: bool, told: impl FnOnce() -> String) -> Judged {
    if holds { Ok(()) } else { Err(told()) }
}

/// All of a table's cases that are not as they should be, at once.
#[derive(Default)]
struct Verdicts(Vec<String>);

impl Verdicts {
    fn add(&mut self, judged: Judged) {
        self.0.extend(judged.err());
    }
}

impl Drop for Verdicts {
    fn drop(&mut self) {
        assert!(self.0.is_empty() || std::thread::panicking(), "{}", self.0.join("\n"));
    }
}

/// The whole messages that applications got since this was last asked, read as strictly as HTTP may be. A connection may have been cut within its last one.
fn strictly(seen: &Seen) -> Result<Vec<Message>, String> {
    let mut all = Vec::new();
    for bytes in seen.borrow_mut().iter_mut() {
        let read = messages(bytes);
        let wrong = |wrong| format!("the application got what can be read in two ways ({wrong}): {:?}", String::from_utf8_lossy(bytes));
        all.extend(read.map_err(wrong)?.0);
        bytes.clear();
    }
    Ok(all)
}
