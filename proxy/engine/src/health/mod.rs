//! Whether an endpoint is well, as this proxy finds out by itself: from how it answers, and by asking it. Pure state machines: who holds
//! them, and what follows for picks, is [`crate::model::EndpointCell`]'s business.

mod check;
mod outlier;
mod probes;
mod standing;
mod trials;

pub use check::{ActiveCheck, CheckQuestion};
pub(crate) use check::{Check, Turned};
pub use outlier::{Ejection, Outcome, Outlier};
pub(crate) use outlier::{Period, Tally, latecomers, underachievers};
pub(crate) use probes::Probes;
pub use standing::Wellness;
pub(crate) use standing::{Standing, Trial};
pub(crate) use trials::{Trials, Underway};
