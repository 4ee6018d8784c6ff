//! How each kind of error comes about.

use std::{future::pending, net::SocketAddr, sync::Arc, time::SystemTime};

use bytes::Bytes;
use heddle_certs::{ManualClock, SystemClock};
use http::{HeaderValue, Request, Response};
use http_body_util::Empty;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Duration, advance, pause, resume},
};

use crate::{
    config::{DialName, Limits},
    identity::Identity,
    lifecycle::Stage,
    listener::Role,
    outcome::ErrorKind,
    snapshot::{
        Backend, HttpMatch, HttpRule, OutlierDetection, PathMatch, Protocol, ServiceName, Snapshot, TrafficPolicy,
    },
    testing::{
        Called, Proxy, Served, TestMesh, allow_all,
        app::{self, AppBody, text},
        calling,
        client::{get, get2, send1, send2},
        cluster, meshed, only, serving, spiffe_id,
    },
};

/// How a caller comes to know.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// A request.
    Http1,
    /// A request.
    Http2,
    /// A call.
    Grpc,
    /// These bytes, answered by HTTP/1.1.
    Raw(&'static str),
    /// After these bytes its connection is reset: it speaks nothing that a reason could be told in.
    CutOff(&'static str),
    /// Not at all: it goes away while the app is at work.
    Leave,
}

impl Way {
    pub(super) fn is_silent(self) -> bool {
        matches!(self, Self::CutOff(_) | Self::Leave)
    }
}

const HTTP: &[Way] = &[Way::Http1, Way::Http2, Way::Grpc];

/// A mesh in which whoever asks here ...
pub(super) struct Provoked {
    pub(super) address: SocketAddr,
    pub(super) ways: Vec<Way>,
    pub(super) path: &'static str,
    pub(super) change: fn(&mut Request<Empty<Bytes>>),
    /// ... is refused by this proxy.
    pub(super) by: Proxy,
    _others: Vec<Proxy>,
}

impl Provoked {
    pub(super) fn new(by: Proxy, ways: &[Way]) -> Self {
        let address = by.address();
        Self { address, ways: ways.to_vec(), path: "/", change: |_| {}, by, _others: Vec::new() }
    }

    /// Asked is another proxy, and refused by the first.
    fn through(mut self, other: Proxy) -> Self {
        self.address = other.address();
        self._others.push(other);
        self
    }

    pub(super) fn changing(self, change: fn(&mut Request<Empty<Bytes>>)) -> Self {
        Self { change, ..self }
    }
}

/// Makes a mesh in which this happens.
pub(super) async fn provoke(kind: ErrorKind) -> Provoked {
    let mesh = TestMesh::new();
    match kind {
        ErrorKind::BadRequest => {
            let mut provoked = Provoked { path: "/a/../b", ..Provoked::new(to_nobody(&mesh, |_| {}), HTTP) };
            // What hyper refuses by itself.
            provoked.ways.push(Way::Raw("GET / HTTP/1.1\r\nhost : orders.shop\r\n\r\n"));
            provoked
        }
        ErrorKind::HeadersTooLarge => {
            let limits = Limits { max_headers: 4, ..Limits::default() };
            let caller = mesh.proxy_with("web", calling(vec![orders(&[])]), &[upstream()], limits);
            let raw = concat!("GET / HTTP/1.1\r\nhost: a\r\n", "x: y\r\nx: y\r\nx: y\r\nx: y\r\n", "\r\n");
            Provoked::new(caller, &[Way::Raw(raw), Way::Http2, Way::Grpc]).changing(|request| {
                for _ in 0..5 {
                    request.headers_mut().append("x", HeaderValue::from_static("y"));
                }
            })
        }
        ErrorKind::HeaderTimeout => {
            let limits = Limits { header_timeout: Duration::from_millis(200), ..Limits::default() };
            let caller = mesh.proxy_with("web", calling(vec![orders(&[])]), &[upstream()], limits);
            Provoked::new(caller, &[Way::Raw("GET / HTTP/1.1\r\nhost: orders.shop\r\nx: ")])
        }
        ErrorKind::BodyTimeout => {
            let limits = Limits { body_timeout: Duration::from_millis(200), ..Limits::default() };
            let serving = serving("orders", vec![Served::new(80, Protocol::Detect, app::echo().await)], allow_all());
            let callee = mesh.proxy_with("orders", serving, &[Role::Inbound], limits);
            let caller = mesh.caller(vec![orders(&callee.addresses)]);
            let raw = "POST / HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 3\r\n\r\nab";
            Provoked::new(callee, &[Way::Raw(raw)]).through(caller)
        }
        ErrorKind::EgressDenied => {
            let mut snapshot = calling(Vec::new());
            Arc::make_mut(snapshot.mesh.as_mut().unwrap()).egress_allow = false;
            let elsewhere = Role::Upstream(DialName::new("elsewhere.example", 80).into());
            let caller = mesh.proxy("web", snapshot, &[elsewhere]);
            caller.no_service("elsewhere.example:80");
            Provoked::new(caller, HTTP)
        }
        ErrorKind::UnknownDestination => {
            let caller = to_nobody(&mesh, |_| {});
            caller.no_service("orders.shop:80");
            Provoked::new(caller, HTTP)
        }
        ErrorKind::DiscoveryTimeout => {
            let caller = to_nobody(&mesh, |_| {});
            caller.believe(Snapshot::default());
            Provoked::new(caller, HTTP)
        }
        ErrorKind::NotReady => {
            let caller = to_nobody(&mesh, |_| {});
            caller.believe(Snapshot::default());
            caller.no_service("orders.shop:80");
            Provoked::new(caller, HTTP)
        }
        ErrorKind::UnknownPort => {
            let caller = to_nobody(&mesh, |_| {});
            let mut snapshot = (*caller.worker.common.discovery.snapshot()).clone();
            Arc::make_mut(snapshot.services.values_mut().next().unwrap()).ports.clear();
            caller.believe(snapshot);
            Provoked::new(caller, HTTP)
        }
        ErrorKind::NoRoute => Provoked::new(routed(&mesh, "/other", None), HTTP),
        ErrorKind::NoBackend => Provoked::new(routed(&mesh, "/", Some("Service shop/gone does not exist")), HTTP),
        ErrorKind::NoEndpoints => Provoked::new(to_nobody(&mesh, |_| {}), HTTP),
        ErrorKind::CircuitOpen => {
            let outlier = OutlierDetection {
                consecutive_failures: 1,
                base_ejection: Duration::from_secs(3600),
                max_ejection: Duration::from_secs(3600),
                max_ejected_percent: 50,
            };
            let nobody = [app::nobody().await, app::nobody().await];
            let called = orders(&nobody).policy(|policy| policy.outlier = outlier);
            let caller = mesh.caller(vec![called]);
            assert_eq!(send1(caller.address(), get("/")).await.error(), "connect-failed");
            // Never more than half are ejected; the others go by themselves.
            let failed = caller.request().await.attempts[0].endpoint.clone().unwrap();
            let mut snapshot = (*caller.worker.common.discovery.snapshot()).clone();
            Arc::make_mut(snapshot.endpoints.values_mut().next().unwrap()).endpoints = vec![failed];
            caller.believe(snapshot);
            Provoked::new(caller, HTTP)
        }
        ErrorKind::Overloaded => Provoked::new(to_nobody(&mesh, |called| policy(called).limits.max_requests = 0), HTTP),
        ErrorKind::ConnectFailed => Provoked::new(mesh.caller(vec![orders(&[app::nobody().await])]), HTTP),
        ErrorKind::ConnectTimeout => {
            let silent = app::tcp(|socket| async move {
                let _socket = socket;
                pending::<()>().await;
            })
            .await;
            let called = orders(&[silent]).policy(|policy| policy.connect_timeout = Duration::from_millis(200));
            Provoked::new(mesh.caller(vec![called]), HTTP)
        }
        ErrorKind::TlsFailed => {
            let greets = app::tcp(|mut socket| async move {
                let _ = socket.write_all(b"220 this is no TLS\r\n").await;
                let _ = socket.read(&mut [0; 1024]).await;
            })
            .await;
            Provoked::new(mesh.caller(vec![orders(&[greets])]), HTTP)
        }
        ErrorKind::PeerIdentity => {
            let callee = mesh.sidecar("orders", Protocol::Detect, app::echo().await);
            let mut called = orders(&[]);
            let endpoint = meshed(callee.address(), "payments");
            assert_ne!(endpoint.identities, [spiffe_id("orders")]);
            called.endpoints.push(endpoint);
            let mut provoked = Provoked::new(mesh.caller(vec![called]), HTTP);
            provoked._others.push(callee);
            provoked
        }
        ErrorKind::NoCertificate => {
            let mut common = to_nobody(&mesh, |_| {}).worker.common.clone();
            common.discovery =
                crate::discovery::Discovery::fixed(calling(vec![orders(&[app::nobody().await])]), "shop");
            common.identity = Identity::new(SystemClock::shared());
            Provoked::new(mesh.again(common, &[upstream()]), HTTP)
        }
        ErrorKind::UpstreamReset => {
            let hangs_up = app::tcp(|mut socket| async move { drop(socket.read(&mut [0; 1024]).await) }).await;
            before(&mesh, hangs_up, HTTP)
        }
        ErrorKind::UpstreamProtocol => {
            let babbles = app::tcp(|mut socket| async move {
                let _ = socket.read(&mut [0; 1024]).await;
                let _ = socket.write_all(b"this is no HTTP of any version\r\n\r\n").await;
                while socket.read(&mut [0; 1024]).await.is_ok_and(|read| read > 0) {}
            })
            .await;
            before(&mesh, babbles, HTTP)
        }
        ErrorKind::UpstreamRefused => {
            let refuses = app::tcp(|socket| async move {
                let mut connection = h2::server::handshake(socket).await.unwrap();
                while let Some(Ok((_, mut respond))) = connection.accept().await {
                    respond.send_reset(h2::Reason::REFUSED_STREAM);
                }
            })
            .await;
            // HTTP/1.1 has no way to say so.
            before(&mesh, refuses, &[Way::Http2, Way::Grpc])
        }
        ErrorKind::RequestTimeout => {
            slow(&mesh, |policy| policy.request_timeout = Some(Duration::from_millis(200))).await
        }
        ErrorKind::PerTryTimeout => {
            slow(&mesh, |policy| policy.per_try_timeout = Some(Duration::from_millis(200))).await
        }
        ErrorKind::DeadlineExceeded => slow(&mesh, |_| {}).await.changing(|request| {
            request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("200m"));
        }),
        ErrorKind::Denied => {
            let served = vec![Served::new(80, Protocol::Detect, app::echo().await)];
            called_by_web(
                &mesh,
                mesh.proxy("orders", serving("orders", served, only(Vec::new())), &[Role::Inbound]),
                HTTP,
            )
        }
        ErrorKind::CertificateExpired => {
            let callee = mesh.sidecar("orders", Protocol::Detect, app::echo().await);
            let called = orders(&callee.addresses).policy(|policy| policy.idle_timeout = Duration::from_secs(600));
            let caller = behind_the_times(&mesh, called).await;
            // Connections for each way to ask; one that was refused is not used again.
            let two = || async { tokio::join!(send2(caller.address(), get2("/")), send1(caller.address(), get("/"))) };
            let (two, one) = two().await;
            assert_eq!((two.status.as_u16(), one.status.as_u16()), (200, 200));
            outlive_certificate().await;
            callee.outcomes.borrow_mut().clear();
            Provoked::new(callee, &[Way::Http1, Way::Grpc]).through(caller)
        }
        ErrorKind::PlaintextRefused => Provoked::new(mesh.sidecar("orders", Protocol::Detect, app::echo().await), HTTP),
        ErrorKind::OpaqueRefused => {
            let callee = mesh.sidecar("orders", Protocol::Http, app::echo().await);
            let caller = mesh.caller(vec![Called::new("orders", Protocol::Tcp, &callee.addresses)]);
            Provoked::new(callee, &[Way::CutOff("bytes")]).through(caller)
        }
        ErrorKind::NotServed => {
            let served = vec![Served::new(8080, Protocol::Detect, app::echo().await)];
            called_by_web(&mesh, mesh.proxy("orders", serving("orders", served, allow_all()), &[Role::Inbound]), HTTP)
        }
        ErrorKind::Loop => Provoked::new(to_nobody(&mesh, |_| {}), HTTP).changing(|request| {
            request.headers_mut().insert("via", HeaderValue::from_static("1.1 web-1.shop"));
        }),
        ErrorKind::Draining => {
            let callee = mesh.sidecar("orders", Protocol::Detect, app::echo().await);
            callee.stages.advance(Stage::Refusing);
            called_by_web(&mesh, callee, HTTP)
        }
        ErrorKind::AppUnavailable => before(&mesh, app::nobody().await, HTTP),
        ErrorKind::UpgradeRefused => {
            let asked = "CONNECT orders.shop:80 HTTP/1.1\r\nhost: orders.shop:80\r\nconnection: close\r\n\r\n";
            Provoked::new(to_nobody(&mesh, |_| {}), &[Way::Raw(asked)])
        }
        ErrorKind::NotProxyRequest => {
            let caller = mesh.proxy("web", calling(vec![orders(&[])]), &[Role::HttpProxy]);
            Provoked::new(caller, &[Way::Http1])
        }
        ErrorKind::TooManyConnections => {
            let limits = Limits { max_connections: 0, ..Limits::default() };
            let caller = mesh.proxy_with("web", calling(vec![orders(&[])]), &[upstream()], limits);
            // Nothing has been read that would say in what to answer.
            Provoked::new(caller, &[Way::CutOff("GET / HTTP/1.1\r\nhost: orders.shop\r\n\r\n")])
        }
        ErrorKind::ClientGone => Provoked { ways: vec![Way::Leave], ..slow(&mesh, |_| {}).await },
        // What the control plane never sends, as it checks names: a bug, then.
        ErrorKind::Internal => {
            let mut called = orders(&[app::nobody().await]);
            called.service.name = ServiceName { namespace: "no namespace".into(), name: "orders".into() };
            Provoked::new(mesh.caller(vec![called]), HTTP)
        }
    }
}

