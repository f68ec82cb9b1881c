//! What clients hold that take nothing of their answers.

use super::*;
use crate::ground::limits::HTTP1_BUFFER_BYTES;

/// Bytes in a memory pipe on their way.
const PIPE_BYTES: usize = 64 << 10;

#[test]
fn a_client_that_takes_nothing_holds_little() {
    // Aim: of an endless answer the edge takes what its buffers have room for, and no more; what it holds for one such client is bounded.
    run(|| async {
        let mut world =
            World::new(Setup { meshed: false, endpoints: vec!["10.77.0.9:9000"], application: Protocol::Http1, ..Setup::default() });
        let mut client = world.knock();
        write(&mut client, "GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut application = world.application().await;
        head(&mut application).await;
        write(&mut application, "HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\n").await;
        let (piece, mut taken) = (vec![b'x'; 16 << 10], 0);
        while let Ok(written) = tokio::time::timeout(Duration::from_secs(1), application.write(&piece)).await {
            taken += written.unwrap();
        }
        let held = taken - 2 * PIPE_BYTES;
        assert!(held <= 2 * HTTP1_BUFFER_BYTES, "{held} bytes are held");
        assert!(taken > 2 * PIPE_BYTES, "it flows");
        drop(client);
    });
}
