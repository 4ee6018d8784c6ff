use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Response, Version};
use http_body_util::BodyExt;
use serde_json::json;
use tokio::net::TcpListener;

use super::*;
use crate::testing::{app, run};

fn asking(probes: Value) -> Asking {
    // As the process does at its start.
    let _ = rustls::crypto::CryptoProvider::install_default((*heddle_certs::tls::provider()).clone());
    Asking::new(probes.to_string().parse().unwrap(), None)
}

fn get(path: &str) -> Request<()> {
    Request::get(path).body(()).unwrap()
}

async fn answer(asking: &Asking, path: &str) -> (u16, String) {
    let reply = asking.asked(&get(path)).unwrap().answer().await;
    let status = reply.status().as_u16();
    (status, String::from_utf8(reply.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap())
}

fn plain(status: u16, text: &'static str) -> Response<app::AppBody> {
    Response::builder().status(status).body(app::text(text)).unwrap()
}

#[test]
fn what_is_asked_is_read_or_refused() {
    let text = r#"{"app/liveness":{"httpGet":{"path":"ok?a=b","scheme":"HTTPS","port":"web",
        "httpHeaders":[{"name":"Host","value":"h"}]},"port":8443,"timeoutSeconds":3},
        "app/readiness":{"grpc":{"port":9,"service":"s"},"port":9,"timeoutSeconds":90}}"#;
    let probes: Probes = text.parse().unwrap();
    let mut headers = HeaderMap::new();
    headers.insert("host", HeaderValue::from_static("h"));
    let http = Action::Http { https: true, path: "/ok?a=b".to_owned(), headers };
    let timeout = Duration::from_secs(3);
    assert_eq!(probes.0["app/liveness"], Probe { action: http, port: 8443, timeout });
    assert_eq!(probes.0["app/readiness"].timeout, Duration::from_secs(29));
    for (wrong, says) in [
        ("{", "write JSON such as"),
        (r#"{"a":{"port":1}}"#, "a: write httpGet, tcpSocket or grpc"),
        (r#"{"a":{"tcpSocket":{},"port":0}}"#, "a: port: write a port"),
        (r#"{"a":{"tcpSocket":{},"port":1,"timeoutSeconds":"x"}}"#, "a: timeoutSeconds"),
        (r#"{"a":{"httpGet":{"httpHeaders":[{"name":"a b"}]},"port":1}}"#, "is no header"),
    ] {
        let said = wrong.parse::<Probes>().unwrap_err();
        assert!(said.contains(says), "{wrong}: {said}");
    }
}

#[test]
fn only_what_was_fixed_can_be_asked() {
    let asking = asking(json!({ "app/liveness": { "tcpSocket": {}, "port": 1 } }));
    assert!(asking.asked(&get("/probe/app/liveness")).is_some());
    for other in ["/probe/app/readiness", "/probe/app/liveness/", "/probe/", "/live", "/probe/app/liveness%2f"] {
        assert!(asking.asked(&get(other)).is_none(), "{other}");
    }
    assert!(asking.asked(&Request::post("/probe/app/liveness").body(()).unwrap()).is_none());
}

#[test]
fn http_is_asked_as_the_kubelet_does() {
    run(async {
        let app = app::http(|request| async move {
            let header = |name: &str| request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
            match request.uri().path() {
                "/ok" if header("x-a") == "b" && header("host") == "name" && request.uri().query() == Some("q=1") => {
                    plain(204, "")
                }
                "/here" => Response::builder().status(302).header("location", "/teapot").body(app::text("")).unwrap(),
                "/away" => {
                    Response::builder().status(302).header("location", "http://192.0.2.1/").body(app::text("")).unwrap()
                }
                "/agent" if header("user-agent").starts_with("kube-probe/") && header("accept") == "*/*" => {
                    plain(200, "")
                }
                "/round" => Response::builder().status(301).header("location", "/round").body(app::text("")).unwrap(),
                _ => plain(418, "no"),
            }
        })
        .await;
        let of = |path: &str| json!({ "httpGet": { "path": path }, "port": app.port() });
        let headers = json!([{ "name": "X-A", "value": "b" }, { "name": "Host", "value": "name" }]);
        let asking = asking(json!({
            "ok": { "httpGet": { "path": "/ok?q=1", "httpHeaders": headers }, "port": app.port() },
            "agent": of("/agent"), "no": of("/no"), "here": of("/here"), "away": of("/away"), "round": of("/round"),
        }));
        for (name, status, says) in [
            ("ok", 200, "/ok?q=1: 204 No Content"),
            ("agent", 200, ": 200 OK"),
            ("no", 503, ": 418 I'm a teapot"),
            ("here", 503, ": 418 I'm a teapot"),
            ("away", 200, ": 302 Found"),
            ("round", 503, "redirects too often"),
        ] {
            let (got, text) = answer(&asking, &format!("/probe/{name}")).await;
            assert_eq!(got, status, "{name}: {text}");
            assert!(text.contains(says), "{name}: {text}");
        }
    });
}

#[test]
fn tls_is_taken_with_any_certificate() {
    run(async {
        let own = rcgen::generate_simple_self_signed(["elsewhere".to_owned()]).unwrap();
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(own.signing_key.serialize_der().into());
        let config = rustls::ServerConfig::builder_with_provider(heddle_certs::tls::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![own.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let app = app::tcp(move |socket| {
            let acceptor = acceptor.clone();
            async move {
                use tokio::io::{AsyncReadExt, AsyncWriteExt};
                let Ok(mut tls) = acceptor.accept(socket).await else { return };
                let mut head = [0; 1024];
                let _ = tls.read(&mut head).await;
                let _ = tls.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
                let _ = tls.shutdown().await;
            }
        })
        .await;
        let asking = asking(json!({ "a": { "httpGet": { "path": "/", "scheme": "HTTPS" }, "port": app.port() } }));
        let (status, text) = answer(&asking, "/probe/a").await;
        assert_eq!(status, 200, "{text}");
    });
}

#[test]
fn tcp_is_asked_by_connecting() {
    run(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asking = asking(json!({ "a": { "tcpSocket": {}, "port": port } }));
        assert_eq!(answer(&asking, "/probe/a").await.0, 200);
        drop(listener);
        tokio::time::sleep(FRESH).await;
        let (status, text) = answer(&asking, "/probe/a").await;
        assert_eq!(status, 503);
        assert!(text.contains("accepts no connection: Connection refused"), "{text}");
    });
}

/// A gRPC app whose health is as the service's name says.
async fn grpc_app() -> SocketAddr {
    app::http(|request| async move {
        assert_eq!((request.version(), request.uri().path()), (Version::HTTP_2, "/grpc.health.v1.Health/Check"));
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let (status, message): (_, &[u8]) = match body.get(7..) {
            None | Some(b"") => ("0", &[0, 0, 0, 0, 2, 8, 1]),
            Some(b"down") => ("0", &[0, 0, 0, 0, 2, 8, 2]),
            Some(_) => ("5", &[]),
        };
        let response = Response::builder().header("content-type", "application/grpc");
        let trailers = [("grpc-status".parse().unwrap(), status.parse().unwrap())].into_iter().collect();
        let body = http_body_util::Full::new(bytes::Bytes::copy_from_slice(message));
        let body = body.with_trailers(async { Some(Ok(trailers)) });
        response.body(body.map_err(|never: std::convert::Infallible| match never {}).boxed_unsync()).unwrap()
    })
    .await
}

#[test]
fn grpc_health_is_asked() {
    run(async {
        let app = grpc_app().await;
        let of = |service: &str| json!({ "grpc": { "service": service }, "port": app.port() });
        let asking = asking(json!({ "whole": of(""), "down": of("down"), "unknown": of("other") }));
        assert_eq!(answer(&asking, "/probe/whole").await.0, 200);
        let (status, text) = answer(&asking, "/probe/down").await;
        assert!(status == 503 && text.contains("gRPC health of \"down\"") && text.contains("NOT_SERVING"), "{text}");
        let (status, text) = answer(&asking, "/probe/unknown").await;
        assert!(status == 503 && text.contains("NotFound"), "{text}");
    });
}

#[test]
fn who_does_not_answer_in_time_has_failed() {
    run(async {
        let app = app::tcp(|socket| async move {
            std::future::pending::<()>().await;
            drop(socket);
        })
        .await;
        let asking = asking(json!({ "a": { "httpGet": {}, "port": app.port(), "timeoutSeconds": 1 } }));
        let begun = Instant::now();
        let (status, text) = answer(&asking, "/probe/a").await;
        assert!(status == 503 && text.contains("did not answer within 1 s"), "{text}");
        assert!(begun.elapsed() < Duration::from_secs(5));
    });
}

#[test]
fn many_who_ask_cost_the_app_one_answer() {
    run(async {
        let count = Arc::new(AtomicUsize::new(0));
        let app = {
            let count = Arc::clone(&count);
            app::http(move |_| {
                count.fetch_add(1, Ordering::Relaxed);
                async { plain(200, "") }
            })
            .await
        };
        let asking = asking(json!({ "a": { "httpGet": {}, "port": app.port() } }));
        let all = (0..50).map(|_| answer(&asking, "/probe/a"));
        let answers = futures_util::future::join_all(all).await;
        assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
        assert_eq!(count.load(Ordering::Relaxed), 1);
        tokio::time::sleep(FRESH).await;
        assert_eq!(answer(&asking, "/probe/a").await.0, 200);
        assert_eq!(count.load(Ordering::Relaxed), 2);
    });
}
