//! A network namespace per test, in a thread of its own.

use std::process::Command;
use std::thread;

use nix::sched::{CloneFlags, unshare};

/// Runs `work` in a fresh network namespace with loopback up. Panics of the work are the test's.
pub(crate) fn fresh<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("a network namespace of our own needs root: run these tests as root or under `unshare -Ur`");
        run("ip", &["link", "set", "lo", "up"]);
        work()
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Runs a program in the calling thread's namespace and returns what it printed.
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| panic!("{program} is needed (see .ci/run): {error}"));
    assert!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
