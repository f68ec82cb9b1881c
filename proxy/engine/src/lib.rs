//! The pure half of the proxy: no async, no I/O, no clock.
