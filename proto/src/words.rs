//! Enumerations that both planes speak of, each with its one spelling.

/// What carries a connection's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// HTTP, version by the first bytes (preface or not).
    Http,
    /// HTTP/1.x only.
    Http1,
    /// HTTP/2 with prior knowledge only.
    Http2,
    /// Opaque bytes; the server may speak first.
    Tcp,
    /// Undeclared: both sides are watched.
    Auto,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Http, Self::Http1, Self::Http2, Self::Tcp, Self::Auto];

    /// As dumps and cluster metadata spell it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Tcp => "tcp",
            Self::Auto => "auto",
        }
    }

    /// The inverse of [`Protocol::text`].
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|protocol| protocol.text() == text)
    }

    /// Whether it is declared to be HTTP, of whatever version.
    pub const fn is_http(self) -> bool {
        matches!(self, Self::Http | Self::Http1 | Self::Http2)
    }
}

/// How a workload's ports may be spoken to: PeerAuthentication's modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MtlsMode {
    /// mTLS only; plaintext is closed without an answer.
    Strict,
    /// Both; the application's own TLS is passed through.
    Permissive,
    /// Plaintext only.
    Disabled,
}

impl MtlsMode {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Strict, Self::Permissive, Self::Disabled];

    /// As PeerAuthentication spells it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Strict => "Strict",
            Self::Permissive => "Permissive",
            Self::Disabled => "Disabled",
        }
    }
}

/// What a node agent's message of a Gateway begins with that asks for an address which its machine does not have.
pub const ADDRESS_NOT_USABLE: &str = "address not usable";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_protocol_is_read_as_it_is_written() {
        // Aim: one spelling, both ways; nothing else is a protocol.
        for protocol in Protocol::ALL {
            assert_eq!(Protocol::parse(protocol.text()), Some(protocol));
        }
        assert_eq!(Protocol::parse("HTTP"), None);
    }
}
