//! What every mechanism stands on and what knows none of them: bounds, bodies on their way, the wakes and waits of one worker's thread.

pub mod body;
pub mod drain;
pub mod fold;
pub mod limits;
pub mod line;
pub mod patience;
pub mod replay;
pub mod room;
pub mod tally;
pub mod wakes;
pub mod windows;
