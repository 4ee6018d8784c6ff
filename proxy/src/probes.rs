//! Probes of the application, made in the kubelet's place: it has no certificate, so where it asked the application
//! itself it would meet the inbound listener. It asks the health listener at `/probe/NAME`, and this asks the
//! application, as the kubelet would: HTTP, TCP or gRPC, with the time that the pod gives.
//!
//! Whoever reaches the health listener can have these made, and nothing but these: what is asked is fixed at the start.
//! Of each there is one at a time, and its verdict holds for those who ask meanwhile and shortly after, so that asking
//! often costs the application nothing and nobody is turned away.

mod ask;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use heddle_runtime::http_server::{Reply, reply};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode};
use serde_json::Value;
use tokio::{sync::watch, time::Instant};

/// Where probes are on the health listener.
const PREFIX: &str = "/probe/";
/// How long a verdict holds.
const FRESH: Duration = Duration::from_millis(200);
/// The longest time that one can be given: the health listener's own is a little more.
const LONGEST: u64 = 29;

/// Every probe of the application, by name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probes(BTreeMap<String, Probe>);

/// One probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// What is asked.
    pub action: Action,
    /// Of which port.
    pub port: u16,
    /// How long the application may take.
    pub timeout: Duration,
}

/// What is asked of the application.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// GET, to be answered with 200 to 399.
    Http {
        /// By TLS, whatever certificate is shown.
        https: bool,
        /// With query.
        path: String,
        /// Besides the usual ones.
        headers: HeaderMap,
    },
    /// A connection.
    Tcp,
    /// `grpc.health.v1.Health/Check`, to be answered with `SERVING`.
    Grpc {
        /// Which service; empty: the whole.
        service: String,
    },
}

impl FromStr for Probes {
    type Err = String;

    /// JSON: names to probes, each as Kubernetes writes it (`httpGet`, `tcpSocket` or `grpc`) with the number of its
    /// `port` and `timeoutSeconds` beside it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let right = "write JSON such as {\"app/liveness\":{\"httpGet\":{\"path\":\"/\"},\"port\":80}}";
        let all: BTreeMap<String, Value> = serde_json::from_str(text).map_err(|_| right.to_owned())?;
        let probe = |(name, value): (String, Value)| match probe(&value) {
            Ok(probe) => Ok((name, probe)),
            Err(message) => Err(format!("{name}: {message}")),
        };
        Ok(Self(all.into_iter().map(probe).collect::<Result<_, _>>()?))
    }
}

fn probe(value: &Value) -> Result<Probe, String> {
    let port = value["port"].as_u64().and_then(|port| u16::try_from(port).ok()).filter(|port| *port != 0);
    let seconds = value.get("timeoutSeconds").map_or(Some(1), Value::as_u64);
    let seconds = seconds.filter(|seconds| *seconds > 0).ok_or("timeoutSeconds: write a whole number from 1")?;
    let text = |at: &Value, key: &str| at.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    let action = if let Some(http) = value.get("httpGet") {
        let path = text(http, "path");
        let scheme = text(http, "scheme");
        Action::Http {
            https: scheme.eq_ignore_ascii_case("https"),
            path: if path.starts_with('/') { path } else { format!("/{path}") },
            headers: headers(http.get("httpHeaders").unwrap_or(&Value::Null))?,
        }
    } else if value.get("tcpSocket").is_some() {
        Action::Tcp
    } else if let Some(grpc) = value.get("grpc") {
        Action::Grpc { service: text(grpc, "service") }
    } else {
        return Err("write httpGet, tcpSocket or grpc".to_owned());
    };
    let timeout = Duration::from_secs(seconds.min(LONGEST));
    Ok(Probe { action, port: port.ok_or("port: write a port from 1 to 65535")?, timeout })
}

fn headers(list: &Value) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for header in list.as_array().into_iter().flatten() {
        let text = |key: &str| header.get(key).and_then(Value::as_str).unwrap_or_default();
        let name = HeaderName::from_str(text("name"));
        let value = HeaderValue::from_str(text("value"));
        let (Ok(name), Ok(value)) = (name, value) else { return Err(format!("{header} is no header")) };
        headers.append(name, value);
    }
    Ok(headers)
}

/// What came of a probe: whether the application is as it should be, and why or why not.
type Verdict = Result<String, String>;

/// A probe that is under way or was not long ago.
#[derive(Clone, Debug)]
struct Run {
    begun: Instant,
    verdict: watch::Receiver<Option<(Verdict, Instant)>>,
}

/// Makes probes. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Asking {
    probes: Arc<Probes>,
    app: IpAddr,
    runs: Arc<Mutex<BTreeMap<String, Run>>>,
}

/// A probe that somebody asks for.
#[derive(Debug)]
pub(crate) struct Asked {
    asking: Asking,
    name: String,
    probe: Probe,
}

impl Asking {
    /// Of an application at this address; `None`: loopback, where it is without a pod.
    pub(crate) fn new(probes: Probes, app: Option<IpAddr>) -> Self {
        let app = app.unwrap_or(Ipv4Addr::LOCALHOST.into());
        Self { probes: Arc::new(probes), app, runs: Arc::default() }
    }

    /// The probe that a request asks for; `None`: it asks for something else.
    pub(crate) fn asked<B>(&self, request: &Request<B>) -> Option<Asked> {
        let name = request.uri().path().strip_prefix(PREFIX)?;
        let probe = self.probes.0.get(name).filter(|_| *request.method() == Method::GET)?;
        Some(Asked { asking: self.clone(), name: name.to_owned(), probe: probe.clone() })
    }

    /// The run to wait for: the one under way, one whose verdict still holds, else a new one.
    fn run(&self, name: String, probe: Probe) -> Run {
        let mut runs = self.runs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(run) = runs.get(&name) {
            // One whose task has gone without a verdict is over, too.
            let holds = match &*run.verdict.borrow() {
                Some((_, ended)) => ended.elapsed() < FRESH,
                None => run.verdict.has_changed().is_ok() && run.begun.elapsed() < probe.timeout + FRESH,
            };
            if holds {
                return run.clone();
            }
        }
        let (tell, verdict) = watch::channel(None);
        let run = Run { begun: Instant::now(), verdict };
        runs.insert(name, run.clone());
        let app = SocketAddr::new(self.app, probe.port);
        tokio::spawn(async move {
            let verdict = ask::app(&probe, app).await;
            tell.send_replace(Some((verdict, Instant::now())));
        });
        run
    }
}

impl Asked {
    /// 200 or 503, with the reason.
    pub(crate) async fn answer(self) -> Reply {
        let Self { asking, name, probe } = self;
        let mut run = asking.run(name, probe);
        let verdict = match run.verdict.wait_for(Option::is_some).await.map(|verdict| verdict.clone()) {
            Ok(Some((verdict, _))) => verdict,
            _ => Err("the probe ended without a verdict".to_owned()),
        };
        match verdict {
            Ok(why) => reply(StatusCode::OK, format!("{why}\n")),
            Err(why) => reply(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        }
    }
}
