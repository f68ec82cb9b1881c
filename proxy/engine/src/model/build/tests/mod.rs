mod assemble;
mod broken;
mod door;
mod edge;
mod effects;
mod fields;
mod policy;
mod walk;
