//! Flow control of HTTP/2, both ways and on both sides.
//!
//! What a stream may have on its way is what it can carry in one round trip, so far ends get larger windows: sized by
//! how long they took to answer when the connection was made. A connection's window covers all its streams', so that
//! streams whose readers are slow never hold up the others; and as it is what somebody else may have us keep, it has one
//! bound, near or far. So a connection to a far end carries fewer streams, and there are more connections.

use tokio::time::Duration;

use crate::connect::MAX_STREAMS;

/// Of a stream, unless the other end is far: 25 MB/s at 10 ms.
const STREAM: u32 = 256 << 10;
/// Up to so far away, that is.
const NEAR: Duration = Duration::from_millis(10);
/// Of a stream to the farthest: 25 MB/s at 80 ms.
const LARGEST: u32 = 2 << 20;
/// Of a connection at most.
const CONNECTION: u32 = STREAM * MAX_STREAMS as u32;
/// What waits to be sent on a stream, at most.
const SEND_BUFFER: usize = 64 << 10;

/// What one side of a connection says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Windows {
    /// Of each stream, in bytes.
    pub(crate) stream: u32,
    /// Of all together, in bytes.
    pub(crate) connection: u32,
    /// How many streams there may be.
    pub(crate) streams: u32,
    /// What waits to be sent on a stream, in bytes: no more than 8 MiB together, as long as each has one frame.
    pub(crate) send_buffer: usize,
}

impl Windows {
    /// For so many streams at most, and an end that is so far `away` (a round trip).
    pub(crate) fn new(streams: u32, away: Duration) -> Self {
        let streams = streams.max(1);
        let near = (CONNECTION / streams).clamp(1, STREAM);
        let (stream, streams) = if away <= NEAR {
            (near, streams)
        } else {
            let wanted = u128::from(STREAM) * away.as_micros() / NEAR.as_micros();
            let wanted = u32::try_from(wanted).unwrap_or(LARGEST).min(LARGEST);
            (wanted, streams.min(CONNECTION / wanted))
        };
        let connection = stream.saturating_mul(streams).min(CONNECTION);
        let send_buffer = ((8 << 20) / streams as usize).clamp(16 << 10, SEND_BUFFER);
        Self { stream, connection, streams, send_buffer }
    }

    /// For a connection that this proxy makes.
    pub(crate) fn dialled(away: Duration) -> Self {
        Self::new(MAX_STREAMS as u32, away)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_connection_may_keep_is_bounded() {
        for streams in [1, 10, 100, 200, 1000, 100_000] {
            for away in [0, 1, 10, 11, 20, 80, 100, 1000, 1_000_000] {
                let of = Windows::new(streams, Duration::from_millis(away));
                assert!((1..=CONNECTION).contains(&of.connection), "{of:?}");
                assert!((1..=streams).contains(&of.streams), "{of:?}");
                // However slow readers are, they hold up nobody else.
                let together = u64::from(of.stream) * u64::from(of.streams);
                assert!(u64::from(of.connection) >= together || of.stream == 1, "{of:?}");
                assert!((16 << 10..=64 << 10).contains(&of.send_buffer), "{of:?}");
                assert!(of.send_buffer * of.streams.min(512) as usize <= 8 << 20, "{of:?}");
            }
        }
    }

    #[test]
    fn the_farther_the_more_is_on_its_way() {
        let of = |away| Windows::dialled(Duration::from_millis(away));
        assert_eq!((of(0).stream, of(0).streams), (256 << 10, 100));
        assert_eq!(of(10), of(0));
        assert_eq!((of(20).stream, of(20).streams), (512 << 10, 50));
        assert_eq!((of(100).stream, of(100).streams), (2 << 20, 12));
        assert_eq!(of(60_000), of(100));
    }
}
