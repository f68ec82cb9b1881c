//! Counts allocations, so that budgets can be tests.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::task::LocalSet;

/// Whose work this thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// The test's own.
    Outside,
    /// The client's proxy.
    Client,
    /// The server's proxy.
    Server,
}

const PLACES: usize = 3;

/// What was taken from the allocator.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) allocations: u64,
    pub(crate) bytes: u64,
}

thread_local! {
    /// Bytes that this thread holds, and the most that it ever did since it was last asked to forget.
    static HELD: Cell<(i64, i64)> = const { Cell::new((0, 0)) };
    static PLACE: Cell<Place> = const { Cell::new(Place::Outside) };
    static TAKEN: [Cell<Taken>; PLACES] = const { [const { Cell::new(Taken { allocations: 0, bytes: 0 }) }; PLACES] };
}

struct Counting;

fn hold(bytes: i64) {
    let _ = HELD.try_with(|held| {
        let now = held.get().0 + bytes;
        held.set((now, held.get().1.max(now)));
    });
}

// SAFETY: every call is handed on unchanged to the system's allocator.
#[allow(unsafe_code, reason = "an allocator cannot be written otherwise; tests only")]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = TAKEN.try_with(|taken| {
            let cell = &taken[PLACE.get() as usize];
            let before = cell.get();
            cell.set(Taken { allocations: before.allocations + 1, bytes: before.bytes + layout.size() as u64 });
        });
        hold(layout.size() as i64);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        hold(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of this thread so far.
pub(crate) fn allocations() -> u64 {
    TAKEN.with(|taken| taken.iter().map(|cell| cell.get().allocations).sum())
}

/// What this thread took so far in `place`. A block that grows counts again, with its new size.
pub(crate) fn taken(place: Place) -> Taken {
    TAKEN.with(|taken| taken[place as usize].get())
}

/// Bytes that this thread holds.
pub(crate) fn held() -> i64 {
    HELD.get().0
}

/// The most that it held since this was last asked.
pub(crate) fn highest() -> i64 {
    HELD.replace((held(), held())).1
}

/// Tasks whose allocations count for one place, and those of the tasks that they start.
pub(crate) struct Within {
    pub(crate) place: Place,
    pub(crate) tasks: LocalSet,
}

impl Future for Within {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let before = PLACE.replace(self.place);
        let polled = Pin::new(&mut self.tasks).poll(context);
        PLACE.set(before);
        polled
    }
}
