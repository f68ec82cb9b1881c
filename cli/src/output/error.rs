//! Errors as sentences on stderr.

use std::io::Write;
use std::panic::PanicHookInfo;
use std::process::ExitCode;

/// Exit code of a wrong command line (contract, section 1).
const USAGE: u8 = 2;

/// A wrong command line, as clap tells it, for what clap cannot see: flags that do not fit one another.
pub(crate) fn usage(text: String) -> anyhow::Error {
    clap::Error::raw(clap::error::ErrorKind::ValueValidation, text + "\n").into()
}

/// Prints `error: …`, each cause after a colon, on stderr, and says how to exit: 2 where the command line was wrong, else 1.
pub(crate) fn print_error(error: &anyhow::Error) -> ExitCode {
    // Nowhere is left to complain when stderr is gone.
    if let Some(usage) = error.downcast_ref::<clap::Error>() {
        let _ = usage.print();
        return ExitCode::from(USAGE);
    }
    let _ = writeln!(std::io::stderr().lock(), "error: {}", without_numbers(&format!("{error:#}")));
    ExitCode::FAILURE
}

/// Takes out ` (os error 13)`: the words before it say the same to people.
fn without_numbers(text: &str) -> String {
    let mut parts = text.split(" (os error ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + part.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start_matches(')'))
}

/// Replaces the default panic message by one for people: what failed, where, and what to do about it.
pub(crate) fn install_panic_hook() {
    std::panic::set_hook(Box::new(|panic| {
        let text = message(panic);
        // `head` and friends close our stdout early; that is the reader's right and no failure of ours.
        if text.contains("Broken pipe") && text.contains("stdout") {
            std::process::exit(0);
        }
        // The file alone: whoever built this has folders that are nobody's business.
        let file = |path: &str| path.rsplit('/').next().unwrap_or_default().to_owned();
        let place = panic.location().map(|place| format!(" ({}:{})", file(place.file()), place.line())).unwrap_or_default();
        let _ = writeln!(
            std::io::stderr().lock(),
            "error: meshwright hit a bug{place}: {text}\nThis is a fault in meshwright, not in your configuration; please report it with the command you ran."
        );
    }));
}

fn message(panic: &PanicHookInfo<'_>) -> String {
    let payload = panic.payload();
    payload
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| payload.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: numbers of the operating system do not reach people, and the rest of the sentence does.
    #[test]
    fn numbers_are_taken_out() {
        assert_eq!(
            without_numbers("cannot open x: No such file or directory (os error 2): y"),
            "cannot open x: No such file or directory: y"
        );
        assert_eq!(without_numbers("plain"), "plain");
    }
}
