//! A scripted body and what is settled at its end.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, task::Poll, time::SystemTime};

use bytes::Bytes;
use futures_util::FutureExt;
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::time::{Duration, Instant, sleep};
use tokio_test::{assert_pending, assert_ready, task::spawn};

use super::{Body, BodyError, Expect, Kind, Replay};
use crate::{
    cluster::limit::Limit,
    exchange::{Exchange, Sink},
    outcome::{Direction, Error, ErrorKind, Outcome, RequestOutcome},
    snapshot::Limits,
    timer::Timers,
    trace_context::{Sampler, TraceContext},
};

/// Frames in order; then pending for ever, or the end.
pub(super) struct Scripted {
    pub(super) frames: VecDeque<Frame<Bytes>>,
    pub(super) ends: bool,
    /// Whether its length is told beforehand.
    pub(super) told: bool,
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

    pub(super) fn size_hint(&self) -> SizeHint {
        let length = self.frames.iter().filter_map(Frame::data_ref).map(|data| data.len() as u64).sum();
        if self.told { SizeHint::with_exact(length) } else { SizeHint::default() }
    }
}

/// One whose length is told.
fn told(pieces: &[&'static str]) -> Body {
    let frames = pieces.iter().map(|piece| Frame::data(Bytes::from_static(piece.as_bytes()))).collect();
    Kind::Test(Scripted { frames, ends: true, told: true }).into()
}

fn exchange() -> (Rc<Exchange>, Rc<RefCell<Vec<Outcome>>>) {
    let outcomes: Rc<RefCell<Vec<Outcome>>> = Rc::default();
    let noted = outcomes.clone();
    let sink: Sink = Rc::new(move |outcome| noted.borrow_mut().push(outcome));
    let trace = TraceContext::extract(&HeaderMap::new(), &Sampler::default(), &mut rand::rng());
    let line = (Version::HTTP_11, Method::GET, "/".parse().unwrap());
    let peer = "127.0.0.1:1".parse().unwrap();
    let outcome = RequestOutcome::new(Direction::Outbound, line, peer, SystemTime::UNIX_EPOCH, trace);
    (Exchange::begin(outcome, &sink), outcomes)
}

fn only(outcomes: &RefCell<Vec<Outcome>>) -> Box<RequestOutcome> {
    let mut outcomes = outcomes.borrow_mut();
    assert_eq!(outcomes.len(), 1);
    let Outcome::Request(outcome) = outcomes.remove(0) else { panic!("a request") };
    outcome
}

fn text(body: Result<http_body_util::Collected<Bytes>, BodyError>) -> String {
    String::from_utf8(body.unwrap().to_bytes().into()).unwrap()
}

#[tokio::test]
async fn whatever_becomes_of_a_response_is_put_on_record_once() {
    let limit = Limit::new(Limits { max_connections: 0, max_requests: 1, max_pending: 0 });
    type Case = (&'static str, Body, Option<ErrorKind>, u64);
    let cases: [Case; 5] = [
        ("read to its end", Body::scripted(&["one", "two"], true), None, 6),
        ("without bytes, and not even read", Body::empty(), None, 0),
        ("made here", Body::from(Bytes::from_static(b"text")), None, 4),
        ("dropped in the middle", Body::scripted(&["one"], false), Some(ErrorKind::ClientGone), 3),
        ("dropped at once", Body::scripted(&[], false), Some(ErrorKind::ClientGone), 0),
    ];
    for (what, mut body, error, bytes) in cases {
        let (exchange, outcomes) = exchange();
        exchange.note(|outcome| outcome.status = Some(StatusCode::OK));
        body.settle().exchange = Some(exchange);
        body.settle().permit = limit.request();
        while let Some(Some(Ok(_))) = {
            let mut next = spawn(body.frame());
            match next.poll() {
                Poll::Ready(frame) => Some(frame),
                Poll::Pending => None,
            }
        } {}
        drop(body);
        let outcome = only(&outcomes);
        assert_eq!(outcome.error.as_ref().map(|error| error.kind), error, "{what}");
        assert_eq!(outcome.response_bytes, bytes, "{what}");
        assert_eq!(limit.in_use()[1], 0, "{what}");
    }
}

#[tokio::test]
async fn a_response_that_ends_with_its_last_byte_is_settled_then() {
    let (exchange, outcomes) = exchange();
    let mut body = Body::scripted(&["all"], true);
    body.settle().exchange = Some(exchange);
    body.frame().await.unwrap().unwrap();
    // hyper asks no further, and may keep the body for a while.
    assert!(body.is_end_stream());
    assert_eq!(only(&outcomes).response_bytes, 3);
    drop(body);
    assert!(outcomes.borrow().is_empty());
}

#[tokio::test]
async fn trailers_tell_the_status_of_a_call() {
    let (exchange, outcomes) = exchange();
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("14"))]);
    let frames = VecDeque::from([Frame::data(Bytes::from_static(b"x")), Frame::trailers(trailers)]);
    let mut body = Body::from(Kind::Test(Scripted { frames, ends: true, told: false }));
    body.settle().exchange = Some(exchange);
    body.collect().await.unwrap();
    assert_eq!(only(&outcomes).grpc_status, Some(14));
}

