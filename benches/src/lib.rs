//! What it costs, beside rivals and the floor.
