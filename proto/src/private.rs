//! Which files are private enough to hold a key or a token: one rule, and one sentence for it, for every program.

use std::path::Path;

/// Judges a file that holds a key or a token by its permission bits (as `stat` has them; more bits do no harm): nobody but its owner may
/// read or write it.
///
/// # Errors
/// The sentence to end with, which names the file, what is wrong with it and what to do.
pub fn judged(what: &str, path: &Path, mode: u32) -> Result<(), String> {
    let mode = mode & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    let path = path.display();
    Err(format!("{what} {path} has mode {mode:04o}, others may read or change it; check who did, then `chmod 600 {path}`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_owner_may() {
        // Aim: any right of group or others is refused, with the remedy; file kind and the owner's own bits make no difference.
        for mode in [0o600, 0o400, 0o100_600, 0o700] {
            assert_eq!(judged("the key", Path::new("/k"), mode), Ok(()));
        }
        for mode in [0o640, 0o604, 0o610, 0o620, 0o602, 0o100_644] {
            let told = judged("the key", Path::new("/k"), mode).unwrap_err();
            assert!(told.starts_with("the key /k has mode 06") && told.ends_with("`chmod 600 /k`"), "{told}");
        }
    }
}
