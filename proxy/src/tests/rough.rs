//! Roads over sockets that take and give a few bytes at a time, pause at any point, and are never ready twice in a row.

use std::convert::Infallible;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use engine::model::Protocol;
use http::{Request, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::*;
use crate::io::Draw;

/// One end of a stream that misbehaves within what the contract of asynchronous streams allows.
pub(crate) struct Rough {
    inner: Socket,
    draw: Draw,
    bytes_max: u64,
}

impl Rough {
    pub(crate) fn wrap(inner: Socket, seed: u64, bytes_max: u64) -> Socket {
        Socket::Virtual(Box::new(Self { inner, draw: Draw::seeded(seed), bytes_max }))
    }

    /// Whether to pause: the waker is called, but everybody else goes first.
    fn pauses(&self, cx: &Context<'_>) -> bool {
        let pauses = self.draw.next().is_multiple_of(3);
        if pauses {
            cx.waker().wake_by_ref();
        }
        pauses
    }

    fn some(&self, of: usize) -> usize {
        of.min(1 + (self.draw.next() % self.bytes_max) as usize)
    }
}

impl VirtualSocket for Rough {
    fn abort(&mut self) {
        self.inner.abort();
    }
}

impl AsyncRead for Rough {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.pauses(cx) {
            return Poll::Pending;
        }
        let mut room = vec![0; self.some(buf.remaining())];
        let mut few = ReadBuf::new(&mut room);
        ready!(Pin::new(&mut self.inner).poll_read(cx, &mut few))?;
        buf.put_slice(few.filled());
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Rough {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.pauses(cx) {
            return Poll::Pending;
        }
        let count = self.some(buf.len());
        Pin::new(&mut self.inner).poll_write(cx, &buf[..count])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
        self.poll_write(cx, &all)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pauses(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.pauses(cx) {
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl World {
    /// As [`World::dial`], over a rough socket; those between the proxies and to the applications are rough too.
    fn dial_roughly(&self, destination: &str, seed: u64) -> Socket {
        for wires in [&self.client_wires, &self.server_wires] {
            *wires.rough.lock() = Some(seed);
        }
        let (near, far) = pipe();
        let arrival =
            Arrival { socket: Rough::wrap(far, seed, 3000), peer: CLIENT.parse().unwrap(), destination: destination.parse().unwrap() };
        serve(&self.client, Direction::Outbound, outbound::serve_connection(arrival, Rc::clone(&self.client)));
        near
    }
}

/// `count` bytes that tell their own places apart.
fn pattern(count: usize) -> Bytes {
    (0..count).map(|n| (n ^ (n >> 8) ^ (n >> 16)) as u8).collect()
}

#[test]
fn calls_are_whole_over_rough_sockets() {
    // Aim: gathered writes lose, repeat and strand nothing, however the sockets below behave: many calls of all sizes at once, all answered.
    for seed in 1..6 {
        run(|| async {
            let mut world = World::new(Setup::default());
            let sender = http2::client(world.dial_roughly(SERVICE, seed)).await;
            let sizes = [0, 1, 5, 100, 4095, 8191, 8192, 16_384, 40_000, 300_000];
            let calls: Vec<_> = sizes
                .into_iter()
                .cycle()
                .take(30)
                .map(|size| {
                    let mut sender = sender.clone();
                    tokio::task::spawn_local(async move {
                        let sent = pattern(size);
                        let chunks: Vec<_> =
                            sent.chunks(7000).map(|chunk| Ok::<_, Infallible>(Frame::data(Bytes::copy_from_slice(chunk)))).collect();
                        let request = Request::post("http://catalog/a").version(Version::HTTP_2);
                        let body = BodyExt::boxed(StreamBody::new(futures::stream::iter(chunks)));
                        let answer = sender.send_request(request.body(body).unwrap()).await.unwrap();
                        let (status, head) = (answer.status(), answer.headers().clone());
                        let got = answer.into_body().collect().await.unwrap();
                        assert_eq!(status, 200, "{size} bytes: {head:?}");
                        assert_eq!(got.trailers().unwrap()["grpc-status"], "0");
                        assert!(got.to_bytes() == sent, "{size} bytes came back changed");
                    })
                })
                .collect();
            // A body that is under way for long has a connection to the application of its own.
            let mut applications = std::mem::replace(&mut world.applications, mpsc::unbounded_channel().1);
            tokio::task::spawn_local(async move {
                while let Some((_, socket)) = applications.recv().await {
                    tokio::task::spawn_local(http2::application(socket));
                }
            });
            for call in calls {
                call.await.unwrap();
            }
            assert_eq!((world.client.patience.waiting(), world.server.patience.waiting()), (0, 0));
        });
    }
}

#[test]
fn opaque_bytes_are_whole_over_rough_sockets() {
    // Aim: copying is exact in both directions, half-close arrives after the last byte, and the other direction goes on after it.
    for seed in 1..6 {
        run(|| async {
            let mut world = World::new(Setup { protocol: Protocol::Tcp, ..Setup::default() });
            let client = world.dial_roughly(SERVICE, seed);
            let application = world.application().await;
            let (mut from, mut to) = tokio::io::split(client);
            let (mut received, mut answered) = tokio::io::split(application);
            let up = async {
                to.write_all(&pattern(300_000)).await.unwrap();
                to.shutdown().await.unwrap();
            };
            let application = async {
                answered.write_all(&pattern(100_000)).await.unwrap();
                let mut got = Vec::new();
                received.read_to_end(&mut got).await.unwrap();
                assert!(got == pattern(300_000));
                answered.write_all(&pattern(200_000)).await.unwrap();
                answered.shutdown().await.unwrap();
            };
            let down = async {
                let mut got = Vec::new();
                from.read_to_end(&mut got).await.unwrap();
                assert!(got == [pattern(100_000), pattern(200_000)].concat());
            };
            tokio::join!(up, application, down);
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!((world.client.patience.waiting(), world.server.patience.waiting()), (0, 0));
        });
    }
}

#[test]
fn http1_is_whole_over_rough_sockets() {
    // Aim: requests in a row on one connection, both ways with bodies, over sockets that give a few bytes at a time.
    for seed in 1..6 {
        run(|| async {
            let mut world = World::new(Setup::default());
            let client = world.dial_roughly(SERVICE, seed);
            let (mut from, mut to) = tokio::io::split(client);
            const TURNS: usize = 20;
            let size = |n: usize| n * n * 150;
            let asking = async {
                for n in 0..TURNS {
                    let head = format!("POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n", size(n));
                    to.write_all(&[head.as_bytes(), &pattern(size(n))].concat()).await.unwrap();
                }
            };
            let application = async {
                let mut socket = world.application().await;
                for n in 0..TURNS {
                    assert!(head(&mut socket).await.contains(&format!("content-length: {}\r\n", size(n))));
                    let mut got = vec![0; size(n)];
                    socket.read_exact(&mut got).await.unwrap();
                    assert!(got == pattern(size(n)));
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", got.len());
                    socket.write_all(&[head.as_bytes(), &got].concat()).await.unwrap();
                }
            };
            let reading = async {
                for n in 0..TURNS {
                    let mut wanted = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", size(n)).into_bytes();
                    wanted.extend_from_slice(&pattern(size(n)));
                    let mut got = vec![0; wanted.len()];
                    from.read_exact(&mut got).await.unwrap();
                    assert!(got == wanted, "answer {n}");
                }
            };
            tokio::join!(asking, application, reading);
        });
    }
}
