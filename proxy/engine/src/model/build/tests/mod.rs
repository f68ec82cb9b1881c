mod assemble;
mod broken;
mod door;
mod edge;
mod fields;
mod policy;
mod walk;