fn upstream() -> Role {
    Role::Upstream(DialName::new("orders.shop", 80).into())
}

fn orders(peers: &[SocketAddr]) -> Called {
    Called::new("orders", Protocol::Detect, peers)
}

fn policy(called: &mut Called) -> &mut TrafficPolicy {
    Arc::make_mut(&mut called.service.policy)
}

/// A proxy that knows no instance of the service.
fn to_nobody(mesh: &TestMesh, change: impl FnOnce(&mut Called)) -> Proxy {
    let mut called = orders(&[]);
    change(&mut called);
    mesh.caller(vec![called])
}

/// A proxy that knows one route, whose backend is invalid for this reason.
fn routed(mesh: &TestMesh, path: &str, invalid: Option<&str>) -> Proxy {
    let backend =
        Backend { cluster: cluster("orders"), weight: 1, filters: Vec::new(), invalid: invalid.map(Into::into) };
    let rule = HttpRule {
        route: "HTTPRoute shop/orders".into(),
        rule: "0".into(),
        hostnames: Vec::new(),
        matches: HttpMatch { path: Some(PathMatch::Exact(path.into())), ..HttpMatch::default() },
        filters: Vec::new(),
        backends: vec![backend],
        request_timeout: None,
        per_try_timeout: None,
        retry: None,
    };
    to_nobody(mesh, |called| called.service.ports.get_mut(&80).unwrap().http_rules = vec![Arc::new(rule)])
}

