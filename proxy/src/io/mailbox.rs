//! A place for one box that two threads take out of and put into without ever waiting for one another.
#![allow(unsafe_code, reason = "the box is a bare pointer while it lies in the mailbox; each block says why it is owned")]

use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Holds one box or none. Whoever takes it owns it, so nothing in it needs a lock; whoever comes meanwhile finds nothing and goes on.
pub struct Mailbox<T> {
    /// Null, or from `Box::into_raw`.
    held: AtomicPtr<T>,
    /// Owns what it holds.
    owned: PhantomData<Box<T>>,
}

// SAFETY: a value goes through whole, from the thread that puts it to the thread that takes it; there is no way to reach it by reference
// while it lies here. So sharing a mailbox is sending its content, and that content may be sent.
unsafe impl<T: Send> Sync for Mailbox<T> {}

impl<T> Mailbox<T> {
    /// Takes what is there. In one order with [`Mailbox::put`] and all other sequentially consistent steps, so that a flag that is set
    /// before taking is seen by who puts after.
    pub fn take(&self) -> Option<Box<T>> {
        owned(self.held.swap(ptr::null_mut(), Ordering::SeqCst))
    }

    /// Puts a box in; what was there comes back.
    pub fn put(&self, value: Box<T>) -> Option<Box<T>> {
        owned(self.held.swap(Box::into_raw(value), Ordering::SeqCst))
    }
}

fn owned<T>(held: *mut T) -> Option<Box<T>> {
    // SAFETY: every pointer in a mailbox but null came from `Box::into_raw`, and a swap gives each of them to exactly one caller. The swaps
    // are acquire and release, so what was written into the box before it was put is seen.
    (!held.is_null()).then(|| unsafe { Box::from_raw(held) })
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        Self { held: AtomicPtr::new(ptr::null_mut()), owned: PhantomData }
    }
}

impl<T> Drop for Mailbox<T> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl<T> std::fmt::Debug for Mailbox<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Mailbox")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    /// Aim: what is put is taken once, what it displaces comes back, and what is left is freed.
    #[test]
    fn one_box_at_a_time() {
        let counted = Arc::new(());
        let mailbox = Mailbox::default();
        assert!(mailbox.take().is_none());
        assert!(mailbox.put(Box::new((1, Arc::clone(&counted)))).is_none());
        assert_eq!(mailbox.put(Box::new((2, Arc::clone(&counted)))).unwrap().0, 1);
        assert_eq!(mailbox.take().unwrap().0, 2);
        assert!(mailbox.take().is_none());
        mailbox.put(Box::new((3, Arc::clone(&counted))));
        drop(mailbox);
        assert_eq!(Arc::strong_count(&counted), 1);
    }

    /// Aim: two threads that hand one growing box to and fro lose and double nothing.
    #[test]
    fn nothing_is_lost_between_threads() {
        const NUMBERS: u32 = 100_000;
        let mailbox = Arc::new(Mailbox::<Vec<u32>>::default());
        let giver = Arc::clone(&mailbox);
        let giving = std::thread::spawn(move || {
            for number in 0..NUMBERS {
                let mut numbers = giver.take().unwrap_or_default();
                numbers.push(number);
                assert!(giver.put(numbers).is_none(), "only one thread puts");
            }
        });
        let mut got = Vec::new();
        while got.len() < NUMBERS as usize {
            match mailbox.take() {
                Some(numbers) => got.extend(*numbers),
                None => std::thread::yield_now(),
            }
        }
        giving.join().unwrap();
        assert!(got.iter().copied().eq(0..NUMBERS));
    }
}
