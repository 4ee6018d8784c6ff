//! A scripted body and what is settled at its end.

use std::{collections::VecDeque, task::Poll};

use bytes::Bytes;
use http_body::Frame;

use super::BodyError;

/// Frames in order; then pending for ever, or the end.
pub(super) struct Scripted {
    pub(super) frames: VecDeque<Frame<Bytes>>,
    pub(super) ends: bool,
}

impl Scripted {
    pub(super) fn poll_frame(&mut self) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None if self.ends => Poll::Ready(None),
            None => Poll::Pending,
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.ends && self.frames.is_empty()
    }
}
