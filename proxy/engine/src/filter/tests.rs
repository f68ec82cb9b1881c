use std::net::{IpAddr, Ipv4Addr};

use http::request;

use super::{Called, Exchange};
use crate::Moment;

/// A request from 10.9.8.7 to port 8080 in plaintext.
pub(crate) fn exchange(request: &mut request::Parts) -> Exchange<'_> {
    Exchange {
        request,
        caller: None,
        address: IpAddr::V4(Ipv4Addr::new(10, 9, 8, 7)),
        called: Called { port: 8080, tls: false },
        watch: None,
        now: Moment::default(),
        draw: 7,
    }
}
