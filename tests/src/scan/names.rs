//! Numbers of the registries of TLS, by name: those that a page speaks of, and those of which something is to be said if they are found.

/// Groups that are offered by name.
pub(super) const GROUPS: [(u16, &str); 13] = [
    (4588, "X25519MLKEM768"),
    (29, "X25519"),
    (23, "secp256r1"),
    (24, "secp384r1"),
    (25, "secp521r1"),
    (30, "X448"),
    (4587, "SecP256r1MLKEM768"),
    (4589, "SecP384r1MLKEM1024"),
    (19, "secp192r1"),
    (21, "secp224r1"),
    (22, "secp256k1"),
    (256, "ffdhe2048"),
    (257, "ffdhe3072"),
];

/// Schemes of signatures that are offered by name.
pub(super) const SCHEMES: [(u16, &str); 21] = [
    (0x0403, "ecdsa_secp256r1_sha256"),
    (0x0503, "ecdsa_secp384r1_sha384"),
    (0x0603, "ecdsa_secp521r1_sha512"),
    (0x0807, "ed25519"),
    (0x0808, "ed448"),
    (0x0804, "rsa_pss_rsae_sha256"),
    (0x0805, "rsa_pss_rsae_sha384"),
    (0x0806, "rsa_pss_rsae_sha512"),
    (0x0809, "rsa_pss_pss_sha256"),
    (0x080a, "rsa_pss_pss_sha384"),
    (0x080b, "rsa_pss_pss_sha512"),
    (0x0401, "rsa_pkcs1_sha256"),
    (0x0501, "rsa_pkcs1_sha384"),
    (0x0601, "rsa_pkcs1_sha512"),
    (0x0301, "rsa_pkcs1_sha224"),
    (0x0303, "ecdsa_sha224"),
    (0x0201, "rsa_pkcs1_sha1"),
    (0x0203, "ecdsa_sha1"),
    (0x0202, "dsa_sha1"),
    (0x0402, "dsa_sha256"),
    (0x0101, "rsa_pkcs1_md5"),
];

/// Suites of TLS 1.3.
pub(super) const EVERY_SUITE_13: [u16; 7] = [0x1301, 0x1302, 0x1303, 0x1304, 0x1305, 0xc0b4, 0xc0b5];

/// Suites of 1.2 and before that were ever usual.
pub(super) const EVERY_SUITE_12: [u16; 42] = [
    0xc02b, 0xc02c, 0xcca9, 0xc02f, 0xc030, 0xcca8, 0xcc13, 0xcc14, 0x009e, 0x009f, 0xccaa, 0xc023, 0xc024, 0xc027, 0xc028, 0xc009, 0xc00a,
    0xc013, 0xc014, 0x0033, 0x0039, 0x0067, 0x006b, 0x009c, 0x009d, 0x002f, 0x0035, 0x003c, 0x003d, 0x000a, 0xc008, 0xc012, 0x0016, 0x0004,
    0x0005, 0xc007, 0xc011, 0x0009, 0x0003, 0x0001, 0x0002, 0x0018,
];

const SUITES: [(u16, &str); 25] = [
    (0x1301, "TLS_AES_128_GCM_SHA256"),
    (0x1302, "TLS_AES_256_GCM_SHA384"),
    (0x1303, "TLS_CHACHA20_POLY1305_SHA256"),
    (0xc02b, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
    (0xc02c, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    (0xcca9, "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
    (0xc02f, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
    (0xc030, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
    (0xcca8, "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
    (0xc023, "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256"),
    (0xc024, "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA384"),
    (0xc027, "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256"),
    (0xc028, "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA384"),
    (0xc009, "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA"),
    (0xc00a, "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA"),
    (0xc013, "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA"),
    (0xc014, "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA"),
    (0x002f, "TLS_RSA_WITH_AES_128_CBC_SHA"),
    (0x0035, "TLS_RSA_WITH_AES_256_CBC_SHA"),
    (0x003c, "TLS_RSA_WITH_AES_128_CBC_SHA256"),
    (0x003d, "TLS_RSA_WITH_AES_256_CBC_SHA256"),
    (0x009c, "TLS_RSA_WITH_AES_128_GCM_SHA256"),
    (0x009d, "TLS_RSA_WITH_AES_256_GCM_SHA384"),
    (0x000a, "TLS_RSA_WITH_3DES_EDE_CBC_SHA"),
    (0x0005, "TLS_RSA_WITH_RC4_128_SHA"),
];

/// Which registry a number is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Cipher suites.
    Suite,
    /// Groups of key exchange.
    Group,
    /// Schemes of signatures.
    Scheme,
}

impl Kind {
    const fn all(self) -> &'static [(u16, &'static str)] {
        match self {
            Self::Suite => &SUITES,
            Self::Group => &GROUPS,
            Self::Scheme => &SCHEMES,
        }
    }
}

/// Where a number stands among those that have names; behind all of them, if it has none here.
pub(super) fn place(kind: Kind, number: u16) -> usize {
    kind.all().iter().position(|(own, _)| *own == number).unwrap_or(usize::MAX)
}

/// A number by its name; as it is, where it has none here.
pub fn named(kind: Kind, number: u16) -> String {
    kind.all().iter().find(|(own, _)| *own == number).map_or_else(|| format!("{number:#06x}"), |(_, name)| (*name).to_owned())
}
