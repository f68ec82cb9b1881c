mod assemble;
mod broken;
mod door;
