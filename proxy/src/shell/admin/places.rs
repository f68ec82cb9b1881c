//! The connections of one port.

use std::collections::VecDeque;
use std::net::IpAddr;

use tokio::task::AbortHandle;

/// Connections at once per port.
const CONNECTIONS_MAX: usize = 64;

/// Who has a connection, the oldest first. Where all places are taken, the oldest connection of the address that has the most is closed: one
/// that takes them all, or holds them, only shuts itself out.
#[derive(Debug, Default)]
pub(super) struct Places(VecDeque<(IpAddr, AbortHandle)>);

impl Places {
    /// Sees to it that there is a place for one more of that address.
    pub(super) fn make_room(&mut self, from: IpAddr) {
        self.0.retain(|(_, conversation)| !conversation.is_finished());
        if self.0.len() < CONNECTIONS_MAX {
            return;
        }
        let of =
            |ip: IpAddr| self.0.iter().filter(|(other, _)| other.to_canonical() == ip.to_canonical()).count() + usize::from(ip == from);
        let most = self.0.iter().map(|(ip, _)| of(*ip)).max();
        let place = self.0.iter().position(|(ip, _)| Some(of(*ip)) == most);
        if let Some((_, conversation)) = place.and_then(|place| self.0.remove(place)) {
            conversation.abort();
        }
    }

    /// One more.
    pub(super) fn take(&mut self, from: IpAddr, conversation: AbortHandle) {
        self.0.push_back((from, conversation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Aim: a full port lets the next one in; who has the most makes room, and its oldest first; of equals the oldest of all.
    #[tokio::test]
    async fn who_has_the_most_makes_room() {
        let mut places = Places::default();
        let mut come = |ip: [u8; 4]| {
            let conversation = tokio::spawn(std::future::pending::<()>());
            places.make_room(ip.into());
            places.take(ip.into(), conversation.abort_handle());
            (places.0.len(), conversation)
        };
        let kubelet = come([10, 0, 0, 1]).1;
        let mut crowd: Vec<_> = (1..CONNECTIONS_MAX).map(|_| come([10, 0, 0, 2]).1).collect();
        for _ in 0..3 {
            let (count, one) = come([10, 0, 0, 2]);
            assert_eq!(count, CONNECTIONS_MAX);
            crowd.push(one);
        }
        let other = come([10, 0, 0, 1]).1;
        for gone in crowd.drain(..4) {
            assert!(gone.await.unwrap_err().is_cancelled());
        }
        tokio::task::yield_now().await;
        assert!(!kubelet.is_finished() && !other.is_finished() && crowd.iter().all(|one| !one.is_finished()));
    }
}
