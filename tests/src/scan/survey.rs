//! All that a server speaks. What may be chosen is offered whole, every number that the field has; what is chosen is offered no more, until the
//! server refuses. So nothing has to be guessed.

use std::io;
use std::net::SocketAddr;

use super::answer::{FirstWords, ServerHello, say};
use super::hello::{Hello, SSL2_HELLO, Version};
use super::names::{Kind, SCHEMES, place};

/// Numbers in one hello: it stays below what servers read at once.
const OFFERED_AT_ONCE: usize = 3_500;
/// Suites that are no suites but words of their own (RFC 5746, RFC 7507).
const SIGNALS: [u16; 2] = [0x00ff, 0x5600];

/// What a server speaks, in numbers: what has a name first, in the order of the names, then the rest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Spoken {
    /// SSL 2.0.
    pub ssl2: bool,
    /// All others.
    pub versions: Vec<Version>,
    /// Suites of TLS 1.3.
    pub suites_13: Vec<u16>,
    /// Groups of TLS 1.3.
    pub groups_13: Vec<u16>,
    /// Schemes of TLS 1.3, by which the certificate of this name signs.
    pub schemes_13: Vec<u16>,
    /// Who speaks TLS 1.2 without the extended master secret (RFC 7627) is served.
    pub bare_12: bool,
    /// Suites of TLS 1.2, with the certificate of this name.
    pub suites_12: Vec<u16>,
    /// Groups of TLS 1.2.
    pub groups_12: Vec<u16>,
    /// Schemes of TLS 1.2.
    pub schemes_12: Vec<u16>,
}

/// Asks a server that has this name for all it speaks.
///
/// # Errors
/// It is not reached, or a hello is answered with neither a hello nor an alert.
pub fn survey(at: SocketAddr, name: &str) -> io::Result<Spoken> {
    let mut spoken = Spoken { ssl2: taken(at, &SSL2_HELLO)?, ..Spoken::default() };
    for version in Version::ALL {
        let answer = say(at, &Hello::of(version, name).bytes())?;
        if answer.taken().is_some_and(|hello| hello.version == version.number()) {
            spoken.versions.push(version);
        }
    }
    if spoken.versions.contains(&Version::Tls13) {
        let hello = Hello::of(Version::Tls13, name);
        spoken.suites_13 = chosen(at, &|suites| Hello { suites, ..hello.clone() }, |answer| Some(answer.suite))?;
        // Without a share it says which one it wants.
        spoken.groups_13 =
            chosen(at, &|groups| Hello { groups, shares: Vec::new(), ..hello.clone() }, |answer| answer.retry.then_some(answer.group?))?;
        // With a share that is taken: else the server has not come to its certificate.
        spoken.schemes_13 = hidden(at, &Hello { groups: hello.shares.clone(), ..hello })?;
    }
    if spoken.versions.contains(&Version::Tls12) {
        let hello = Hello::of(Version::Tls12, name);
        spoken.bare_12 = taken(at, &Hello { master_secret: false, ..hello.clone() }.bytes())?;
        spoken.suites_12 = chosen(at, &|suites| Hello { suites, ..hello.clone() }, |answer| Some(answer.suite))?;
        spoken.groups_12 = chosen(at, &|groups| Hello { groups, ..hello.clone() }, |answer| answer.group)?;
        spoken.schemes_12 = chosen(at, &|schemes| Hello { schemes, ..hello.clone() }, |answer| answer.scheme)?;
    }
    let rank = |kind| move |number: &u16| (place(kind, *number), *number);
    spoken.suites_13.sort_by_key(rank(Kind::Suite));
    spoken.suites_12.sort_by_key(rank(Kind::Suite));
    spoken.groups_13.sort_by_key(rank(Kind::Group));
    spoken.groups_12.sort_by_key(rank(Kind::Group));
    spoken.schemes_12.sort_by_key(rank(Kind::Scheme));
    Ok(spoken)
}

/// What a server chooses of all numbers there are.
fn chosen(at: SocketAddr, hello: &dyn Fn(Vec<u16>) -> Hello, choice: fn(&ServerHello) -> Option<u16>) -> io::Result<Vec<u16>> {
    let all: Vec<u16> = (0..=u16::MAX).filter(|number| !SIGNALS.contains(number)).collect();
    let mut found = Vec::new();
    for part in all.chunks(OFFERED_AT_ONCE) {
        let mut left = part.to_vec();
        while let Some(number) = refused(say(at, &hello(left.clone()).bytes())?)?.as_ref().and_then(choice) {
            found.push(number);
            left.retain(|own| *own != number);
        }
    }
    Ok(found)
}

/// Schemes, which TLS 1.3 keeps to itself: each that has a name alone, and all others at once.
fn hidden(at: SocketAddr, hello: &Hello) -> io::Result<Vec<u16>> {
    let mut found = Vec::new();
    for (scheme, _) in SCHEMES {
        if taken(at, &Hello { schemes: vec![scheme], ..hello.clone() }.bytes())? {
            found.push(scheme);
        }
    }
    let others: Vec<u16> = (0..=u16::MAX).filter(|number| SCHEMES.iter().all(|(own, _)| own != number)).collect();
    for part in others.chunks(OFFERED_AT_ONCE) {
        if taken(at, &Hello { schemes: part.to_vec(), ..hello.clone() }.bytes())? {
            found.extend_from_slice(part);
        }
    }
    Ok(found)
}

fn taken(at: SocketAddr, bytes: &[u8]) -> io::Result<bool> {
    refused(say(at, bytes)?).map(|hello| hello.is_some())
}

/// The hello; `None`: it was refused, as one refuses.
fn refused(answer: FirstWords) -> io::Result<Option<ServerHello>> {
    match answer {
        FirstWords::Hello(hello) => Ok(Some(*hello)),
        FirstWords::Alert(_) | FirstWords::Sealed | FirstWords::Closed => Ok(None),
        other => Err(io::Error::other(format!("neither a hello nor a refusal: {other:?}"))),
    }
}
