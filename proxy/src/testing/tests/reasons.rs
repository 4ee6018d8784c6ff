//! Every kind of error there is, provoked through real proxies: what the caller is told, what is on record, what
//! the log line and the metrics say.

mod provoke;

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header::CONTENT_TYPE};
use http_body_util::Empty;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::Duration,
};

use self::provoke::{Provoked, Way, provoke};
use crate::{
    outcome::{ErrorKind, Outcome, Row},
    telemetry::{Resource, Telemetry, TracingConfig, log_line},
    testing::{
        Called, Proxy, TestMesh, app,
        client::{Answer, get, get2, send1, send2},
        run_within, until,
    },
};

#[test]
fn every_refusal_and_failure_carries_its_reason() {
    for kind in ErrorKind::ALL {
        run_within(provoke::LONGEST, async move {
            let provoked = provoke(*kind).await;
            assert!(!provoked.ways.is_empty());
            for way in &provoked.ways {
                match ask(&provoked, *way).await {
                    Some(answer) => check_answer(*kind, *way, &answer),
                    None => assert!(way.is_silent(), "{kind:?} by {way:?}: nobody was told"),
                }
                check_record(*kind, *way, &provoked.by).await;
            }
        });
    }
}

/// What the caller is told; none: its connection was cut off, or it is gone itself.
async fn ask(provoked: &Provoked, way: Way) -> Option<Answer> {
    let Provoked { address, path, change, .. } = provoked;
    let request = |mut request: Request<Empty<Bytes>>| {
        change(&mut request);
        request
    };
    match way {
        Way::Http1 => Some(send1(*address, request(get(path))).await),
        Way::Http2 => Some(send2(*address, request(get2(path))).await),
        Way::Grpc => {
            let mut call = request(get2(path));
            call.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            Some(send2(*address, call).await)
        }
        Way::Raw(bytes) => Some(read_raw(*address, bytes).await),
        Way::CutOff(bytes) => {
            let mut socket = TcpStream::connect(*address).await.unwrap();
            // It may be cut off already.
            let _ = socket.write_all(bytes.as_bytes()).await;
            // Not an end of stream, which could be taken for an answer.
            assert!(socket.read_u8().await.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset));
            None
        }
        Way::Leave => {
            let asking = send1(*address, request(get(path)));
            assert!(tokio::time::timeout(Duration::from_millis(200), asking).await.is_err());
            None
        }
    }
}

async fn read_raw(address: SocketAddr, bytes: &str) -> Answer {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(bytes.as_bytes()).await.unwrap();
    let mut read = Vec::new();
    let _ = socket.read_to_end(&mut read).await;
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut response = httparse::Response::new(&mut headers);
    let Ok(httparse::Status::Complete(at)) = response.parse(&read) else { panic!("{bytes:?}: {read:?}") };
    let status = StatusCode::from_u16(response.code.unwrap()).unwrap();
    let headers: HeaderMap = response
        .headers
        .iter()
        .map(|header| (header.name.parse().unwrap(), HeaderValue::from_bytes(header.value).unwrap()))
        .collect::<Vec<(http::HeaderName, _)>>()
        .into_iter()
        .collect();
    Answer { status, headers, body: String::from_utf8(read[at..].to_vec()).unwrap() }
}

fn check_answer(kind: ErrorKind, way: Way, answer: &Answer) {
    let what = format!("{kind:?} by {way:?}: {answer:?}");
    let Row { reason, status, grpc_status, proxy_status, .. } = kind.row();
    let header = |name: &str| answer.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert_eq!(header("heddle-error"), reason, "{what}");
    let details = header("proxy-status").strip_prefix(&format!("heddle-proxy; error={proxy_status}; details=\""));
    assert!(details.is_some_and(|details| details.len() > 1 && details.ends_with('"')), "{what}");
    if matches!(way, Way::Grpc) {
        assert_eq!(answer.status, 200, "{what}");
        assert_eq!(header("content-type"), "application/grpc", "{what}");
        assert_eq!(header("grpc-status"), grpc_status.to_string(), "{what}");
        assert!(header("grpc-message").starts_with(&format!("heddle-proxy: {reason}: ")), "{what}");
        assert_eq!(answer.body, "", "{what}");
    } else {
        assert_eq!(answer.status, status, "{what}");
        assert!(answer.body.starts_with(&format!("heddle-proxy: {reason}: ")), "{what}");
    }
}

