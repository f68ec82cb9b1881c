//! Certificates of clients for as long as their connections last.

use engine::failure::{LocalReply, Reason};
use engine::model::{ClientCertificates, Secret, TlsTerms};

use super::tls::{cell, certificate, connect, drain_body, get, https, put, replying, serve_chains, showing, terms};
use super::*;

#[test]
fn a_connection_ends_with_the_authority_of_its_client() {
    // Aim: authorities that come beside a client's own, without an epoch, cut nobody; once its own is gone the next request is 421 and the connection's
    // last, so that the client proves itself anew; where anybody is let in and nobody may believe it any more, that holds, too.
    run(|| async {
        for untrusted in [false, true] {
            let world = World::new(Setup::default());
            let (partners, others) = (Authority::new("partners"), Authority::new("others"));
            let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
            let authorities = cell("ca", Some(Secret::Authorities(partners.roots())));
            let clients = ClientCertificates { authorities: Arc::clone(&authorities), required: !untrusted, untrusted };
            let terms = TlsTerms { clients: Some(clients), ..terms(&own) };
            serve_chains(&world, vec![("a.example", https("a", terms, &replying(LocalReply::of(Reason::NoRoute))))]);
            let config = Arc::new(showing(&partners, "spiffe://partner/acme"));
            let mut live = connect(&world.client, &config, "a.example").await.unwrap();
            let both: Vec<_> = partners.roots().into_iter().chain(others.roots()).collect();
            for roots in [partners.roots(), both] {
                put(&authorities, Some(Secret::Authorities(roots)));
                let answer = get(&mut live, "a.example").await;
                assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
                drain_body(&mut live, &answer).await;
            }
            put(&authorities, Some(Secret::Authorities(others.roots())));
            let answer = get(&mut live, "a.example").await;
            assert!(answer.starts_with("HTTP/1.1 421 ") && answer.contains("connection: close"), "{answer}");
        }
    });
}
