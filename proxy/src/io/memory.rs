//! Memory given back to the kernel: what the allocator holds free, and pages of the program file that nobody runs any more.
#![allow(unsafe_code, reason = "the allocator and the kernel are called by C's rules at this door only; each block says why it holds")]

use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;

/// What the kernel says of this process's mappings.
const MAPPINGS: &str = "/proc/self/smaps";
/// Leads to the program's file, by the name that [`MAPPINGS`] calls it.
const PROGRAM: &str = "/proc/self/exe";

/// Which free memory goes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Free {
    /// What was free for a second: cheap enough under load, and what is in use again and again stays.
    ForAWhile,
    /// All of it: for a thread that comes to rest.
    Now,
}

/// Lets the allocator give back what the calling thread has freed; [`Free::Now`] also empties what C libraries have freed. Without the
/// `mimalloc` feature only the latter.
pub fn give_back_heap(free: Free) {
    #[cfg(feature = "mimalloc")]
    // SAFETY: collecting is allowed at any time on any thread; it touches free memory only. Where another allocator serves the process
    // there is nothing to collect.
    unsafe {
        libmimalloc_sys::mi_collect(free == Free::Now);
    }
    #[cfg(target_env = "gnu")]
    if free == Free::Now {
        // SAFETY: trimming is allowed at any time on any thread; it takes the C allocator's own lock and touches free memory only.
        unsafe {
            libc::malloc_trim(0);
        }
    }
}

/// Gives back the pages of the program's own file that are mapped read-only: what is needed again comes back from the page cache, at a
/// minor fault per 64 KiB. What the start alone has run stays away. Returns how many KiB were mapped. Reads a file of the kernel's; a
/// millisecond. Other files stay: one that is mapped for a moment (the loader's cache) may be gone before its pages are given back, and
/// somebody's heap in its place.
///
/// # Errors
/// The kernel does not tell its mappings, or refuses.
pub fn give_back_program() -> std::io::Result<u64> {
    let program = std::fs::read_link(PROGRAM)?;
    let mut kib = 0;
    for mapping in read_only(&std::fs::read_to_string(MAPPINGS)?, &program.to_string_lossy()) {
        // SAFETY: the kernel has just told that this range is the program's own file, mapped read-only, and that not a single page of it
        // was ever changed in memory (`Anonymous: 0`), so the next access finds the very same bytes in the file. Nobody in this process
        // maps that file again, makes such a mapping writable or unmaps it: the kernel made it for as long as the process lives.
        let given = unsafe { libc::madvise(mapping.start as *mut libc::c_void, mapping.bytes, libc::MADV_DONTNEED) };
        if given != 0 {
            return Err(std::io::Error::last_os_error());
        }
        kib += mapping.resident_kib;
    }
    Ok(kib)
}

/// CPU time that this process has used since it began.
pub fn cpu_used() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Duration::from_micros(micros.unsigned_abs())
}

/// A range of a file in memory.
#[derive(Debug, PartialEq, Eq)]
struct Mapping {
    start: usize,
    bytes: usize,
    resident_kib: u64,
}

/// The mappings of `smaps` (proc_pid_smaps(5)) that are the file's, read-only, private, and unchanged in memory.
fn read_only(smaps: &str, file: &str) -> Vec<Mapping> {
    let mut found = Vec::new();
    let mut current: Option<Mapping> = None;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        let kib = || second.parse::<u64>().unwrap_or(u64::MAX);
        match (first, &mut current) {
            ("Rss:", Some(mapping)) => mapping.resident_kib = kib(),
            // The kernel writes this line once per mapping, after its size.
            ("Anonymous:", mapping) => found.extend(mapping.take().filter(|mapping| kib() == 0 && mapping.resident_kib > 0)),
            _ if first.ends_with(':') => {}
            _ => {
                // No field before the path has a slash.
                let of_file = line.find('/').is_some_and(|path| &line[path..] == file);
                current = range(first).filter(|_| of_file && matches!(second, "r-xp" | "r--p"));
            }
        }
    }
    found
}

/// `start-end` in hexadecimal.
fn range(text: &str) -> Option<Mapping> {
    let (start, end) = text.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    Some(Mapping { start, bytes: end.checked_sub(start)?, resident_kib: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: only what comes back from the program's file by itself is ever let go: no data, no relocated page, no heap, no other file.
    #[test]
    fn only_unchanged_pages_of_files_are_found() {
        let mapping = |head: &str, resident: u64, anonymous: u64| {
            format!("{head}\nSize: 999 kB\nRss: {resident} kB\nPss: 1 kB\nAnonymous: {anonymous} kB\nVmFlags: rd\n")
        };
        let smaps = [
            mapping("1000-3000 r--p 00000000 fe:00 11 /usr/bin/mesh wright (deleted)", 8, 0),
            mapping("3000-9000 r-xp 00002000 fe:00 11                 /usr/bin/mesh wright (deleted)", 16, 0),
            mapping("9000-a000 r--p 00008000 fe:00 11 /usr/bin/mesh wright (deleted)", 4, 4),
            mapping("a000-b000 rw-p 00009000 fe:00 11 /usr/bin/mesh wright (deleted)", 4, 0),
            mapping("b000-c000 r--s 00000000 fe:00 12 /dev/shm/shared", 4, 0),
            mapping("c000-d000 r-xp 00000000 fe:00 13 /usr/lib/untouched.so", 0, 0),
            mapping("c800-d000 r--p 00000000 fe:00 14 /etc/ld.so.cache", 8, 0),
            mapping("d000-e000 rw-p 00000000 00:00 0 [heap]", 4, 4),
            mapping("e000-f000 r-xp 00000000 00:00 0 [vdso]", 4, 0),
            mapping("f000-f800 r--p 00000000 00:00 0", 4, 0),
        ]
        .concat();
        let found = read_only(&smaps, "/usr/bin/mesh wright (deleted)");
        let wanted = [(0x1000, 0x2000, 8), (0x3000, 0x6000, 16)];
        assert_eq!(found, wanted.map(|(start, bytes, resident_kib)| Mapping { start, bytes, resident_kib }));
    }

    /// Aim: the program runs on after its pages are gone, and they were there before.
    #[test]
    fn the_program_goes_on() {
        assert!(give_back_program().unwrap() > 100);
        give_back_heap(Free::Now);
        assert!(cpu_used() > Duration::ZERO);
    }
}
