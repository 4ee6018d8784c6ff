//! Secrets of tokens: made from the system's randomness, compared in constant time.

use std::fmt::Write as _;

use aws_lc_rs::{
    constant_time, digest,
    rand::{SecureRandom as _, SystemRandom},
};

/// Characters of an id: 64 bits, enough that two never meet.
const ID_LEN: usize = 16;
/// Characters of a secret: 256 bits.
const SECRET_LEN: usize = 64;

/// The system gave no randomness.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system gave no randomness")]
pub struct NoRandomness;

/// A token as text: `<prefix>_<id>_<secret>`.
pub(super) struct Secret {
    pub(super) id: String,
    pub(super) text: String,
}

impl Secret {
    /// A new one, with the digest to store.
    pub(super) fn make(prefix: &str) -> Result<(Self, String), NoRandomness> {
        let mut bytes = [0; (ID_LEN + SECRET_LEN) / 2];
        SystemRandom::new().fill(&mut bytes).map_err(|_| NoRandomness)?;
        let text = hex(&bytes);
        let (id, secret) = text.split_at(ID_LEN);
        Ok((Self { id: id.to_owned(), text: format!("{prefix}_{id}_{secret}") }, digest_of(secret)))
    }
}

/// Splits a token's text into id and secret; absent when it has not that form.
pub(super) fn parse<'a>(prefix: &str, text: &'a str) -> Option<(&'a str, &'a str)> {
    let (id, secret) = text.strip_prefix(prefix)?.strip_prefix('_')?.split_once('_')?;
    let is_hex = |part: &str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    (id.len() == ID_LEN && secret.len() == SECRET_LEN && is_hex(id) && is_hex(secret)).then_some((id, secret))
}

/// SHA-256 as hex.
pub(super) fn digest_of(secret: &str) -> String {
    hex(digest::digest(&digest::SHA256, secret.as_bytes()).as_ref())
}

/// Whether a secret has this digest, in a time that does not depend on either.
pub(super) fn matches(secret: &str, digest: &str) -> bool {
    constant_time::verify_slices_are_equal(digest_of(secret).as_bytes(), digest.as_bytes()).is_ok()
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
