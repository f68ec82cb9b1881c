//! Drives the lanes of one runtime: an open loop from a schedule, or a closed one.

use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, spawn_local};
use tokio::time::{sleep, sleep_until, timeout_at};

use super::fault::Fault;
use super::lane::Lane;
use super::line::Line;
use super::pacer::Pacer;
use super::schedule::{Due, Schedule};
use super::tally::Meter;

/// Longest wait for answers after counting has ended.
const DRAIN_MAX: Duration = Duration::from_secs(2);
/// A closed loop's pause after a failure, so that a dead target is not hammered.
const PAUSE: Duration = Duration::from_millis(10);

/// Sends what `schedule` says, each request on the lane that is idle longest; returns when all are answered or given up.
///
/// # Errors
/// There is no timer.
pub(super) async fn open_loop(lanes: Vec<Lane>, mut schedule: Schedule, meter: &Rc<Meter>) -> std::io::Result<()> {
    let line = Rc::new(Line::default());
    let running: Vec<_> = lanes.into_iter().map(|lane| spawn_local(serve(lane, Rc::clone(&line), Rc::clone(meter)))).collect();
    let mut pacer = Pacer::new(schedule.next_at(), schedule.step())?;
    while !schedule.is_over() {
        pacer.tick().await?;
        let now = Instant::now();
        while let Some(due) = schedule.due(now) {
            if line.offer(due).is_err() && due.counts {
                meter.tally.borrow_mut().fail(Fault::Backlog, 1);
            }
        }
    }
    let end = meter.window.get().end;
    sleep_until(end.into()).await;
    let unsent = line.close().iter().filter(|due| due.counts).count();
    meter.tally.borrow_mut().late += unsent as u64;
    drain(running, end + DRAIN_MAX).await;
    meter.tally.borrow_mut().give_up();
    Ok(())
}

async fn serve(mut lane: Lane, line: Rc<Line>, meter: Rc<Meter>) {
    let seat = Rc::default();
    while let Some(Due { at, counts }) = line.take(&seat).await {
        if counts {
            meter.tally.borrow_mut().sent += 1;
        }
        let outcome = lane.exchange().await;
        if counts {
            meter.tally.borrow_mut().finish(outcome, at.elapsed());
        }
    }
}

async fn drain(running: Vec<JoinHandle<()>>, until: Instant) {
    for mut lane in running {
        if timeout_at(until.into(), &mut lane).await.is_err() {
            lane.abort();
        }
    }
}

/// Sends on every lane as soon as the answer before is there, until the window ends.
pub(super) async fn closed_loop(lanes: Vec<Lane>, meter: &Rc<Meter>) {
    let running: Vec<_> = lanes.into_iter().map(|lane| spawn_local(repeat(lane, Rc::clone(meter)))).collect();
    sleep_until(meter.window.get().end.into()).await;
    // Answers still to come would end outside the window.
    running.iter().for_each(JoinHandle::abort);
}

async fn repeat(mut lane: Lane, meter: Rc<Meter>) {
    let window = meter.window.get();
    let mut begun = Instant::now();
    loop {
        if window.holds(begun) {
            meter.tally.borrow_mut().sent += 1;
        }
        let outcome = lane.exchange().await;
        let ended = Instant::now();
        if window.holds(ended) {
            meter.tally.borrow_mut().finish(outcome, ended - begun);
        }
        begun = ended;
        if outcome.is_err() {
            sleep(PAUSE).await;
            begun = Instant::now();
        }
    }
}
