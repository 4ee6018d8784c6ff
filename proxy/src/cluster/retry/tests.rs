use rand::{SeedableRng, rngs::StdRng};

use super::*;

fn policy() -> RetryPolicy {
    RetryPolicy {
        max_retries: 2,
        statuses: vec![StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE],
        grpc_statuses: vec![14],
        on_connect_failure: true,
        on_reset: true,
        on_refused_stream: true,
        backoff_base: Duration::from_millis(25),
        backoff_max: Duration::from_millis(250),
        replay_bytes: 65_536,
        budget_percent: 20,
        budget_min_per_second: 10,
        methods: Vec::new(),
    }
}

fn answered(status: u16) -> TryResult<'static> {
    let status = StatusCode::from_u16(status).unwrap();
    TryResult::Answered { status, grpc_status: None, never_sent: false, pushback: None }
}

fn ask<'a>(policy: &'a RetryPolicy, method: &'a Method, result: TryResult<'a>) -> Asked<'a> {
    Asked { policy, method, replayable: true, retries: 0, result, deadline: None }
}

fn decided(asked: &Asked<'_>) -> Result<Reason, Refusal> {
    let now = Instant::now();
    let budget = Budget::new(20, 10, now);
    decide(asked, &budget, now, &mut StdRng::seed_from_u64(1)).map(|(_, reason)| reason)
}

#[tokio::test(start_paused = true)]
async fn only_idempotent_methods_unless_never_sent() {
    let policy = policy();
    let sent = Error::new(ErrorKind::UpstreamReset, "").after_send();
    let unsent = Error::new(ErrorKind::UpstreamReset, "");
    let refused = Error::new(ErrorKind::ConnectFailed, "");
    for method in ["GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"] {
        let method = method.parse().unwrap();
        assert_eq!(decided(&ask(&policy, &method, answered(503))), Ok(Reason::Status));
        assert_eq!(decided(&ask(&policy, &method, TryResult::Failed(&sent))), Ok(Reason::Reset));
    }
    for method in ["POST", "PATCH", "CONNECT", "PROPFIND", "get"] {
        let method: Method = method.parse().unwrap();
        assert_eq!(decided(&ask(&policy, &method, answered(503))), Err(Refusal::Method));
        assert_eq!(decided(&ask(&policy, &method, TryResult::Failed(&sent))), Err(Refusal::Method));
        assert_eq!(decided(&ask(&policy, &method, TryResult::Failed(&unsent))), Ok(Reason::Reset));
        assert_eq!(decided(&ask(&policy, &method, TryResult::Failed(&refused))), Ok(Reason::ConnectFailure));
        let draining = TryResult::Answered {
            status: StatusCode::SERVICE_UNAVAILABLE,
            grpc_status: None,
            never_sent: true,
            pushback: None,
        };
        assert_eq!(decided(&ask(&policy, &method, draining)), Ok(Reason::Refused));
        let named = RetryPolicy { methods: vec![method.clone()], ..policy.clone() };
        assert_eq!(decided(&ask(&named, &method, answered(503))), Ok(Reason::Status));
    }
}

