//! Times as people read them.

use jiff::{SignedDuration, Timestamp};

/// How long ago an RFC 3339 time was: `5s`, `12m`, `3h`, `4d`; `-` when there is none.
pub(crate) fn age(then: Option<&str>, now: Timestamp) -> String {
    match then.and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(then) => short(now.duration_since(then)),
        None => "-".to_owned(),
    }
}

/// How long until an RFC 3339 time: `in 15h`, or `expired 3m ago`.
pub(crate) fn until(then: Option<&str>, now: Timestamp) -> String {
    match then.and_then(|text| text.parse::<Timestamp>().ok()) {
        Some(then) if then > now => format!("in {}", short(then.duration_since(now))),
        Some(then) => format!("expired {} ago", short(now.duration_since(then))),
        None => "-".to_owned(),
    }
}

/// The largest unit that fits, so that columns stay narrow; two of them where one says too little.
fn short(duration: SignedDuration) -> String {
    let seconds = duration.as_secs().max(0);
    match seconds {
        0..120 => format!("{seconds}s"),
        120..7_200 => format!("{}m", seconds / 60),
        7_200..172_800 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_and_expiries() {
        let now: Timestamp = "2026-08-01T12:00:00Z".parse().unwrap();
        for (then, text) in [
            ("2026-08-01T12:00:00Z", "0s"),
            ("2026-08-01T11:58:30Z", "90s"),
            ("2026-08-01T11:30:00Z", "30m"),
            ("2026-08-01T02:00:00Z", "10h"),
            ("2026-07-20T12:00:00Z", "12d"),
            ("2026-08-01T12:00:05Z", "0s"),
            ("yesterday", "-"),
        ] {
            assert_eq!(age(Some(then), now), text, "{then}");
        }
        assert_eq!(age(None, now), "-");
        assert_eq!(until(Some("2026-08-02T03:00:00Z"), now), "in 15h");
        assert_eq!(until(Some("2026-08-01T11:57:00Z"), now), "expired 3m ago");
    }
}
