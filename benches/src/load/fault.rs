//! Why a request failed, in words that are few and stable: reports count by them.

use std::fmt;
use std::io::{Error, ErrorKind};

/// One reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// Too many requests waited already.
    Backlog,
    /// Nobody listens.
    ConnectRefused,
    /// No local port is left.
    ConnectNoPort,
    /// The connection could not be opened for another reason.
    ConnectFailed,
    /// No whole answer in time, opening the connection included.
    Timeout,
    /// The peer reset the connection.
    Reset,
    /// The peer closed the connection before it answered.
    Closed,
    /// The answer ended before its time.
    ShortBody,
    /// The answer is not of the protocol.
    Malformed,
    /// HTTP status outside 200 to 299.
    Status(u16),
    /// The peer reset the HTTP/2 stream or ended the connection, with this error code (RFC 9113, section 7).
    H2(u32),
    /// gRPC status other than 0.
    GrpcStatus(u16),
    /// An answer without gRPC status.
    GrpcStatusMissing,
    /// Other bytes came back than were sent.
    NotAnEcho,
    /// Sent, and without an answer when the drain was over.
    Unanswered,
}

impl Fault {
    /// Of opening a connection.
    pub fn of_connect(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::ConnectRefused,
            ErrorKind::AddrNotAvailable | ErrorKind::AddrInUse => Self::ConnectNoPort,
            ErrorKind::TimedOut => Self::Timeout,
            _ => Self::ConnectFailed,
        }
    }

    /// Of reading or writing.
    pub fn of_io(error: &Error) -> Self {
        match error.kind() {
            ErrorKind::UnexpectedEof => Self::Closed,
            ErrorKind::TimedOut => Self::Timeout,
            _ => Self::Reset,
        }
    }

    /// Of HTTP/2.
    pub fn of_h2(error: &h2::Error) -> Self {
        match (error.reason(), error.get_io()) {
            (Some(reason), _) => Self::H2(reason.into()),
            (None, Some(io)) => Self::of_io(io),
            (None, None) => Self::Malformed,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backlog => f.write_str("backlog"),
            Self::ConnectRefused => f.write_str("connect_refused"),
            Self::ConnectNoPort => f.write_str("connect_no_port"),
            Self::ConnectFailed => f.write_str("connect_failed"),
            Self::Timeout => f.write_str("timeout"),
            Self::Reset => f.write_str("reset"),
            Self::Closed => f.write_str("closed"),
            Self::ShortBody => f.write_str("short_body"),
            Self::Malformed => f.write_str("malformed"),
            Self::Status(code) => write!(f, "status_{code}"),
            Self::H2(code) => write!(f, "h2_error_{code}"),
            Self::GrpcStatus(code) => write!(f, "grpc_status_{code}"),
            Self::GrpcStatusMissing => f.write_str("grpc_status_missing"),
            Self::NotAnEcho => f.write_str("not_an_echo"),
            Self::Unanswered => f.write_str("unanswered"),
        }
    }
}
