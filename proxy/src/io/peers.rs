//! Finding peers that died without a word: within two minutes, whether they were to speak or to acknowledge.
#![allow(unsafe_code, reason = "the kernel is told by C's rules what no library tells it; the one block says why it holds")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};

/// Silence after which the kernel asks whether a peer is still there.
const ASKED_AFTER: Duration = Duration::from_secs(45);
/// How long it waits between two questions, and how many go unanswered before the connection is dead: 105 s after the last sign of life.
const ASKED_EVERY: Duration = Duration::from_secs(15);
const QUESTIONS_MAX: u32 = 4;
/// Longest wait between two attempts to send what a peer does not acknowledge, or to ask a full one for room. With the kernel's usual number of
/// attempts (15) a dead peer is found after 113 s; with its usual wait (120 s) that takes 15 minutes.
const RESEND_WAIT_MAX_MS: libc::c_int = 10_000;
/// The option's number in the kernel's interface (tcp.h, since Linux 6.15), which the C library does not name yet.
const TCP_RTO_MAX_MS: libc::c_int = 44;

/// Lets the kernel look after a connection's peer; what a listening socket accepts inherits it. A peer that takes nothing but answers
/// is alive for as long as it likes: `TCP_USER_TIMEOUT`, which would end it, is not used (tcp(7)).
///
/// # Errors
/// The kernel's, for keep-alive. Where it is older than 6.15, a peer that dies with bytes unacknowledged is found after its usual time.
pub(super) fn look_after(socket: &impl AsFd) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(ASKED_AFTER).with_interval(ASKED_EVERY).with_retries(QUESTIONS_MAX);
    SockRef::from(socket).set_tcp_keepalive(&keepalive)?;
    let wait = RESEND_WAIT_MAX_MS;
    // SAFETY: the descriptor is open for the time of the call, and the kernel reads one integer, which is there, of the length told.
    unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const wait).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::{Listening, Network, Socket, bind};

    /// Aim: both ends of every connection are looked after, and the sum of the waits is below two minutes.
    #[tokio::test]
    async fn both_ends_are_looked_after() {
        let mut listening = Listening::adopt(bind("127.0.0.1:0".parse().unwrap()).unwrap()).unwrap();
        let address = listening.local_address().unwrap();
        let network = Network::Kernel { mark: None };
        let (client, accepted) = tokio::join!(network.connect(address), listening.accept());
        for socket in [client.unwrap(), accepted.unwrap().socket] {
            let Socket::Tcp(stream) = socket else { panic!("not the kernel's") };
            let socket = SockRef::from(&stream);
            assert!(socket.keepalive().unwrap());
            let dead_after =
                socket.tcp_keepalive_time().unwrap() + socket.tcp_keepalive_interval().unwrap() * socket.tcp_keepalive_retries().unwrap();
            assert_eq!(dead_after, Duration::from_secs(105));
            assert_eq!(socket.tcp_user_timeout().unwrap(), None);
        }
    }
}
