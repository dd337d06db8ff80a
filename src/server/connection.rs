//! Client connections: acceptance, counting, and time limits of requests.

mod accept;
mod byte_stream;
mod request;
mod stream;

pub use self::accept::Acceptor;
pub use self::byte_stream::Stream;
pub use self::request::track;
pub use self::stream::{ConnectionPermits, KEEP_ALIVE, RequestStream, UNREAD_BODY_TIMEOUT};
