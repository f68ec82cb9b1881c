//! The proxy's own mesh TLS over memory: both ends with certificates, identities verified, no sockets.

use std::hint::black_box;
use std::io::{Read, Write};
use std::sync::Arc;

use criterion::{BatchSize, Criterion, Throughput};
use proto::identity::Identity;
use proxy::tls::testing::{Authority, Party, party};
use proxy::tls::{Carries, Tls, TlsAccepted, TlsConnected};
use rustls::{ConnectionCommon, SideData};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::runtime::Runtime;

const FRONTEND: &str = "spiffe://cluster.local/ns/shop/sa/frontend";
const CATALOG: &str = "spiffe://cluster.local/ns/shop/sa/catalog";
/// Holds a whole flight, so that a handshake takes no more turns than over a socket.
const PIPE_BYTES: usize = 64 << 10;
const RECORD_BYTES: usize = 1024;

type Ends = (TlsConnected<DuplexStream>, TlsAccepted<DuplexStream>);

struct Mesh {
    runtime: Runtime,
    client: Party,
    server: Party,
    expected: Arc<Identity>,
}

impl Mesh {
    fn new() -> Self {
        let authority = Authority::new("root");
        Self {
            runtime: tokio::runtime::Builder::new_current_thread().build().unwrap(),
            client: party(&authority, FRONTEND, "frontend"),
            server: party(&authority, CATALOG, "catalog"),
            expected: Arc::new(CATALOG.parse().unwrap()),
        }
    }

    /// A client that has met nobody yet, so that nothing can be resumed.
    fn stranger(&self) -> Tls {
        let time = Arc::clone(&self.client.time) as _;
        Tls::new(Arc::clone(&self.client.credentials), Arc::clone(&self.client.trust), time).unwrap()
    }

    /// One handshake, and one byte from the server, with which the session tickets arrive.
    fn handshake(&self, client: &Tls) -> Ends {
        self.runtime.block_on(async {
            let (near, far) = duplex(PIPE_BYTES);
            let address = "10.77.0.9:80".parse().unwrap();
            let (connected, accepted) =
                tokio::join!(client.connect(&self.expected, address, Carries::H1, near), self.server.tls.accept(far));
            let (mut connected, mut accepted) = (connected.unwrap(), accepted.unwrap());
            accepted.stream.write_all(b"x").await.unwrap();
            accepted.stream.flush().await.unwrap();
            connected.stream.read_exact(&mut [0]).await.unwrap();
            (connected, accepted)
        })
    }
}

/// Both ends together, configurations and verifiers those of the proxy.
pub(crate) fn handshakes(criterion: &mut Criterion) {
    let mesh = Mesh::new();
    criterion.bench_function("TLS handshake: full, both ends", |bench| {
        bench.iter_batched(
            || mesh.stranger(),
            |client| {
                let ends = mesh.handshake(&client);
                assert!(!ends.0.facts.resumed);
                (client, ends)
            },
            BatchSize::SmallInput,
        );
    });
    let client = mesh.stranger();
    drop(mesh.handshake(&client));
    criterion.bench_function("TLS handshake: resumed, both ends", |bench| {
        bench.iter(|| {
            let ends = mesh.handshake(&client);
            assert!(ends.0.facts.resumed && ends.1.facts.resumed);
            ends
        });
    });
}

/// One record from the client to the server, over plain buffers.
pub(crate) fn records(criterion: &mut Criterion) {
    let mesh = Mesh::new();
    let (mut connected, mut accepted) = mesh.handshake(&mesh.stranger());
    let (client, server) = (connected.stream.get_mut().1, accepted.stream.get_mut().1);
    let content = [b'x'; RECORD_BYTES];
    let mut wire = Vec::with_capacity(2 * RECORD_BYTES);
    let mut got = [0; RECORD_BYTES];
    let mut group = criterion.benchmark_group("TLS record");
    group.throughput(Throughput::Bytes(RECORD_BYTES as u64));
    group.bench_function("seal and open 1 KiB", |bench| {
        bench.iter(|| {
            seal(client, black_box(&content), &mut wire);
            open(server, &wire, &mut got);
            got[0]
        });
    });
    group.finish();
}

fn seal<S: SideData>(end: &mut ConnectionCommon<S>, content: &[u8], wire: &mut Vec<u8>) {
    wire.clear();
    end.writer().write_all(content).unwrap();
    while end.wants_write() {
        end.write_tls(wire).unwrap();
    }
}

fn open<S: SideData>(end: &mut ConnectionCommon<S>, mut wire: &[u8], got: &mut [u8]) {
    while !wire.is_empty() {
        end.read_tls(&mut wire).unwrap();
        end.process_new_packets().unwrap();
    }
    end.reader().read_exact(got).unwrap();
}
