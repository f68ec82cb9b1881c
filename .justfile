# Shortcuts for the desk. CI runs tests/run-all and nothing else.
fmt:
    cargo fmt --all
lint:
    cargo clippy --workspace --all-targets -- -D warnings
test:
    tests/run-all
sim seed="":
    MESHWRIGHT_SIM_SEED={{seed}} cargo test -p tests --test sim
