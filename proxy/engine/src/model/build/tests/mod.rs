mod assemble;
mod broken;
mod door;
mod fields;
mod walk;
