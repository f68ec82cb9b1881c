//! What a hop costs at run time, counted on real processes: system calls by strace, user-space instructions by valgrind. Counts, never
//! times, so that a busy machine gives the same figures. They need root, both programs and the binary that ships; without one of them they
//! fail and say so. `tests/run-all budgets` runs them alone, `MESHWRIGHT_RECORD=1 tests/run-all budgets` records what it finds.

#![allow(clippy::unwrap_used, reason = "a test stops where its ground gives way")]
#![allow(clippy::disallowed_methods, clippy::disallowed_types, reason = "real processes run by the machine's own clock and sockets")]

#[path = "budget/backend.rs"]
mod backend;
#[path = "../budgets/book.rs"]
mod book;
#[path = "budget/caller.rs"]
mod caller;
#[path = "budget/comparison.rs"]
mod comparison;
#[path = "budget/edge.rs"]
mod edge;
#[path = "budget/instructions.rs"]
mod instructions;
#[path = "budget/pair.rs"]
mod pair;
#[path = "budget/system_calls.rs"]
mod system_calls;
#[path = "budget/tap.rs"]
mod tap;
