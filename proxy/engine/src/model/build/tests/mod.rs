mod assemble;
mod door;
