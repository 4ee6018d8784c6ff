//! Each layer by itself, on a clock that is stepped.

use std::{cell::RefCell, pin::pin, rc::Rc, sync::Arc};

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body_util::BodyExt;
use tokio::time::advance;
use tokio_test::{assert_pending, assert_ready, task::spawn};
use tower::{Service, ServiceExt};
use tower_test::mock::{self, Handle, Mock, SendResponse};

use super::*;
use crate::{
    config::Limits,
    connect::Carried,
    discovery::Discovery,
    outcome::{Direction, Outcome, RequestOutcome},
    snapshot::{OutlierDetection, Protocol},
    testing::{Called, TestMesh, calling, cluster as name, traffic_policy},
    trace_context::Sampler,
};

type Answers<R> = Handle<R, Response<Body>>;
type Inner<R> = tower::util::MapErr<Mock<R, Response<Body>>, fn(tower::BoxError) -> Error>;

fn inner<R>() -> (Inner<R>, Answers<R>) {
    let (mock, mut handle) = mock::pair();
    handle.allow(1000);
    let as_ours: fn(tower::BoxError) -> Error = |error| *error.downcast().expect("ours");
    (mock.map_err(as_ours), handle)
}

async fn next<R>(handle: &mut Answers<R>) -> (R, SendResponse<Response<Body>>) {
    handle.next_request().await.expect("a request")
}

fn context(change: impl FnOnce(&mut Context)) -> (Rc<Context>, Rc<RefCell<Vec<Outcome>>>) {
    let outcomes: Rc<RefCell<Vec<Outcome>>> = Rc::default();
    let sink = outcomes.clone();
    let mut rng = rand::rng();
    let trace = TraceContext::extract(&http::HeaderMap::new(), &Sampler::default(), &mut rng);
    let line = (http::Version::HTTP_11, Method::GET, "/".parse().unwrap());
    let peer = "127.0.0.1:1".parse().unwrap();
    let outcome =
        RequestOutcome::new(Direction::Outbound, line, peer, std::time::SystemTime::UNIX_EPOCH, trace.clone());
    let sink: crate::exchange::Sink = Rc::new(move |outcome| sink.borrow_mut().push(outcome));
    let mut context = Context {
        exchange: Exchange::begin(outcome, &sink),
        trace,
        rules: Rules::new(None, &traffic_policy()),
        deadline: None,
        carried: Carried::Http1,
        expect: None,
        instance: None,
    };
    change(&mut context);
    (context.into(), outcomes)
}

fn a_call(change: impl FnOnce(&mut Context)) -> Call {
    let (context, _) = context(change);
    Call { request: Request::new(Body::empty()).into(), context }
}

fn retrying(change: impl FnOnce(&mut RetryPolicy)) -> impl FnOnce(&mut Context) {
    move |context| {
        let retry = Arc::make_mut(&mut context.rules.retry);
        retry.max_retries = 2;
        retry.statuses = vec![StatusCode::SERVICE_UNAVAILABLE];
        change(retry);
    }
}

fn status(status: u16) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::from_static(b"body")));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// A cluster with so many endpoints, that nobody connects to.
async fn a_cluster(endpoints: u16, change: impl FnOnce(&mut TrafficPolicy)) -> Rc<Cluster> {
    let addresses: Vec<_> = (1..=endpoints).map(|port| ([127, 0, 0, 1], port).into()).collect();
    let snapshot = calling(vec![Called::new("orders", Protocol::Http, &addresses).policy(change)]);
    let discovery = Discovery::fixed(snapshot, "shop");
    let identity = TestMesh::new().identity("web");
    let clusters =
        crate::cluster::Clusters::new(&discovery, &identity, Limits::default(), &Default::default(), Arc::new([]));
    clusters.find(&name("orders")).await.unwrap()
}

#[test]
fn admit_gives_a_place_until_the_response_is_over() {
    let limit = crate::cluster::limit::Limit::new(crate::snapshot::Limits {
        max_connections: 0,
        max_requests: 1,
        max_pending: 0,
    });
    let (inner, mut handle) = inner();
    let mut admit = Admit::new(inner, limit.clone());
    let mut first = spawn(admit.clone().oneshot(a_call(|_| {})));
    assert_pending!(first.poll());
    let error = tokio_test::block_on(admit.clone().oneshot(a_call(|_| {}))).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Overloaded);
    tokio_test::block_on(next(&mut handle)).1.send_response(status(200));
    let response = assert_ready!(first.poll()).unwrap();
    assert_eq!(limit.in_use()[1], 1, "the body is still to come");
    tokio_test::block_on(response.into_body().collect()).unwrap();
    assert_eq!(limit.in_use()[1], 0);
    // A request that is given up gives its place back too.
    assert_ready!(spawn(admit.ready()).poll()).unwrap();
    let given_up = admit.call(a_call(|_| {}));
    assert_eq!(limit.in_use()[1], 1);
    drop(given_up);
    assert_eq!(limit.in_use()[1], 0);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_what_waits_for_headers() {
    let (inner, mut handle) = inner();
    let at = Instant::now() + Duration::from_secs(1);
    let call = a_call(|context| context.deadline = Some((at, ErrorKind::RequestTimeout)));
    let exchange = call.context.exchange.clone();
    let id = exchange.begin_attempt(None, crate::trace_context::SpanId([1; 8]), Instant::now());
    let mut sent = spawn(Deadline::new(inner, Default::default()).oneshot(call));
    assert_pending!(sent.poll());
    let _unanswered = next(&mut handle).await;
    advance(Duration::from_millis(999)).await;
    assert_pending!(sent.poll());
    advance(Duration::from_millis(2)).await;
    let error = assert_ready!(sent.poll()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::RequestTimeout);
    assert!(!error.never_sent);
    assert!(exchange.attempt_failed(id).is_some());
}