/// The proxy before an app refuses what a proxy of `web` asks for.
fn called_by_web(mesh: &TestMesh, callee: Proxy, ways: &[Way]) -> Provoked {
    let caller = mesh.caller(vec![orders(&callee.addresses)]);
    Provoked::new(callee, ways).through(caller)
}

fn before(mesh: &TestMesh, app: SocketAddr, ways: &[Way]) -> Provoked {
    called_by_web(mesh, mesh.sidecar("orders", Protocol::Detect, app), ways)
}

/// The caller's proxy gives up an app that does not answer.
async fn slow(mesh: &TestMesh, change: impl FnOnce(&mut TrafficPolicy)) -> Provoked {
    let app = app::http(|_| async {
        pending::<()>().await;
        Response::<AppBody>::new(text(""))
    })
    .await;
    let callee = mesh.sidecar("orders", Protocol::Detect, app);
    let caller = mesh.caller(vec![orders(&callee.addresses).policy(change)]);
    let mut provoked = Provoked::new(caller, HTTP);
    provoked._others.push(callee);
    provoked
}

/// How long the certificate of [`behind_the_times`] lives.
const LIFETIME: Duration = Duration::from_secs(240);
/// Its clock is late by more than the margin in which connections are not used any longer.
const LATE: Duration = Duration::from_secs(35);
/// By its own clock, how long a test takes at most in which that time passes.
pub(super) const LONGEST: Duration = Duration::from_secs(600);

/// A proxy of `web` with a short-lived certificate and a clock that is late.
pub(super) async fn behind_the_times(mesh: &TestMesh, called: Called) -> Proxy {
    let mut common = mesh.caller(vec![called]).worker.common.clone();
    let clock = ManualClock::new(SystemTime::now() - LATE);
    common.identity = Identity::new(Arc::new(clock));
    mesh.issue(&common.identity, "web", LIFETIME);
    mesh.again(common, &[upstream()])
}

/// Time passes: for the callee the certificate has expired, for the caller not quite.
pub(super) async fn outlive_certificate() {
    pause();
    advance(LIFETIME + Duration::from_secs(3)).await;
    resume();
}
