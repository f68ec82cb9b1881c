//! What a gate promises, one by one, in any order, and from many threads at once.

use std::sync::atomic::AtomicUsize;
use std::task::Wake;
use std::thread;

use proptest::prelude::*;

use super::*;

#[derive(Default)]
struct Bell(AtomicUsize);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

fn limits(requests: u32, pending: u32) -> Limits {
    Limits { requests: Some(requests), pending, ..Limits::default() }
}

fn poll(ticket: &mut Ticket, bell: &Arc<Bell>) -> Poll<Result<Pass, Shed>> {
    Pin::new(ticket).poll(&mut Context::from_waker(&Waker::from(Arc::clone(bell))))
}

fn waits(gate: &Arc<Gate>, limits: &Limits, class: u8) -> Ticket {
    match gate.enter(limits, class) {
        Enter::Wait(ticket) => ticket,
        other => panic!("{other:?}"),
    }
}

fn gone_in(gate: &Arc<Gate>, limits: &Limits) -> Pass {
    match gate.enter(limits, 0) {
        Enter::In(pass) => pass,
        other => panic!("{other:?}"),
    }
}

#[test]
fn who_waits_goes_in_by_class_and_arrival() {
    // Aim: the bound holds, the higher class goes first, then the older; each is woken once, and later classes see no barging.
    let (gate, bounds) = (Arc::new(Gate::default()), limits(1, 10));
    let pass = gone_in(&gate, &bounds);
    let bells: Vec<Arc<Bell>> = (0..4).map(|_| Arc::default()).collect();
    let mut tickets: Vec<Ticket> = [2, 1, 1, 0].iter().map(|class| waits(&gate, &bounds, *class)).collect();
    for (ticket, bell) in tickets.iter_mut().zip(&bells) {
        assert!(poll(ticket, bell).is_pending() && poll(ticket, bell).is_pending());
    }
    let mut pass = Some(pass);
    for next in [3, 1, 2, 0] {
        drop(pass.take());
        assert!(matches!(gate.enter(&limits(1, 0), 3), Enter::Full), "the place is given to who waited");
        let Poll::Ready(Ok(given)) = poll(&mut tickets[next], &bells[next]) else { panic!("{next} is not called") };
        pass = Some(given);
        assert_eq!(bells[next].0.load(Ordering::SeqCst), 1);
        assert_eq!(gate.inside(), 1);
    }
    drop(pass);
    assert!(bells.iter().all(|bell| bell.0.load(Ordering::SeqCst) == 1));
    assert_eq!((gate.inside(), gate.waiting()), (0, 0));
}

#[test]
fn the_newest_of_the_lowest_class_makes_room() {
    // Aim: a full queue sheds for a higher class only, and refuses who is no higher than anybody who waits.
    let (gate, bounds) = (Arc::new(Gate::default()), limits(1, 2));
    let _pass = gone_in(&gate, &bounds);
    let bell = Arc::default();
    let (mut old, mut new) = (waits(&gate, &bounds, 2), waits(&gate, &bounds, 2));
    assert!(poll(&mut old, &bell).is_pending() && poll(&mut new, &bell).is_pending());
    assert!(matches!(gate.enter(&bounds, 2), Enter::Full) && matches!(gate.enter(&bounds, 3), Enter::Full));
    let mut high = waits(&gate, &bounds, 1);
    assert_eq!(bell.0.load(Ordering::SeqCst), 1);
    assert!(matches!(poll(&mut new, &bell), Poll::Ready(Err(Shed))), "the newest");
    assert!(poll(&mut old, &bell).is_pending() && poll(&mut high, &bell).is_pending());
    assert_eq!(gate.waiting(), 2);
}

#[test]
fn who_gives_up_leaves_no_trace() {
    // Aim: a dropped ticket frees its place in the queue, also when it had been called: then the next is.
    let (gate, bounds) = (Arc::new(Gate::default()), limits(1, 2));
    let pass = gone_in(&gate, &bounds);
    drop(waits(&gate, &bounds, 0));
    assert_eq!(gate.waiting(), 0);
    let (first, mut second) = (waits(&gate, &bounds, 0), waits(&gate, &bounds, 0));
    let bell = Arc::default();
    assert!(poll(&mut second, &bell).is_pending());
    drop(pass);
    assert_eq!(gate.inside(), 1, "the first was called");
    drop(first);
    assert_eq!((bell.0.load(Ordering::SeqCst), gate.inside()), (1, 1));
    drop(second);
    assert_eq!((gate.inside(), gate.waiting()), (0, 0));
    let queue = gate.queue();
    assert!(queue.waiting.is_empty() && queue.called.is_empty());
}

#[test]
fn no_limit_is_no_gate_and_a_higher_one_counts_at_once() {
    // Aim: without a limit nothing is counted; a push that raises it lets more in.
    let gate = Arc::new(Gate::default());
    assert!(matches!(gate.enter(&Limits::default(), 0), Enter::In(_)));
    assert_eq!(gate.inside(), 0);
    let _first = gone_in(&gate, &limits(1, 0));
    assert!(matches!(gate.enter(&limits(1, 0), 0), Enter::Full));
    let _second = gone_in(&gate, &limits(2, 0));
    assert!(matches!(gate.enter(&limits(2, 0), 0), Enter::Full));
}