#[tokio::test(start_paused = true)]
async fn a_deadline_ends_a_response_that_does_not_end() {
    let (inner, mut handle) = inner();
    let at = Instant::now() + Duration::from_secs(1);
    let call = a_call(|context| context.deadline = Some((at, ErrorKind::DeadlineExceeded)));
    let mut sent = spawn(Deadline::new(inner, Default::default()).oneshot(call));
    assert_pending!(sent.poll());
    next(&mut handle).await.1.send_response(Response::new(Body::scripted(&["one"], false)));
    let mut body = assert_ready!(sent.poll()).unwrap().into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "one");
    let error = body.frame().await.unwrap().unwrap_err();
    assert_eq!(at, Instant::now());
    assert!(matches!(error, crate::body::BodyError::GivenUp(error) if error.kind == ErrorKind::DeadlineExceeded));
}

#[tokio::test(start_paused = true)]
async fn a_try_has_its_own_time() {
    let (inner, mut handle) = inner();
    let cluster = a_cluster(1, |_| {}).await;
    let (context, _) = context(|context| context.rules.per_try_timeout = Some(Duration::from_millis(100)));
    let mut sent = spawn(TryTimeout::new(inner).oneshot(a_try(&cluster, context)));
    assert_pending!(sent.poll());
    let _unanswered = next(&mut handle).await;
    advance(Duration::from_millis(101)).await;
    let error = assert_ready!(sent.poll()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::PerTryTimeout);
    assert!(!error.never_sent, "it may have arrived");
}

fn a_try(cluster: &Cluster, context: Rc<Context>) -> Try {
    let picked = cluster.pick(None, &[], Instant::now()).unwrap();
    let pool = cluster.pool(picked.endpoint()).unwrap();
    let id = context.exchange.begin_attempt(None, context.trace.span_id(), Instant::now());
    let trace = context.trace.clone();
    Try { request: Request::new(Body::empty()).into(), context, id, number: 1, trace, picked: Rc::new(picked), pool }
}

