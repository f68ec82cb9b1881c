//! The program around the roads: arguments, rights, listeners and workers, the admin port, start and end.

pub mod admin;
pub mod app;
pub mod companions;
pub mod doors;
pub mod listener;
pub mod ports;
pub mod probes;
pub mod rights;
pub mod settings;
pub mod worker;
