//! `Date`, for responses whose sender did not say.

use std::{
    cell::RefCell,
    time::{SystemTime, UNIX_EPOCH},
};

use http::{HeaderMap, HeaderValue, header::DATE};
use jiff::{Timestamp, fmt::rfc2822::DateTimePrinter};

thread_local! {
    /// The last one made, and of which second.
    static LAST: RefCell<Option<(u64, HeaderValue)>> = const { RefCell::new(None) };
}

/// Says when a response came, where its sender does not (RFC 9110, section 6.6.1).
pub fn date(headers: &mut HeaderMap, now: impl FnOnce() -> SystemTime) {
    if headers.contains_key(DATE) {
        return;
    }
    let Ok(now) = now().duration_since(UNIX_EPOCH) else { return };
    let second = now.as_secs();
    LAST.with_borrow_mut(|last| {
        if last.as_ref().is_none_or(|(of, _)| *of != second) {
            *last = format(second).map(|value| (second, value));
        }
        if let Some((_, value)) = last {
            headers.insert(DATE, value.clone());
        }
    });
}

fn format(second: u64) -> Option<HeaderValue> {
    let time = Timestamp::from_second(i64::try_from(second).ok()?).ok()?;
    HeaderValue::try_from(DateTimePrinter::new().timestamp_to_rfc9110_string(&time).ok()?).ok()
}
