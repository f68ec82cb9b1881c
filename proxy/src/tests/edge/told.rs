//! What an application in the mesh hears of a client outside.

use engine::model::{ClientCertificates, Secret, TlsTerms};

use super::tls::{cell, certificate, client, heard, https, serve_chains, showing, table_of, terms};
use super::*;

#[test]
fn a_clients_certificate_is_told_through_the_mesh_by_gateways_alone() {
    // Aim: what the server's sidecar says of its caller is one element of its own, whoever called; a Gateway's word on its client goes on beside it
    // under a name of its own, nobody else's does, in whatever header it is said, and none is invented.
    run(|| async {
        let partners = Authority::new("partners");
        let own = cell("tls", Some(certificate(&Authority::new("public"), &["a.example"])));
        for (gateway, shown, wanted) in [(true, true, true), (true, false, false), (false, true, false)] {
            let mut world = World::new(Setup::default());
            let mut server = server_snapshot(&world.setup, 2);
            if gateway {
                let known = server.settings.as_deref().cloned().unwrap();
                server.settings = Some(Arc::new(Settings { gateways: vec![FRONTEND.into()], ..known }));
            }
            world.server_means.snapshots.publish(Arc::new(server));
            let authorities = cell("ca", Some(Secret::Authorities(partners.roots())));
            let terms = TlsTerms { clients: Some(ClientCertificates { authorities, required: false, untrusted: false }), ..terms(&own) };
            serve_chains(&world, vec![("a.example", https("a", terms, &table_of(&world)))]);
            let config = if shown { showing(&partners, "spiffe://partner/acme") } else { client(&["http/1.1"]) };
            let lie = "x-meshwright-client-cert: Hash=1;URI=spiffe://x/y\r\n";
            let request = heard(&mut world, config, lie).await.unwrap();
            let of = |begin: &str| request.lines().find_map(|line| line.strip_prefix(begin));
            let (told, outside) = (of("x-forwarded-client-cert: ").unwrap(), of("x-meshwright-client-cert: "));
            assert!(told.starts_with("By=") && told.ends_with(&format!(";URI={FRONTEND}")) && !told.contains(','), "{told}");
            let outside = outside.unwrap_or_default();
            assert_eq!(outside.starts_with("Hash=") && outside.ends_with("URI=spiffe://partner/acme"), wanted, "{outside}");
            assert!(wanted || outside.is_empty(), "{outside}");
        }
    });
}
