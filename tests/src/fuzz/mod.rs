//! Every parser that meets bytes of others, as a function of bytes that must hold for all of them.
//!
//! [`targets`] are what `tests/fuzz` hands to libFuzzer at the desk. Without it, [`drive`] feeds them mutants of valid samples on a few threads: that
//! is what CI runs.

mod changes;
mod http;
mod logs;
mod mutate;
mod names;
mod plane;
mod samples;
mod wire;

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use mutate::Mutator;

/// How long a thread stays with one target.
const TURN: Duration = Duration::from_millis(500);
/// What one input may take in a development build on a busy machine; more is a way to keep a proxy busy with few bytes.
const INPUT_WAIT: Duration = Duration::from_secs(5);

/// One parser and what must hold of it.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// In words.
    pub name: &'static str,
    /// Valid inputs, from which others are made.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Panics where something does not hold.
    pub take: fn(&[u8]),
}

/// All of them.
pub fn targets() -> [Target; 15] {
    [
        Target { name: "first bytes", seeds: samples::first_bytes, take: wire::first_bytes },
        Target { name: "proxy protocol", seeds: samples::proxied, take: wire::proxied },
        Target { name: "frames", seeds: samples::frames, take: wire::frames },
        Target { name: "dns", seeds: samples::questions, take: wire::dns },
        Target { name: "heads", seeds: samples::heads, take: http::heads },
        Target { name: "paths", seeds: samples::paths, take: http::paths },
        Target { name: "sessions", seeds: http::sessions_given, take: http::sessions },
        Target { name: "tokens", seeds: samples::tokens, take: http::tokens },
        Target { name: "names", seeds: samples::names, take: names::names },
        Target { name: "access log", seeds: logs::said, take: logs::access_log },
        Target { name: "certificates", seeds: samples::certificates, take: names::certificates },
        Target { name: "manifests", seeds: samples::manifests, take: plane::manifests },
        Target { name: "resources", seeds: changes::resources_sent, take: changes::resources },
        Target { name: "responses", seeds: changes::responses_sent, take: changes::responses },
        Target { name: "requests", seeds: plane::requests_sent, take: plane::requests },
    ]
}

/// What became of one target.
#[derive(Clone, Debug)]
pub struct Ran {
    /// Its name.
    pub name: &'static str,
    /// Inputs that it took.
    pub inputs: u64,
    /// The longest that one of them took.
    pub slowest: Duration,
    /// The input that it did not survive, and what it said.
    pub broken: Option<(Vec<u8>, String)>,
}

/// One target's share of the time.
struct Share {
    target: Target,
    left: Duration,
    mutator: Mutator,
    ran: Ran,
}

/// Feeds every target for so long, on so many threads, from this seed. A target that breaks is done.
pub fn drive(targets: &[Target], each: Duration, threads: usize, seed: u64) -> Vec<Ran> {
    let share = |(number, target): (usize, &Target)| Share {
        target: *target,
        left: each,
        mutator: Mutator::new((target.seeds)(), seed.wrapping_add(number as u64)),
        ran: Ran { name: target.name, inputs: 0, slowest: Duration::ZERO, broken: None },
    };
    let waiting: Mutex<VecDeque<Share>> = Mutex::new(targets.iter().enumerate().map(share).collect());
    let done = Mutex::new(Vec::new());
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let Some(mut share) = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front() else { return };
                    share.turn();
                    let place = if share.left.is_zero() { None } else { Some(&waiting) };
                    match place {
                        Some(waiting) => waiting.lock().unwrap_or_else(PoisonError::into_inner).push_back(share),
                        None => done.lock().unwrap_or_else(PoisonError::into_inner).push(share.ran),
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(PoisonError::into_inner)
}

impl Share {
    /// Feeds it for a turn.
    fn turn(&mut self) {
        let began = Instant::now();
        let turn = self.left.min(TURN);
        while began.elapsed() < turn {
            let input = self.mutator.next_input();
            if let Err(said) = self.feed(&input) {
                self.ran.broken = Some((input, said));
                self.left = Duration::ZERO;
                return;
            }
        }
        self.left = self.left.saturating_sub(turn);
    }

    fn feed(&mut self, input: &[u8]) -> Result<(), String> {
        let began = Instant::now();
        panic::catch_unwind(AssertUnwindSafe(|| (self.target.take)(input))).map_err(|panicked| said(panicked.as_ref()))?;
        let took = began.elapsed();
        self.ran.inputs += 1;
        self.ran.slowest = self.ran.slowest.max(took);
        if took > INPUT_WAIT { Err(format!("it took {took:?}")) } else { Ok(()) }
    }
}

fn said(panicked: &(dyn Any + Send)) -> String {
    let text = panicked.downcast_ref::<String>().map(String::as_str).or_else(|| panicked.downcast_ref::<&str>().copied());
    text.unwrap_or("it panicked").to_owned()
}