#[tokio::test(start_paused = true)]
async fn retries_send_the_same_again_after_a_pause() {
    let (inner, mut handle) = inner();
    let cluster = a_cluster(1, |_| {}).await;
    let mut call = a_call(retrying(|_| {}));
    *call.request.body_mut() = Body::from(Bytes::from_static(b"sent"));
    call.request.headers_mut().insert("x", HeaderValue::from_static("y"));
    let mut sent = spawn(Retry::new(inner, cluster).oneshot(call));
    for answer in [Some(503), None, Some(200)] {
        for _ in 0..10 {
            assert_pending!(sent.poll());
            advance(Duration::from_millis(1)).await;
        }
        let (call, reply) = next(&mut handle).await;
        assert_eq!(call.request.headers()["x"], "y");
        assert_eq!(call.request.into_body().collect().await.unwrap().to_bytes(), "sent");
        match answer {
            Some(code) => reply.send_response(status(code)),
            None => reply.send_error(Error::new(ErrorKind::UpstreamReset, "x").after_send()),
        }
    }
    assert_eq!(assert_ready!(sent.poll()).unwrap().status(), 200);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_retried_says_why() {
    use crate::cluster::retry::Refusal;
    type Case = (fn(&mut RetryPolicy), Method, u16, Option<Refusal>);
    let cases: [Case; 4] = [
        (|_| {}, Method::POST, 503, Some(Refusal::Method)),
        (|_| {}, Method::GET, 500, None),
        (|retry| retry.max_retries = 1, Method::GET, 503, Some(Refusal::Attempts)),
        (
            |retry| {
                retry.budget_percent = 0;
                retry.budget_min_per_second = 0;
            },
            Method::GET,
            503,
            Some(Refusal::Budget),
        ),
    ];
    for (change, method, code, refusal) in cases {
        let (inner, mut handle) = inner();
        let cluster = a_cluster(1, |policy| change(Arc::make_mut(&mut policy.retry))).await;
        let mut call = a_call(retrying(change));
        *call.request.method_mut() = method;
        let exchange = call.context.exchange.clone();
        let mut sent = spawn(Retry::new(inner, cluster).oneshot(call));
        let response = loop {
            if let std::task::Poll::Ready(response) = sent.poll() {
                break response.unwrap();
            }
            if let Some((_, reply)) = pin!(handle.next_request()).now() {
                reply.send_response(status(code));
            }
            advance(Duration::from_millis(1)).await;
        };
        assert_eq!(response.status(), code);
        assert_eq!(exchange.read(|outcome| outcome.retry_refused).unwrap(), refusal);
    }
}

/// What a future has at once.
trait Now: Future {
    fn now(self: std::pin::Pin<&mut Self>) -> Self::Output;
}

impl<T, F: Future<Output = Option<T>>> Now for F {
    fn now(self: std::pin::Pin<&mut Self>) -> Option<T> {
        match self.poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(value) => value,
            std::task::Poll::Pending => None,
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_try_has_an_endpoint_of_its_own_and_a_span() {
    let (inner, mut handle) = inner::<Try>();
    let cluster = a_cluster(3, |_| {}).await;
    let (context, outcomes) = context(|_| {});
    let mut tried = Vec::new();
    for number in 1..=3 {
        let call = Call { request: Request::new(Body::empty()).into(), context: context.clone() };
        let mut sent = spawn(Pick::new(inner.clone(), cluster.clone()).oneshot(call));
        assert_pending!(sent.poll());
        let (this_try, reply) = next(&mut handle).await;
        assert_eq!(this_try.number, number);
        let address = this_try.picked.endpoint().address;
        assert!(!tried.contains(&address));
        tried.push(address);
        reply.send_error(Error::new(ErrorKind::ConnectFailed, "x"));
        assert_ready!(sent.poll()).unwrap_err();
    }
    drop((context, handle, inner));
    let outcomes = outcomes.borrow();
    let [Outcome::Request(outcome)] = &outcomes[..] else { panic!("{outcomes:?}") };
    assert_eq!(outcome.attempts.len(), 3);
    assert!(outcome.attempts.iter().all(|attempt| attempt.error.as_ref().unwrap().kind == ErrorKind::ConnectFailed));
}

#[tokio::test(start_paused = true)]
async fn what_tries_say_ejects_and_what_nobody_awaited_says_nothing() {
    let detection = OutlierDetection {
        consecutive_failures: 2,
        base_ejection: Duration::from_secs(10),
        max_ejection: Duration::from_secs(10),
        max_ejected_percent: 50,
    };
    let (inner, mut handle) = inner::<Try>();
    let cluster = a_cluster(2, |policy| policy.outlier = detection).await;
    let (base, _) = context(|_| {});
    let sick = ([127, 0, 0, 1], 1).into();
    // The caller goes away, again and again: no endpoint is to blame.
    for _ in 0..10 {
        let call = a_call(|_| {});
        let mut sent = spawn(Pick::new(inner.clone(), cluster.clone()).oneshot(call));
        assert_pending!(sent.poll());
        drop(next(&mut handle).await);
    }
    assert_eq!(cluster.balancer.borrow().counts().ejected, 0);
    // Time runs out: the one that was awaited is.
    for _ in 0..8 {
        let call = a_call(|context| context.rules = base.rules.clone());
        let exchange = call.context.exchange.clone();
        let mut sent = spawn(Pick::new(inner.clone(), cluster.clone()).oneshot(call));
        assert_pending!(sent.poll());
        let (this_try, reply) = next(&mut handle).await;
        if this_try.picked.endpoint().address == sick {
            exchange.fail_attempt(&Error::new(ErrorKind::RequestTimeout, "x").after_send());
            drop(sent);
        } else {
            reply.send_response(status(200));
            assert_ready!(sent.poll()).unwrap();
        }
    }
    assert_eq!(cluster.balancer.borrow().counts().ejected, 1);
}

#[test]
fn the_earlier_deadline_counts() {
    let now = tokio_test::block_on(async { Instant::now() });
    let rules = |timeout: Option<u64>| {
        let policy = TrafficPolicy { request_timeout: timeout.map(Duration::from_secs), ..traffic_policy() };
        Rules::new(None, &policy)
    };
    let of = |timeout, asked: Option<u64>| deadline(&rules(timeout), asked.map(Duration::from_secs), now);
    assert_eq!(of(None, None), None);
    assert_eq!(of(Some(5), None), Some((now + Duration::from_secs(5), ErrorKind::RequestTimeout)));
    assert_eq!(of(Some(5), Some(9)), Some((now + Duration::from_secs(5), ErrorKind::RequestTimeout)));
    assert_eq!(of(Some(5), Some(2)), Some((now + Duration::from_secs(2), ErrorKind::DeadlineExceeded)));
    assert_eq!(of(None, Some(2)), Some((now + Duration::from_secs(2), ErrorKind::DeadlineExceeded)));
    assert_eq!(deadline(&rules(None), Some(Duration::MAX), now), None);
}