#[test]
fn a_request_that_nobody_finished_was_given_up_by_its_caller() {
    let (exchange, outcomes) = exchange();
    let other = exchange.clone();
    drop(exchange);
    assert!(outcomes.borrow().is_empty());
    drop(other);
    assert_eq!(only(&outcomes).error.unwrap().kind, ErrorKind::ClientGone);
}

#[tokio::test]
async fn what_was_read_ahead_is_neither_lost_nor_counted_twice() {
    let (exchange, outcomes) = exchange();
    let mut body = told(&["first", "second"]);
    body.settle().exchange = Some(exchange.clone());
    drop(exchange);
    body.gather().await;
    assert_eq!(body.size_hint().exact(), Some(11));
    assert!(!body.is_end_stream());
    assert_eq!(text(body.collect().await), "firstsecond");
    assert_eq!(only(&outcomes).response_bytes, 11);

    let mut only_one = told(&["all"]);
    only_one.gather().await;
    assert!(!only_one.is_end_stream(), "the frame that was read ahead is still to come");
    assert_eq!(text(only_one.collect().await), "all");
}

#[tokio::test]
async fn the_head_of_a_stream_does_not_wait() {
    let mut stream = Body::scripted(&[], false);
    assert!(stream.gather().now_or_never().is_some());
}

#[tokio::test]
async fn an_interrupt_ends_a_response() {
    let (exchange, outcomes) = exchange();
    let mut body = Body::scripted(&[], false);
    body.settle().exchange = Some(exchange.clone());
    let mut frame = spawn(async move { body.frame().await });
    assert_pending!(frame.poll());
    exchange.interrupt(Error::new(ErrorKind::Denied, "no longer"));
    assert!(frame.is_woken());
    // On record at once; but the server first gets a turn to write what came before.
    assert_pending!(frame.poll());
    assert_eq!(only(&outcomes).error.unwrap().kind, ErrorKind::Denied);
    assert!(frame.is_woken());
    assert!(matches!(assert_ready!(frame.poll()), Some(Err(BodyError::GivenUp(_)))));
}

#[tokio::test(start_paused = true)]
async fn a_response_that_never_runs_dry_ends_all_the_same() {
    let endless = || Body::scripted(&["more"; 100], false);
    let (exchange, outcomes) = exchange();
    let mut body = endless();
    body.settle().exchange = Some(exchange.clone());
    body.frame().await.unwrap().unwrap();
    exchange.interrupt(Error::new(ErrorKind::Denied, "no longer"));
    assert!(matches!(body.frame().await, Some(Err(BodyError::GivenUp(_)))));
    assert_eq!(only(&outcomes).error.unwrap().kind, ErrorKind::Denied);

    let (exchange, outcomes) = self::exchange();
    let mut deadline = Timers::default().until(Instant::now() + Duration::from_secs(1));
    // As it was waited for before the response came.
    assert_pending!(spawn(()).enter(|cx, _| deadline.poll(cx)));
    let mut body = endless();
    body.settle().exchange = Some(exchange);
    body.settle().deadline = Some((deadline, ErrorKind::RequestTimeout));
    body.frame().await.unwrap().unwrap();
    sleep(Duration::from_millis(1001)).await;
    assert!(matches!(body.frame().await, Some(Err(BodyError::GivenUp(_)))));
    assert_eq!(only(&outcomes).error.unwrap().kind, ErrorKind::RequestTimeout);
}

#[tokio::test]
async fn a_replay_begins_anew_with_what_was_read() {
    let replay = Replay::new(Body::scripted(&["one", "two", "three"], true), 100);
    let mut first = replay.reading();
    first.frame().await.unwrap().unwrap();
    first.frame().await.unwrap().unwrap();
    assert!(replay.is_replayable());
    let second = replay.reading();
    assert!(matches!(first.frame().await, Some(Err(BodyError::Superseded))), "the first is cut off");
    assert_eq!(text(second.collect().await), "onetwothree");
    let third = replay.reading();
    assert!(!third.is_end_stream());
    assert_eq!(text(third.collect().await), "onetwothree");
}

