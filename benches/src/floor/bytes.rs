//! Bytes, one connection out for each that comes in.

use std::io;

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, splice as kernel_splice};
use nix::unistd::pipe2;
use tokio::io::{AsyncRead, AsyncWrite, Interest, copy_bidirectional_with_sizes};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

/// Copied at once, each way.
const BUFFER_BYTES: usize = 64 << 10;
/// The pipe that bytes cross inside the kernel.
const PIPE_BYTES: i32 = 256 << 10;

/// Copies both ways until both have ended.
pub(super) async fn copy<A, B>(mut one: A, mut other: B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional_with_sizes(&mut one, &mut other, BUFFER_BYTES, BUFFER_BYTES).await.map(drop)
}

/// The same inside the kernel: no byte is seen here.
pub(super) async fn splice(one: TcpStream, other: TcpStream) -> io::Result<()> {
    let (one_in, one_out) = one.into_split();
    let (other_in, other_out) = other.into_split();
    tokio::try_join!(pour(one_in, other_out), pour(other_in, one_out)).map(drop)
}

/// One way. Dropping `to` tells its peer that no more comes.
async fn pour(from: OwnedReadHalf, to: OwnedWriteHalf) -> io::Result<()> {
    let (from, to): (&TcpStream, &TcpStream) = (from.as_ref(), to.as_ref());
    let (outlet, inlet) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC)?;
    let room = usize::try_from(fcntl(&inlet, FcntlArg::F_SETPIPE_SZ(PIPE_BYTES))?).unwrap_or(BUFFER_BYTES);
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    loop {
        from.readable().await?;
        let fill = || kernel_splice(from, None, &inlet, None, room, flags).map_err(io::Error::from);
        let mut left = match from.try_io(Interest::READABLE, fill) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        while left > 0 {
            let empty = || kernel_splice(&outlet, None, to, None, left, flags).map_err(io::Error::from);
            match to.try_io(Interest::WRITABLE, empty) {
                Ok(count) => left -= count,
                // Most often there is room at once, and no waiting is set up.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => to.writable().await?,
                Err(error) => return Err(error),
            }
        }
    }
}
