//! Why a token is not believed, and what its bearer is told (RFC 6750, section 3).

use std::sync::LazyLock;

use http::HeaderValue;
use http::header::{RETRY_AFTER, WWW_AUTHENTICATE};

use crate::failure::{LocalReply, Reason};

/// gRPC's UNAUTHENTICATED.
const GRPC_UNAUTHENTICATED: u8 = 16;

/// What is wrong with a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum TokenFault {
    /// Different ones are shown.
    Several,
    /// It has more bytes than [`super::TOKEN_BYTES_MAX`].
    TooLong,
    /// It is no signed token.
    Malformed,
    /// It demands something to be understood that is not (`crit`).
    Critical,
    /// Its signature is of a kind that is not taken.
    Algorithm,
    /// No rule is about its issuer.
    Issuer,
    /// No known key is the one that it names.
    UnknownKey,
    /// No key has signed it.
    Signature,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    TooEarly,
    /// It is meant for others.
    Audience,
    /// It is of another type.
    Type,
    /// The issuer's keys are not at hand (yet).
    KeysPending,
    /// The rules cannot be carried out.
    Unconfigured,
}

impl TokenFault {
    /// Every fault, in order; `fault as usize` is its index.
    pub const ALL: [Self; 14] = [
        Self::Several,
        Self::TooLong,
        Self::Malformed,
        Self::Critical,
        Self::Algorithm,
        Self::Issuer,
        Self::UnknownKey,
        Self::Signature,
        Self::Expired,
        Self::TooEarly,
        Self::Audience,
        Self::Type,
        Self::KeysPending,
        Self::Unconfigured,
    ];

    /// In words that say nothing of the keys.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Several => "more than one token is shown",
            Self::TooLong => "the token is too long",
            Self::Malformed => "the token is malformed",
            Self::Critical => "the token demands an extension that is not understood",
            Self::Algorithm => "the token's algorithm is not accepted",
            Self::Issuer => "the token's issuer is not accepted",
            Self::UnknownKey => "the token's key is not known",
            Self::Signature => "the token's signature does not hold",
            Self::Expired => "the token has expired",
            Self::TooEarly => "the token does not hold yet",
            Self::Audience => "the token is meant for another audience",
            Self::Type => "the token is of a type that is not accepted",
            Self::KeysPending => "the keys of the token's issuer are not at hand",
            Self::Unconfigured => "the rules for tokens cannot be carried out",
        }
    }

    /// The reason code.
    pub const fn reason(self) -> Reason {
        match self {
            Self::Several => Reason::BadRequest,
            Self::KeysPending | Self::Unconfigured => Reason::PolicyUnavailable,
            _ => Reason::Unauthenticated,
        }
    }

    /// What the bearer is told.
    pub fn reply(self) -> &'static LocalReply {
        static REPLIES: LazyLock<[LocalReply; TokenFault::ALL.len()]> = LazyLock::new(|| TokenFault::ALL.map(TokenFault::made));
        &REPLIES[self as usize]
    }

    fn made(self) -> LocalReply {
        let mut reply = LocalReply::of(self.reason());
        let error = match self.reason() {
            Reason::PolicyUnavailable => {
                reply.headers.push((RETRY_AFTER, HeaderValue::from_static("1")));
                return reply;
            }
            Reason::BadRequest => "invalid_request",
            _ => "invalid_token",
        };
        reply.grpc_status = Some(GRPC_UNAUTHENTICATED);
        let challenge = format!("Bearer error=\"{error}\", error_description=\"{}\"", self.text());
        reply.headers.extend(HeaderValue::from_str(&challenge).ok().map(|challenge| (WWW_AUTHENTICATE, challenge)));
        reply
    }
}
