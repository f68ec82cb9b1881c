//! Sockets of an edge's ports handed over by whoever started us: `PORT\n`, of datagrams `PORT/udp\n`, with one descriptor each, over a Unix
//! socket (SCM_RIGHTS). `/gone` behind it and one of the port's sockets: all that came for this port so far are to be let go. (That message
//! has a descriptor too because the kernel may join one without any to the next.)
#![allow(unsafe_code, reason = "descriptors by number exist at this door only; each block says why it holds")]

use std::io::{self, IoSliceMut};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};

/// Longest message: a port, what it is of, that it goes, and a newline.
const MESSAGE_BYTES_MAX: usize = 16;

/// A socket that was handed over.
#[derive(Debug)]
pub enum HandedOver {
    /// It listens.
    Listener(TcpListener),
    /// Datagrams come to it.
    Datagrams(UdpSocket),
    /// Those that came for the port before are to be let go.
    Gone {
        /// Those for datagrams.
        datagrams: bool,
    },
}

/// Takes the Unix socket that was inherited under this number. Call it once per number, at the start.
///
/// # Errors
/// The number is no open socket.
pub fn adopt_channel(fd: RawFd) -> io::Result<UnixStream> {
    if fd < 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a descriptor's number is not negative"));
    }
    // SAFETY: the number was given to us by our parent to own (`--sockets-fd`), nothing else in this program uses it, and it is asked
    // for once. If it is not open, the first use fails with EBADF and nothing of ours is touched.
    let channel = unsafe { UnixStream::from_raw_fd(fd) };
    match channel.local_addr() {
        Ok(_) => Ok(channel),
        Err(error) => {
            // Not ours after all: leave the number alone.
            std::mem::forget(channel);
            Err(error)
        }
    }
}

/// Waits for the next socket and the port it is for; `None` when the other end is closed. Blocks.
///
/// # Errors
/// The kernel's, or a message that is not of that form; further messages may be read.
pub fn receive_socket(channel: &UnixStream) -> io::Result<Option<(u16, HandedOver)>> {
    let mut buffer = [0; MESSAGE_BYTES_MAX];
    let mut rights = nix::cmsg_space!([RawFd; 4]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(channel.as_raw_fd(), &mut slices, Some(&mut rights), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let length = message.bytes;
    let mut received: Vec<OwnedFd> = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part {
            // SAFETY: the kernel has just made these descriptors for us; nobody else knows their numbers.
            received.extend(descriptors.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    if length == 0 {
        return Ok(None);
    }
    let bad = |why: &str| {
        io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a message on --sockets-fd is no `PORT\\n` or `PORT/udp\\n`, either with `/gone` or without, with a socket: {why}"),
        )
    };
    let text = std::str::from_utf8(&buffer[..length]).map_err(|_| bad("it is no text"))?;
    let text = text.trim_end();
    let (text, gone) = text.strip_suffix("/gone").map_or((text, false), |text| (text, true));
    let (port, datagrams) = text.strip_suffix("/udp").map_or((text, false), |port| (port, true));
    let port = port.parse().map_err(|_| bad("it names no port"))?;
    let socket = received.pop().filter(|_| received.is_empty()).ok_or_else(|| bad("it does not carry one descriptor"))?;
    let socket = socket2::Socket::from(socket);
    if gone {
        return Ok(Some((port, HandedOver::Gone { datagrams })));
    }
    if datagrams {
        if !socket.r#type().is_ok_and(|kind| kind == socket2::Type::DGRAM) {
            return Err(bad("the descriptor is not one of datagrams"));
        }
        return Ok(Some((port, HandedOver::Datagrams(socket.into()))));
    }
    if !socket.is_listener().unwrap_or(false) {
        return Err(bad("the descriptor does not listen"));
    }
    Ok(Some((port, HandedOver::Listener(socket.into()))))
}

#[cfg(test)]
mod tests {
    use std::io::IoSlice;

    use nix::sys::socket::{ControlMessage, sendmsg};

    use super::*;
    use crate::io::bind;

    /// Aim: sockets arrive with their ports one by one, what is none is refused without harm, and the end is told.
    #[test]
    fn sockets_arrive_with_their_ports() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let listener = bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let send = |text: &str, fds: &[RawFd]| {
            let rights = [ControlMessage::ScmRights(fds)];
            let rights = if fds.is_empty() { &rights[..0] } else { &rights[..] };
            sendmsg::<()>(theirs.as_raw_fd(), &[IoSlice::new(text.as_bytes())], rights, MsgFlags::empty(), None).unwrap();
        };
        send("80\n", &[listener.as_raw_fd()]);
        send("443\n", &[listener.as_raw_fd()]);
        let Some((80, HandedOver::Listener(received))) = receive_socket(&ours).unwrap() else { panic!("a listener at port 80") };
        assert_eq!(received.local_addr().unwrap(), listener.local_addr().unwrap());
        assert!(matches!(receive_socket(&ours).unwrap(), Some((443, HandedOver::Listener(_)))));
        let datagrams = UdpSocket::bind("127.0.0.1:0").unwrap();
        send("65535/udp\n", &[datagrams.as_raw_fd()]);
        let Some((65_535, HandedOver::Datagrams(received))) = receive_socket(&ours).unwrap() else { panic!("datagrams at port 65535") };
        assert_eq!(received.local_addr().unwrap(), datagrams.local_addr().unwrap());
        send("443/gone\n", &[listener.as_raw_fd()]);
        send("65535/udp/gone\n", &[datagrams.as_raw_fd()]);
        assert!(matches!(receive_socket(&ours).unwrap(), Some((443, HandedOver::Gone { datagrams: false }))));
        assert!(matches!(receive_socket(&ours).unwrap(), Some((65_535, HandedOver::Gone { datagrams: true }))));
        for (text, fds) in [
            ("http\n", &[listener.as_raw_fd()][..]),
            ("80/gone\n", &[]),
            ("80\n", &[]),
            ("80\n", &[theirs.as_raw_fd()]),
            ("80\n", &[datagrams.as_raw_fd()]),
            ("80/udp\n", &[listener.as_raw_fd()]),
            ("/udp\n", &[datagrams.as_raw_fd()]),
        ] {
            send(text, fds);
            assert_eq!(receive_socket(&ours).unwrap_err().kind(), io::ErrorKind::InvalidData, "{text}");
        }
        drop(theirs);
        assert!(receive_socket(&ours).unwrap().is_none());
    }

    /// Aim: a number that is no socket is refused.
    #[test]
    fn a_number_must_be_a_socket() {
        assert!(adopt_channel(-1).is_err());
        assert!(adopt_channel(987_654).is_err());
    }
}
