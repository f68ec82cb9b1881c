//! Statuses back to the API server: what the last edition says of each object (`speak`), joined with what is there (`merge`, pure), and
//! written where that makes a difference (`record`). Only the lease holder writes.

mod features;
mod merge;
mod record;
mod speak;

pub use features::FEATURES;
pub use merge::{Spoken, merged};
pub use record::Recorder;
