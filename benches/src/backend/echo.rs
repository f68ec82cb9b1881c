//! Gives every byte back.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Read at once.
const BUFFER_BYTES: usize = 16 << 10;

/// Serves one connection to its end; a broken one is no matter of the backend's.
pub(super) async fn serve(mut stream: TcpStream) {
    let mut buffer = vec![0; BUFFER_BYTES];
    while let Ok(count @ 1..) = stream.read(&mut buffer).await {
        if stream.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}
