mod assemble;
mod broken;
mod door;
mod fields;
mod policy;
mod walk;