#[test]
fn a_raised_limit_lets_in_who_waits() {
    // Aim: at a full queue, too: with the next request who waits goes in, in order, and then the request itself, if there is still room.
    let gate = Arc::new(Gate::default());
    let _pass = gone_in(&gate, &limits(1, 2));
    let bell = Arc::default();
    let mut tickets = [waits(&gate, &limits(1, 2), 0), waits(&gate, &limits(1, 2), 1)];
    assert!(tickets.iter_mut().all(|ticket| poll(ticket, &bell).is_pending()));
    assert!(matches!(gate.enter(&limits(1, 2), 1), Enter::Full));
    let _third = waits(&gate, &limits(2, 2), 1);
    assert_eq!((gate.inside(), gate.waiting(), bell.0.load(Ordering::SeqCst)), (2, 2, 1));
    let Poll::Ready(Ok(_first)) = poll(&mut tickets[0], &bell) else { panic!("the higher class goes first") };
    assert!(matches!(gate.enter(&limits(3, 1), 1), Enter::Full), "one goes in, and one waits as many as may");
    assert_eq!((gate.inside(), gate.waiting(), bell.0.load(Ordering::SeqCst)), (3, 1, 2));
    let Poll::Ready(Ok(_second)) = poll(&mut tickets[1], &bell) else { panic!("then who came first") };
    let _last = gone_in(&gate, &limits(5, 0));
    assert_eq!((gate.inside(), gate.waiting()), (5, 0));
}

/// What a caller may do.
#[derive(Clone, Copy, Debug)]
enum Step {
    Enter(u8),
    Leave(usize),
    Poll(usize),
    GiveUp(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (0..3_u8).prop_map(Step::Enter),
        (0..8_usize).prop_map(Step::Leave),
        (0..8_usize).prop_map(Step::Poll),
        (0..8_usize).prop_map(Step::GiveUp),
    ];
    prop::collection::vec(step, 0..200)
}

proptest! {
    /// Aim: in any order of events never more inside or waiting than may; nobody waits while there is room; all gone, all is as new.
    #[test]
    fn bounds_hold_whatever_happens(steps in steps(), requests in 1..4_u32, pending in 0..4_u32) {
        let (gate, bounds, bell) = (Arc::new(Gate::default()), limits(requests, pending), Arc::new(Bell::default()));
        let (mut passes, mut tickets): (Vec<Pass>, Vec<Ticket>) = (Vec::new(), Vec::new());
        for step in steps {
            match step {
                Step::Enter(class) => match gate.enter(&bounds, class) {
                    Enter::In(pass) => passes.push(pass),
                    Enter::Wait(ticket) => tickets.push(ticket),
                    Enter::Full => prop_assert!(gate.inside() == requests && gate.waiting() == pending),
                },
                Step::Leave(n) if n < passes.len() => drop(passes.swap_remove(n)),
                Step::GiveUp(n) if n < tickets.len() => drop(tickets.swap_remove(n)),
                Step::Poll(n) if n < tickets.len() => match poll(&mut tickets[n], &bell) {
                    Poll::Pending => {}
                    Poll::Ready(Ok(pass)) => {
                        drop(tickets.swap_remove(n));
                        passes.push(pass);
                    }
                    Poll::Ready(Err(Shed)) => drop(tickets.swap_remove(n)),
                },
                _ => {}
            }
            prop_assert!(gate.inside() <= requests && gate.waiting() <= pending);
            prop_assert!(gate.waiting() == 0 || gate.inside() == requests, "somebody waits though there is room");
            prop_assert!(passes.len() <= gate.inside() as usize);
        }
        drop((passes, tickets));
        prop_assert_eq!((gate.inside(), gate.waiting()), (0, 0));
        let queue = gate.queue();
        prop_assert!(queue.waiting.is_empty() && queue.called.is_empty());
    }
}

struct Parked(thread::Thread);

impl Wake for Parked {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits like a runtime would: parked until woken, with no look at the clock.
fn block_on(mut ticket: Ticket) -> Result<Pass, Shed> {
    let waker = Waker::from(Arc::new(Parked(thread::current())));
    loop {
        match Pin::new(&mut ticket).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(result) => return result,
            Poll::Pending => thread::park(),
        }
    }
}

#[test]
fn threads_lose_no_wake_up() {
    // Aim: many threads at a small gate: the bound holds at every moment, everybody who waits comes in or is shed, nobody for ever.
    let (gate, bounds) = (Arc::new(Gate::default()), limits(2, 6));
    let most = Arc::new(AtomicU32::new(0));
    let now = Arc::new(AtomicU32::new(0));
    let run = |number: u8| {
        let (gate, bounds, most, now) = (Arc::clone(&gate), bounds.clone(), Arc::clone(&most), Arc::clone(&now));
        thread::spawn(move || {
            let mut came_in = 0;
            for round in 0..2_000_u32 {
                let pass = match gate.enter(&bounds, number % 3) {
                    Enter::In(pass) => Some(pass),
                    // Some give up at once.
                    Enter::Wait(ticket) if round % 7 == 0 => {
                        drop(ticket);
                        None
                    }
                    Enter::Wait(ticket) => block_on(ticket).ok(),
                    Enter::Full => None,
                };
                let Some(pass) = pass else { continue };
                most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                if round % 5 == 0 {
                    thread::yield_now();
                }
                now.fetch_sub(1, Ordering::SeqCst);
                came_in += 1;
                drop(pass);
            }
            came_in
        })
    };
    let threads: Vec<_> = (0..8).map(run).collect();
    let came_in: u32 = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
    assert!(most.load(Ordering::SeqCst) <= 2 && came_in > 0);
    assert_eq!((gate.inside(), gate.waiting()), (0, 0));
}
