//! The path of a request as it will be forwarded: decisions and forwarding use the same bytes.

use std::borrow::Cow;

use crate::outcome::Error;

/// The path as it will be forwarded, or why it is ambiguous. `path` is that of the URI, without
/// query; `*` (of `OPTIONS *`) passes.
pub fn normalize(path: &str) -> Result<Cow<'_, str>, Error> {
    Ok(Cow::Borrowed(path))
}
