//! The `meshwright` binary.

mod command;
mod echo;
mod netns;
mod up;

fn main() {}
