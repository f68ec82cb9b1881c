//! The shapes that a worker knows again.

use std::sync::Arc;

use super::batch::{Batch, SINKS, Sink};
use super::record::{Detail, Outline};
use super::shape::{Shape, address};

/// Shapes one worker knows again; a power of two. One that finds its place taken is made anew, which costs two microseconds.
const SHAPES: usize = 256;

/// The shapes that one worker has met of late.
#[derive(Debug, Default)]
pub(super) struct Shapes {
    /// Empty until something is logged or sampled.
    places: Vec<Option<KnownShape>>,
    epoch: u64,
}

#[derive(Debug)]
struct KnownShape {
    shape: Arc<Shape>,
    /// For each sink: the serial of the last batch that has it, and its number there.
    numbers: [(u64, u32); SINKS],
}

impl Shapes {
    /// The number of an exchange's shape in a batch, to which it is added where it is new to it.
    pub(super) fn number(&mut self, seen: &Outline, detail: &Detail, batch: &mut Batch, sink: Sink) -> u32 {
        // What an older epoch spoke of is not held on to.
        if self.places.is_empty() || self.epoch < seen.snapshot.epoch {
            self.places.clear();
            self.places.resize_with(SHAPES, || None);
            self.epoch = seen.snapshot.epoch;
        }
        let known = match &mut self.places[place(seen, detail)] {
            Some(known) if known.shape.fits(seen, detail) => known,
            other => other.insert(KnownShape { shape: Arc::new(Shape::of(seen, detail)), numbers: [(0, 0); SINKS] }),
        };
        let (serial, number) = &mut known.numbers[sink as usize];
        if *serial != batch.serial {
            (*serial, *number) = (batch.serial, batch.add_shape(Arc::clone(&known.shape)));
        }
        *number
    }
}

/// By the addresses of what differs most.
fn place(seen: &Outline, detail: &Detail) -> usize {
    let parts = [address(&seen.rule), address(&seen.endpoint), address(&seen.port), address(&detail.caller), usize::from(seen.mtls)];
    let mixed = parts.iter().fold(0_u64, |sum, part| (sum.rotate_left(23) ^ *part as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    (mixed >> 32) as usize & (SHAPES - 1)
}
