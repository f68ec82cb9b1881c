//! Passwords are verified off the workers: each takes tens of milliseconds by design. One pool for the whole proxy, half as wide as the machine;
//! a bounded number waits for a place, and whoever comes beyond is told at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::consumers::Password;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;

use crate::ground::limits::PASSWORDS_WAITING_MAX;

/// See the module. Shared by all workers.
#[derive(Debug)]
pub struct Hashing {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

/// One that waits; it leaves when it is dropped.
struct Place<'h>(&'h AtomicUsize);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Hashing {
    /// For a machine of so many cores.
    pub fn of(cores: usize) -> Arc<Self> {
        Arc::new(Self { places: Arc::new(Semaphore::new((cores / 2).max(1))), waiting: AtomicUsize::new(0) })
    }

    /// Verifies a password. `None`: too many wait already. Dropped before it has begun, it never does; a hash that is under way goes to its end.
    pub async fn verify(&self, password: Arc<Password>) -> Option<bool> {
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= PASSWORDS_WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let waits = Place(&self.waiting);
        // It is closed by nobody.
        let place = Arc::clone(&self.places).acquire_owned().await.ok()?;
        drop(waits);
        let verified = spawn_blocking(move || {
            let _place = place;
            password.verify()
        });
        Some(verified.await.unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use engine::consumers::Password;

    use super::*;

    #[tokio::test]
    async fn whoever_comes_beyond_the_bound_is_told_at_once() {
        // Aim: one place and a hundred that wait; the next is told that there is no room, and all others get their answer.
        let pool = Hashing::of(1);
        let held = Arc::clone(&pool.places).acquire_owned().await.unwrap();
        let password = || Arc::new(Password::new(b"x", None, [0; 32]));
        let waiting: Vec<_> = (0..PASSWORDS_WAITING_MAX)
            .map(|_| {
                let (pool, password) = (Arc::clone(&pool), password());
                tokio::spawn(async move { pool.verify(password).await })
            })
            .collect();
        for _ in 0..PASSWORDS_WAITING_MAX {
            tokio::task::yield_now().await;
        }
        assert_eq!(pool.waiting.load(Ordering::Relaxed), PASSWORDS_WAITING_MAX);
        assert_eq!(pool.verify(password()).await, None);
        for one in waiting.iter().skip(1) {
            one.abort();
        }
        drop(held);
        let first = waiting.into_iter().next().unwrap();
        assert_eq!(first.await.unwrap(), Some(false));
        tokio::task::yield_now().await;
        assert_eq!(pool.verify(password()).await, Some(false));
    }
}