/// One outcome with this error, and what is made of it.
async fn check_record(kind: ErrorKind, way: Way, by: &Proxy) {
    let error = |outcome: &Outcome| match outcome {
        Outcome::Request(request) => request.error.clone(),
        Outcome::Connection(connection) => connection.error.clone(),
    };
    until("an error on record", || by.outcomes.borrow().iter().any(|outcome| error(outcome).is_some())).await;
    let outcomes = std::mem::take(&mut *by.outcomes.borrow_mut());
    let what = format!("{kind:?} by {way:?}: {outcomes:?}");
    let [outcome] = <[Outcome; 1]>::try_from(outcomes).unwrap_or_else(|_| panic!("more than one outcome: {what}"));
    assert_eq!(error(&outcome).unwrap().kind, kind, "{what}");

    let Row { reason, status, grpc_status, .. } = kind.row();
    let line: Value = serde_json::from_str(&log_line(&outcome)).unwrap();
    assert_eq!(line["error"]["reason"], reason, "{line}");
    assert!(!line["error"]["detail"].as_str().unwrap().is_empty(), "{line}");
    let direction = match &outcome {
        Outcome::Request(request) => {
            match way {
                Way::Grpc => assert_eq!(line["grpc_status"], grpc_status, "{line}"),
                // Nobody is left who could have got one.
                Way::Leave => assert_eq!(line["status"], Value::Null, "{line}"),
                _ => assert_eq!(line["status"], status.as_u16(), "{line}"),
            }
            request.direction
        }
        Outcome::Connection(connection) => connection.direction,
    };

    let telemetry = Telemetry::new(Resource::default(), &TracingConfig::default()).unwrap();
    telemetry.recorder().record(outcome);
    let (_, metrics) = telemetry.render(None);
    let counted = |name: &str, labels: &[String]| {
        metrics.lines().any(|line| {
            line.starts_with(name) && line.ends_with(" 1") && labels.iter().all(|label| line.contains(label.as_str()))
        })
    };
    let direction = format!("direction=\"{}\"", format!("{direction:?}").to_lowercase());
    let reason = format!("reason=\"{reason}\"");
    assert!(counted("heddle_errors_total{", &[direction, reason]), "{what}\n{metrics}");
}

/// What a peer says that has sent nothing to its app is tried again, whatever it is, and over another connection.
#[test]
fn a_request_on_a_connection_that_has_outlived_its_certificate_goes_again_on_a_new_one() {
    for way in [Way::Http1, Way::Http2, Way::Grpc] {
        run_within(provoke::LONGEST, async move {
            let mesh = TestMesh::new();
            let callee = mesh.sidecar("orders", crate::snapshot::Protocol::Detect, app::echo().await);
            let called = Called::new("orders", crate::snapshot::Protocol::Detect, &callee.addresses)
                .policy(|policy| policy.idle_timeout = Duration::from_secs(600))
                .retries(|retry| retry.max_retries = 1);
            let caller = provoke::behind_the_times(&mesh, called).await;
            // Never repeated if there were the slightest doubt.
            let provoked = Provoked::new(caller, &[way]).changing(|request| *request.method_mut() = http::Method::POST);
            let answer = ask(&provoked, way).await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.error()), (200, ""), "{answer:?}");
            provoke::outlive_certificate().await;
            provoked.by.outcomes.borrow_mut().clear();
            callee.outcomes.borrow_mut().clear();

            let answer = ask(&provoked, way).await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.error()), (200, ""), "{answer:?}");
            let tries =
                provoked.by.request().await.attempts.iter().map(|one| one.connect.is_some()).collect::<Vec<_>>();
            assert_eq!(tries, [false, true], "the second on a connection of its own");
            let inside = callee.requests(2).await;
            let refused = inside[0].error.as_ref().unwrap();
            assert_eq!((refused.kind, refused.never_sent), (ErrorKind::CertificateExpired, true));
            assert!(inside[0].attempts.is_empty() && inside[1].error.is_none());
            // The old one is not used a second time.
            ask(&provoked, way).await.unwrap();
            assert_eq!(provoked.by.request().await.attempts.len(), 1);
        });
    }
}