#[tokio::test(start_paused = true)]
async fn conditions_are_the_policys() {
    let all = policy();
    let none = RetryPolicy { on_connect_failure: false, on_reset: false, on_refused_stream: false, ..policy() };
    for (kind, reason) in [
        (ErrorKind::ConnectFailed, Reason::ConnectFailure),
        (ErrorKind::ConnectTimeout, Reason::ConnectFailure),
        (ErrorKind::TlsFailed, Reason::ConnectFailure),
        (ErrorKind::UpstreamReset, Reason::Reset),
        (ErrorKind::UpstreamRefused, Reason::Refused),
    ] {
        let error = Error::new(kind, "");
        assert_eq!(decided(&ask(&all, &Method::GET, TryResult::Failed(&error))), Ok(reason));
        assert_eq!(decided(&ask(&none, &Method::GET, TryResult::Failed(&error))), Err(Refusal::NotRetryable));
    }
    for kind in ErrorKind::ALL {
        let error = Error::new(*kind, "");
        if *kind != ErrorKind::PerTryTimeout {
            assert!(decided(&ask(&none, &Method::GET, TryResult::Failed(&error))).is_err(), "{kind:?}");
        }
    }
    for status in [200, 404, 429, 500, 504] {
        assert_eq!(decided(&ask(&all, &Method::GET, answered(status))), Err(Refusal::NotRetryable));
    }
    for (grpc_status, expected) in
        [(14, Ok(Reason::GrpcStatus)), (13, Err(Refusal::NotRetryable)), (0, Err(Refusal::NotRetryable))]
    {
        let result = TryResult::Answered {
            status: StatusCode::OK,
            grpc_status: Some(grpc_status),
            never_sent: false,
            pushback: None,
        };
        let named = RetryPolicy { methods: vec![Method::POST], ..policy() };
        assert_eq!(decided(&ask(&named, &Method::POST, result)), expected);
        if expected.is_ok() {
            assert_eq!(decided(&ask(&all, &Method::POST, result)), Err(Refusal::Method), "gRPC calls are POSTs");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_body_and_deadline() {
    let policy = policy();
    let asked = ask(&policy, &Method::GET, answered(503));
    assert_eq!(decided(&Asked { retries: 1, ..asked }), Ok(Reason::Status));
    assert_eq!(decided(&Asked { retries: 2, ..asked }), Err(Refusal::Attempts));
    assert_eq!(decided(&Asked { replayable: false, ..asked }), Err(Refusal::Body));
    assert_eq!(decided(&Asked { deadline: Some(Instant::now()), ..asked }), Err(Refusal::Deadline));
    let later = Instant::now() + Duration::from_secs(1);
    assert_eq!(decided(&Asked { deadline: Some(later), ..asked }), Ok(Reason::Status));
    let unsent = Error::new(ErrorKind::ConnectFailed, "");
    let asked = Asked { replayable: false, ..ask(&policy, &Method::POST, TryResult::Failed(&unsent)) };
    assert_eq!(decided(&asked), Err(Refusal::Body), "of a body that is gone nothing can be sent");
}

#[tokio::test(start_paused = true)]
async fn servers_may_push_back() {
    let policy = policy();
    let pushed = |pushback| TryResult::Answered {
        status: StatusCode::SERVICE_UNAVAILABLE,
        grpc_status: None,
        never_sent: false,
        pushback: Some(pushback),
    };
    let never = pushed(Pushback::Never);
    assert_eq!(decided(&ask(&policy, &Method::GET, never)), Err(Refusal::Pushback));
    let long = pushed(Pushback::After(Duration::from_secs(1)));
    assert_eq!(decided(&ask(&policy, &Method::GET, long)), Err(Refusal::Pushback));
    let now = Instant::now();
    let short = pushed(Pushback::After(Duration::from_millis(100)));
    let budget = Budget::new(20, 10, now);
    let (pause, _) = decide(&ask(&policy, &Method::GET, short), &budget, now, &mut StdRng::seed_from_u64(1)).unwrap();
    assert!(pause >= Duration::from_millis(100));
}

#[tokio::test(start_paused = true)]
async fn the_budget_pays_only_for_what_is_made() {
    let policy = policy();
    let now = Instant::now();
    let mut rng = StdRng::seed_from_u64(1);
    let budget = Budget::new(0, 1, now);
    for _ in 0..10 {
        let post = ask(&policy, &Method::POST, answered(503));
        assert_eq!(decide(&post, &budget, now, &mut rng), Err(Refusal::Method));
        let late = Asked { deadline: Some(now), ..ask(&policy, &Method::GET, answered(503)) };
        assert_eq!(decide(&late, &budget, now, &mut rng), Err(Refusal::Deadline));
    }
    let get = ask(&policy, &Method::GET, answered(503));
    assert!(decide(&get, &budget, now, &mut rng).is_ok());
    assert_eq!(decide(&get, &budget, now, &mut rng), Err(Refusal::Budget));
}

#[test]
fn pauses_double_up_to_the_longest_with_full_jitter() {
    let policy = policy();
    let mut rng = StdRng::seed_from_u64(1);
    for (retries, longest) in [(0, 25), (1, 50), (2, 100), (3, 200), (4, 250), (40, 250)] {
        let longest = Duration::from_millis(longest);
        let pauses: Vec<_> = (0..1000).map(|_| backoff(&policy, retries, &mut rng)).collect();
        assert!(pauses.iter().all(|pause| *pause <= longest));
        assert!(pauses.iter().any(|pause| *pause > longest.mul_f64(0.9)));
        assert!(pauses.iter().any(|pause| *pause < longest.mul_f64(0.1)));
    }
}