/// A request's, of a length that is told; nothing has come of it.
fn uploaded() -> (Body, Rc<Exchange>) {
    let (exchange, _) = exchange();
    let body = Body::from(Kind::Test(Scripted { frames: VecDeque::new(), ends: false, told: true }));
    let limits = crate::config::Limits { body_timeout: Duration::from_secs(60), ..Default::default() };
    (body.counted(&exchange, &limits), exchange)
}

fn comes(body: &mut Body, piece: &'static [u8]) {
    let Kind::Test(scripted) = &mut body.kind else { panic!("scripted") };
    scripted.frames.push_back(Frame::data(Bytes::from_static(piece)));
}

#[tokio::test(start_paused = true)]
async fn only_the_time_in_which_a_request_is_waited_for_counts() {
    let (mut body, _exchange) = uploaded();
    for waits in [0, 40, 19] {
        let mut frame = spawn(body.frame());
        assert_pending!(frame.poll());
        sleep(Duration::from_secs(waits)).await;
        drop(frame);
        comes(&mut body, &[0; 300]);
        body.frame().await.unwrap().unwrap();
        // The app takes nothing.
        sleep(Duration::from_secs(600)).await;
    }
    // A KiB has not come in 59 s.
    let mut frame = spawn(body.frame());
    assert_pending!(frame.poll());
    sleep(Duration::from_millis(999)).await;
    assert_pending!(frame.poll());
    sleep(Duration::from_millis(2)).await;
    assert!(
        matches!(assert_ready!(frame.poll()), Some(Err(BodyError::GivenUp(error))) if error.kind == ErrorKind::BodyTimeout)
    );
    drop(frame);

    // It has: the time begins anew.
    let (mut body, _exchange) = uploaded();
    for _ in 0..3 {
        let mut frame = spawn(body.frame());
        assert_pending!(frame.poll());
        sleep(Duration::from_secs(59)).await;
        assert_pending!(frame.poll());
        drop(frame);
        comes(&mut body, &[0; 1024]);
        body.frame().await.unwrap().unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn between_two_tries_nobody_waits_for_a_request() {
    let (body, _exchange) = uploaded();
    let replay = Replay::new(body, 100);
    let mut first = replay.reading();
    assert_pending!(spawn(first.frame()).poll());
    drop(first);
    let mut second = replay.reading();
    sleep(Duration::from_secs(70)).await;
    let mut frame = spawn(second.frame());
    assert_pending!(frame.poll());
    sleep(Duration::from_secs(59)).await;
    assert_pending!(frame.poll());
    sleep(Duration::from_secs(2)).await;
    assert!(matches!(assert_ready!(frame.poll()), Some(Err(BodyError::GivenUp(_)))));
}

#[tokio::test]
async fn trailers_are_replayed_too() {
    let trailers = HeaderMap::from_iter([("x".parse().unwrap(), HeaderValue::from_static("y"))]);
    let frames = VecDeque::from([Frame::data(Bytes::from_static(b"x")), Frame::trailers(trailers)]);
    let replay = Replay::new(Body::from(Kind::Test(Scripted { frames, ends: true, told: false })), 100);
    for _ in 0..2 {
        let body = replay.reading().collect().await.unwrap();
        assert_eq!(body.trailers().unwrap()["x"], "y");
        assert_eq!(body.to_bytes(), "x");
    }
}

#[tokio::test]
async fn what_is_too_large_is_not_kept_and_still_passes() {
    let replay = Replay::new(Body::scripted(&["one", "two", "three"], true), 7);
    let mut body = replay.reading();
    body.frame().await.unwrap().unwrap();
    body.frame().await.unwrap().unwrap();
    assert!(replay.is_replayable());
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "three");
    assert!(!replay.is_replayable());
    assert!(body.frame().await.is_none());
    // Known beforehand: it may be sent again as long as nothing was read of it.
    let replay = Replay::new(Body::from(Bytes::from_static(b"12345678")), 7);
    drop(replay.reading());
    assert!(replay.is_replayable());
    let mut body = replay.reading();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "12345678");
    assert!(!replay.is_replayable());
    assert!(Replay::new(Body::empty(), 0).is_replayable());
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_continue_waits_no_longer_than_that() {
    let expect = Expect::default();
    let mut request = http::Request::new(());
    expect.listen(&mut request);
    let body = Body::from(Bytes::from_static(b"x")).expect(expect);
    let mut all = spawn(body.collect());
    assert_pending!(all.poll());
    sleep(Duration::from_millis(999)).await;
    assert_pending!(all.poll());
    sleep(Duration::from_millis(2)).await;
    assert_eq!(text(assert_ready!(all.poll())), "x");
}
