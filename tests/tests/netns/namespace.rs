//! A network namespace per test, in a thread of its own.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
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

/// Another namespace, joined to the calling thread's by one link: 10.77.0.2 and fd00:6d77:77::2 here, .3 and ::3 there. Goes with the value.
pub(crate) struct Beyond(String);

impl Beyond {
    /// Makes it.
    pub(crate) fn join() -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let beyond = Self(format!("mw-test-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed)));
        run("ip", &["netns", "add", &beyond.0]);
        run("ip", &["link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", &beyond.0]);
        run("ip", &["addr", "add", "10.77.0.2/16", "dev", "eth0"]);
        run("ip", &["addr", "add", "fd00:6d77:77::2/64", "dev", "eth0", "nodad"]);
        run("ip", &["link", "set", "eth0", "up"]);
        for args in ["addr add 10.77.0.3/16 dev eth0", "addr add fd00:6d77:77::3/64 dev eth0 nodad", "link set eth0 up"] {
            let all: Vec<&str> = ["-n", beyond.0.as_str()].into_iter().chain(args.split(' ')).collect();
            run("ip", &all);
        }
        beyond
    }

    /// Runs a program there, for five seconds at most, and returns what it printed.
    pub(crate) fn run(&self, program: &str, args: &[&str]) -> String {
        let all: Vec<&str> = ["netns", "exec", self.0.as_str(), "timeout", "5", program].into_iter().chain(args.iter().copied()).collect();
        run("ip", &all)
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        run("ip", &["netns", "del", &self.0]);
    }
}
