//! An open-loop load generator: latency runs from the time a request was due, so that a stall is charged to every request it held up.
//!
//! `args` → `plan` → per runtime: `lane`s are opened, then `drive`n by a `schedule` through the [`line`] (open loop) or one
//! request after another (closed loop); a `tally` counts, a `report` tells. A lane is a `wire` (HTTP/1.1, TCP) or one of the
//! `streams` of an HTTP/2 connection.
//!
//! On standard output: `begin` when counting starts, `end` when it ends, then the report as one line of JSON.

mod args;
mod deadline;
mod drive;
mod fault;
mod framing;
mod lane;
mod line;
mod pacer;
mod plan;
mod report;
mod schedule;
mod streams;
mod tally;
mod wire;

use std::io::{Write, stdout};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow};
use tokio::sync::oneshot;
use tokio::task::LocalSet;

pub use args::{Args, Mode, Protocol};
pub use line::BACKLOG_MAX;
pub use plan::Plan;
pub use report::{Latency, Report};

use schedule::{Schedule, Share, Window};
use tally::{Meter, Tally};

/// From the last connection's opening to the first request, so that every runtime stands ready.
const LEAD: Duration = Duration::from_millis(10);

/// Runs the load that `args` describe; returns when it is over.
///
/// # Errors
/// The arguments contradict one another, or a connection cannot be opened.
pub fn run(args: Args) -> anyhow::Result<()> {
    let plan = Plan::of(&args)?;
    crate::sockets::raise_open_files();
    let mut out = stdout();
    let report = measure(plan, |mark| {
        writeln!(out, "{mark}")?;
        out.flush()
    })?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// Runs `plan`; `mark` is called with `begin` and `end` at their times.
///
/// # Errors
/// A connection cannot be opened, or `mark` failed.
pub fn measure(plan: Plan, mut mark: impl FnMut(&str) -> std::io::Result<()>) -> anyhow::Result<Report> {
    let plan = Arc::new(plan);
    let mut runtimes = Vec::with_capacity(plan.threads);
    for index in 0..plan.threads {
        let share = Share { index, of: plan.threads };
        let (ready, is_ready) = mpsc::channel();
        let (start, started) = oneshot::channel();
        let own = Arc::clone(&plan);
        let thread = thread::Builder::new().name(format!("load-{index}")).spawn(move || work(&own, share, ready, started));
        runtimes.push((thread.context("a thread for the load")?, is_ready, start));
    }
    let mut waiting = Vec::with_capacity(runtimes.len());
    for (thread, ready, start) in runtimes {
        // A runtime that failed drops its end, and its error is what it returns.
        match ready.recv() {
            Ok(()) => waiting.push((thread, start)),
            Err(_) => return joined(thread).and(Err(anyhow!("a runtime ended before the load began"))),
        }
    }
    let window = Window::new(Instant::now() + LEAD, plan.warm, plan.counted);
    let threads: Vec<_> = waiting.into_iter().map(|(thread, start)| (thread, start.send(window))).collect();
    for (at, name) in [(window.begin, "begin"), (window.end, "end")] {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        mark(name).context("telling that counting begins or ends")?;
    }
    let mut all = Tally::new()?;
    for (thread, _) in threads {
        all.add(&joined(thread)?)?;
    }
    Report::new(&plan, &all)
}

fn joined(thread: thread::JoinHandle<anyhow::Result<Tally>>) -> anyhow::Result<Tally> {
    thread.join().map_err(|_| anyhow!("a runtime of the load panicked"))?
}

/// One runtime: opens its lanes, says so, waits for the window, and drives the load through it.
fn work(plan: &Plan, share: Share, ready: mpsc::Sender<()>, started: oneshot::Receiver<Window>) -> anyhow::Result<Tally> {
    let meter = Rc::new(Meter::new()?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime for the load")?;
    let own = Rc::clone(&meter);
    let local = LocalSet::new();
    local.block_on(&runtime, async move {
        let mut lanes = lane::lanes(plan, share, &own)?;
        if !plan.fresh {
            let to = plan.target.address;
            let count = plan.connections;
            lanes = lane::open(lanes).await.map_err(|fault| anyhow!("opening {count} connections to {to}: {fault}"))?;
        }
        // Whoever waits for this has given up if it is gone.
        ready.send(()).context("the load was given up")?;
        let window = started.await.context("the load was given up")?;
        own.window.set(window);
        match plan.rate {
            Some(rate) => drive::open_loop(lanes, Schedule::new(window, rate, share), &own).await?,
            None => drive::closed_loop(lanes, &own).await,
        }
        anyhow::Ok(())
    })?;
    drop((local, runtime));
    let meter = Rc::into_inner(meter).context("a lane outlived its runtime")?;
    Ok(meter.tally.into_inner())
}
