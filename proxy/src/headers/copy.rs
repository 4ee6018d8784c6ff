//! A cheap copy of headers, for what hardly ever happens.

use http::{HeaderMap, HeaderName, HeaderValue};

/// Headers written one after the other into one piece of memory. A clone of the map takes three, and a reference to each
/// name and value.
#[derive(Debug)]
pub(crate) struct Copied(Vec<u8>);

/// Lengths before each header, and whether its value is sensitive.
const PREFIX: usize = size_of::<u32>() * 2 + 1;

impl Copied {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let size = headers.iter().map(|(name, value)| PREFIX + name.as_str().len() + value.len()).sum();
        let mut text = Vec::with_capacity(size);
        for (name, value) in headers {
            // No header is larger than what a request may have of them.
            for length in [name.as_str().len(), value.len()] {
                text.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_ne_bytes());
            }
            text.push(value.is_sensitive().into());
            text.extend_from_slice(name.as_str().as_bytes());
            text.extend_from_slice(value.as_bytes());
        }
        Self(text)
    }

    /// The headers, in the same order.
    pub(crate) fn to_map(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut rest = &self.0[..];
        while let Some((name, value)) = next(&mut rest) {
            headers.append(name, value);
        }
        headers
    }
}

fn next(rest: &mut &[u8]) -> Option<(HeaderName, HeaderValue)> {
    let mut length =
        || rest.split_off(..size_of::<u32>()).map(|bytes| u32::from_ne_bytes(bytes.try_into().expect("four")));
    let (name, value) = (length()? as usize, length()? as usize);
    let sensitive = *rest.split_off_first()? != 0;
    let name = HeaderName::from_bytes(rest.split_off(..name)?).expect("a copied name");
    let mut value = HeaderValue::from_bytes(rest.split_off(..value)?).expect("a copied value");
    value.set_sensitive(sensitive);
    Some((name, value))
}
