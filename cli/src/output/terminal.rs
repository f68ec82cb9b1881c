//! A terminal that is drawn on in place: its size, single keys, frames without flicker.

use std::io::{self, IsTerminal, Read, Write};

use anyhow::Context as _;
use rustix::termios::{self, LocalModes, OptionalActions, Termios};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;

/// Keys that wait to be looked at.
const KEYS_AHEAD: usize = 16;

/// Columns and rows of the terminal that stdout is; `None`: it is none.
pub(crate) fn size() -> Option<(usize, usize)> {
    let out = io::stdout();
    if !out.is_terminal() {
        return None;
    }
    let size = termios::tcgetwinsize(&out).ok()?;
    // A terminal that does not know its size is as wide as most.
    let known = |cells: u16, default: usize| if cells == 0 { default } else { usize::from(cells) };
    Some((known(size.ws_col, 80), known(size.ws_row, 24)))
}

/// Whether colours are wanted where a person looks (<https://no-color.org>).
pub(crate) fn colours() -> bool {
    io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Ctrl-C from now on, also while nobody waits for it.
///
/// # Errors
/// The operating system gives no signals.
pub(crate) fn interrupts() -> anyhow::Result<Signal> {
    signal(SignalKind::interrupt()).context("cannot listen for Ctrl-C")
}

/// What others said, as one line that does nothing to a terminal.
pub(crate) fn harmless(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// At most so many characters of a text, with a sign where some are missing.
pub(crate) fn fitted(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(std::iter::once('…').take(width)).collect()
}

/// Frames that replace one another; the terminal is as before when this is dropped.
pub(crate) struct Canvas {
    /// Lines of the last frame.
    lines: usize,
    before: Option<Termios>,
}

impl Canvas {
    /// Takes over the terminal, and says which keys are pressed (Ctrl-C stays a signal).
    pub(crate) fn open() -> (Self, mpsc::Receiver<u8>) {
        let (sender, keys) = mpsc::channel(KEYS_AHEAD);
        let before = without_echo();
        if before.is_some() {
            // It ends with the process: a read of a terminal cannot be called off.
            std::thread::spawn(move || {
                for byte in io::stdin().lock().bytes() {
                    let Ok(byte) = byte else { return };
                    if sender.blocking_send(byte).is_err() {
                        return;
                    }
                }
            });
        } else {
            // Nobody presses keys; the other end stays open.
            std::mem::forget(sender);
        }
        write("\x1b[?25l");
        (Self { lines: 0, before }, keys)
    }

    /// Draws a frame over the one before, cut to the terminal.
    pub(crate) fn draw(&mut self, text: &str) {
        let (columns, rows) = size().unwrap_or((80, 24));
        let (frame, lines) = frame(text, self.lines, (columns, rows));
        self.lines = lines;
        write(&frame);
    }
}

impl Drop for Canvas {
    fn drop(&mut self) {
        write("\x1b[?25h");
        if let Some(before) = &self.before {
            // The terminal may be gone.
            let _ = termios::tcsetattr(io::stdin(), OptionalActions::Now, before);
        }
    }
}

/// The bytes of a frame over one of `before` lines, and how many lines it has.
fn frame(text: &str, before: usize, (columns, rows): (usize, usize)) -> (String, usize) {
    let mut frame = if before > 0 { format!("\x1b[{before}A\r") } else { String::new() };
    let all = text.lines().count();
    // The cursor stands below the last line.
    let room = rows.saturating_sub(1).max(1);
    let shown = if all > room { room - 1 } else { all };
    for line in text.lines().take(shown) {
        frame += &fitted(line, columns);
        frame += "\x1b[K\n";
    }
    if all > shown {
        frame += &fitted(&format!("… {} more", all - shown), columns);
        frame += "\x1b[K\n";
    }
    frame += "\x1b[J";
    (frame, shown + usize::from(all > shown))
}

/// Turns echo and lines off; what was before. `None`: stdin is no terminal.
fn without_echo() -> Option<Termios> {
    let input = io::stdin();
    if !input.is_terminal() {
        return None;
    }
    let before = termios::tcgetattr(&input).ok()?;
    let mut now = before.clone();
    now.local_modes.remove(LocalModes::ICANON | LocalModes::ECHO);
    termios::tcsetattr(&input, OptionalActions::Now, &now).ok()?;
    Some(before)
}

/// A terminal that went away is noticed elsewhere.
fn write(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: a frame stands where the last one stood, erases what that had more, and never scrolls or wraps.
    #[test]
    fn frames_replace_one_another() {
        assert_eq!(frame("ab\ncd\n", 0, (10, 10)), ("ab\x1b[K\ncd\x1b[K\n\x1b[J".to_owned(), 2));
        assert_eq!(frame("abcdef", 2, (4, 10)), ("\x1b[2A\rabc…\x1b[K\n\x1b[J".to_owned(), 1));
        assert_eq!(frame("1\n2\n3\n4\n", 0, (10, 4)), ("1\x1b[K\n2\x1b[K\n… 2 more\x1b[K\n\x1b[J".to_owned(), 3));
    }

    /// Aim: no text of others moves a cursor or changes a colour.
    #[test]
    fn controls_are_taken_out() {
        assert_eq!(harmless("/a\x1b[31m\nb\u{9b}x"), "/a\u{fffd}[31m\u{fffd}b\u{fffd}x");
        assert_eq!((fitted("abc", 3), fitted("abcd", 3), fitted("abcd", 0)), ("abc".to_owned(), "ab…".to_owned(), String::new()));
    }
}
