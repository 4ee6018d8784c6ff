//! What headers say about time: deadlines, attempts, when to try again.

use std::{
    cell::RefCell,
    time::{Duration, SystemTime},
};

use http::{HeaderMap, HeaderName, HeaderValue, header::RETRY_AFTER};

use super::{HEDDLE_ATTEMPT, HEDDLE_DEADLINE};
use crate::cluster::retry::Pushback;

const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const GRPC_RETRY_PUSHBACK_MS: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");

thread_local! {
    /// The last one written: mostly a request has just come, and all the time that its timeout gives.
    static LAST_DEADLINE: RefCell<(Option<u64>, HeaderValue)> = const { RefCell::new((None, HeaderValue::from_static(""))) };
}

/// How long the caller still waits, as `heddle-deadline` or `grpc-timeout` say; the shorter of both.
pub fn deadline(headers: &HeaderMap) -> Option<Duration> {
    let heddle = headers.get(HEDDLE_DEADLINE).and_then(number).map(Duration::from_millis);
    let grpc = headers.get(GRPC_TIMEOUT).and_then(grpc_timeout);
    [heddle, grpc].into_iter().flatten().min()
}

/// Tells the next proxy how long the caller still waits.
pub fn set_deadline(headers: &mut HeaderMap, remaining: Duration) {
    let millis = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX);
    let value = LAST_DEADLINE.with_borrow_mut(|(of, value)| {
        if *of != Some(millis) {
            (*of, *value) = (Some(millis), HeaderValue::from(millis));
        }
        value.clone()
    });
    headers.insert(HEDDLE_DEADLINE, value);
}

/// Tells the next proxy how often this request was tried, this time included.
pub fn set_attempt(headers: &mut HeaderMap, number: u32) {
    // Nearly always it is the first.
    let number = if number == 1 { HeaderValue::from_static("1") } else { HeaderValue::from(number) };
    headers.insert(HEDDLE_ATTEMPT, number);
}

/// What a response says about trying again. What cannot be understood means "not".
pub fn pushback(headers: &HeaderMap, now: SystemTime) -> Option<Pushback> {
    if let Some(value) = headers.get(GRPC_RETRY_PUSHBACK_MS) {
        let after = number(value).map(Duration::from_millis);
        return Some(after.map_or(Pushback::Never, Pushback::After));
    }
    let value = headers.get(RETRY_AFTER)?;
    let after = number(value).map(Duration::from_secs).or_else(|| {
        let date = jiff::fmt::rfc2822::parse(value.to_str().ok()?).ok()?;
        Some(SystemTime::from(date.timestamp()).duration_since(now).unwrap_or_default())
    });
    Some(after.map_or(Pushback::Never, Pushback::After))
}

/// Digits only: no sign, no spaces.
fn number(value: &HeaderValue) -> Option<u64> {
    let value = value.to_str().ok()?;
    value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok())?
}

/// At most 8 digits and a unit (gRPC over HTTP/2).
fn grpc_timeout(value: &HeaderValue) -> Option<Duration> {
    let value = value.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(n * 3600)),
        "M" => Some(Duration::from_secs(n * 60)),
        "S" => Some(Duration::from_secs(n)),
        "m" => Some(Duration::from_millis(n)),
        "u" => Some(Duration::from_micros(n)),
        "n" => Some(Duration::from_nanos(n)),
        _ => None,
    }
}
