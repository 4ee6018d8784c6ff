//! The admin listener, on loopback: what this proxy believes, what it logs, drain. Others on this
//! host may use it, a web page in a browser on this host may not.

use std::sync::Arc;

use heddle_runtime::{
    http_server::{Reply, read_body, reply, reply_json},
    telemetry::LogHandle,
};
use http::{HeaderMap, Method, Request, StatusCode, header};
use hyper::body::Incoming;
use serde_json::json;
use tokio::sync::watch;

use crate::{
    config::Config,
    discovery::{Discovery, Status},
    identity::{Identity, Report},
    learned::Learned,
    lifecycle::{Lifecycle, ShutDown, Stage},
};

/// Longest filter for the log.
const MAX_FILTER: usize = 4096;

const INDEX: &str = "GET  /config_dump   what this proxy believes\n\
                     GET  /log-level     filter of the log\n\
                     PUT  /log-level     another filter, such as info,heddle_proxy=debug\n\
                     POST /drain         shut down, as SIGTERM does\n\
                     POST /drain/inbound stop being called, and answer when that is so; one of the others does the rest\n\
                     POST /drain/application-gone  shut down, and do not look whether the application is gone\n";

/// What the listener tells of and acts on.
pub(crate) struct Admin {
    /// `<namespace>/<workload>`.
    pub node: String,
    /// Settings.
    pub config: Config,
    /// Of the control plane.
    pub discovery: Discovery,
    /// How that goes.
    pub status: watch::Receiver<Status>,
    /// Certificates.
    pub identity: Identity,
    /// How that goes.
    pub report: watch::Receiver<Report>,
    /// What destinations were found to speak.
    pub learned: Learned,
    /// Where the listeners are.
    pub addresses: serde_json::Value,
    /// Filter of the log; `None` where the process is not ours, as in tests.
    pub log: Option<LogHandle>,
    /// Raised by `POST /drain`.
    pub drain: watch::Sender<ShutDown>,
    /// How far that has come.
    pub life: Lifecycle,
}

/// Answers one request.
pub(crate) async fn answer(admin: Arc<Admin>, request: Request<Incoming>) -> Reply {
    if let Err(reason) = local(request.headers()) {
        return reply(StatusCode::FORBIDDEN, format!("{reason}\n"));
    }
    let (parts, body) = request.into_parts();
    match (&parts.method, parts.uri.path()) {
        (&Method::GET, "/") => reply(StatusCode::OK, INDEX),
        (&Method::GET, "/config_dump") => {
            let dump = admin.dump().await;
            reply_json(StatusCode::OK, format!("{dump:#}\n"))
        }
        (&Method::GET, "/log-level") => match &admin.log {
            Some(log) => reply(StatusCode::OK, format!("{}\n", log.level())),
            None => reply(StatusCode::NOT_FOUND, "the log is not this proxy's\n"),
        },
        (&Method::PUT, "/log-level") => match read_body(body, MAX_FILTER).await {
            Ok(filter) => admin.set_log_level(&filter),
            Err(refusal) => refusal,
        },
        (&Method::POST, "/drain") => {
            admin.ask(ShutDown::All);
            reply(StatusCode::ACCEPTED, "draining\n")
        }
        (&Method::POST, "/drain/inbound") => {
            admin.ask(ShutDown::Inbound);
            admin.life.reached(Stage::Refusing).await;
            reply(StatusCode::OK, "no longer called\n")
        }
        (&Method::POST, "/drain/application-gone") => {
            admin.ask(ShutDown::ApplicationGone);
            reply(StatusCode::ACCEPTED, "draining\n")
        }
        (_, "/" | "/config_dump" | "/log-level" | "/drain" | "/drain/inbound" | "/drain/application-gone") => {
            reply(StatusCode::METHOD_NOT_ALLOWED, INDEX)
        }
        _ => reply(StatusCode::NOT_FOUND, INDEX),
    }
}

/// Refuses what a web page may have sent: by another host name that leads here (DNS rebinding), or
/// across origins.
fn local(headers: &HeaderMap) -> Result<(), &'static str> {
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    let loopback =
        name.eq_ignore_ascii_case("localhost") || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if !loopback {
        return Err("the admin listener is to be called by an address of loopback or as localhost");
    }
    let site = headers.get("sec-fetch-site").map(|site| site.as_bytes());
    if headers.contains_key(header::ORIGIN) || !matches!(site, None | Some(b"none" | b"same-origin")) {
        return Err("the admin listener does not answer web pages");
    }
    Ok(())
}

impl Admin {
    /// More than that may have been asked for already.
    fn ask(&self, asked: ShutDown) {
        self.drain.send_modify(|before| *before = asked.max(*before));
    }

    fn set_log_level(&self, filter: &[u8]) -> Reply {
        let Some(log) = &self.log else { return reply(StatusCode::NOT_FOUND, "the log is not this proxy's\n") };
        let Ok(filter) = std::str::from_utf8(filter) else {
            return reply(StatusCode::BAD_REQUEST, "the filter is no text\n");
        };
        match log.set_level(filter.trim()) {
            Ok(()) => {
                tracing::info!(filter = filter.trim(), "another filter for the log");
                reply(StatusCode::OK, format!("{}\n", log.level()))
            }
            Err(error) => {
                let text =
                    format!("{}; write one such as info,heddle_proxy=debug\n", crate::control_plane::causes(&error));
                reply(StatusCode::BAD_REQUEST, text)
            }
        }
    }

    async fn dump(&self) -> serde_json::Value {
        let credentials = self.identity.current();
        let report = self.report.borrow().clone();
        let status = self.status.borrow().clone();
        let time = |at| heddle_time(at);
        let identity = json!({
            "id": credentials.as_ref().map(|held| held.svid.id().to_string()),
            "notBefore": credentials.as_ref().map(|held| time(held.svid.not_before())),
            "notAfter": credentials.as_ref().map(|held| time(held.svid.not_after())),
            "epoch": credentials.as_ref().map(|held| held.epoch),
            "trustBundle": credentials.as_ref().map(|held| json!({
                "trustDomain": held.bundle.trust_domain().to_string(),
                "epoch": held.bundle.epoch(),
                "roots": held.bundle.roots().len(),
            })),
            "issued": report.issued,
            "failing": report.failing,
            "reason": report.reason,
        });
        json!({
            "node": self.node,
            "version": env!("CARGO_PKG_VERSION"),
            "addresses": self.addresses,
            "identity": identity,
            "controlPlane": {
                "address": self.config.join.control_plane,
                "connected": status.connected,
                "streams": status.streams,
                "responses": status.responses,
                "rejected": status.rejected,
            },
            "settings": format!("{:?}", self.config),
            "detection": self.learned.dump(),
            "discovery": self.discovery.dump().await,
        })
    }
}

/// RFC 3339.
fn heddle_time(at: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(at).map(|at| at.to_string()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn web_pages_and_other_names_are_refused() {
        let headers = |list: &[(&'static str, &'static str)]| {
            list.iter()
                .map(|(name, value)| (http::HeaderName::from_static(name), http::HeaderValue::from_static(value)))
                .collect()
        };
        for right in [
            &[("host", "127.0.0.1:15000")][..],
            &[("host", "localhost")],
            &[("host", "[::1]:15000"), ("sec-fetch-site", "none")],
        ] {
            assert_eq!(local(&headers(right)), Ok(()), "{right:?}");
        }
        for wrong in [
            &[][..],
            &[("host", "attacker.example:15000")],
            &[("host", "127.0.0.1.attacker.example")],
            &[("host", "10.0.0.1:15000")],
            &[("host", "127.0.0.1:15000"), ("origin", "http://attacker.example")],
            &[("host", "127.0.0.1:15000"), ("sec-fetch-site", "cross-site")],
        ] {
            assert!(local(&headers(wrong)).is_err(), "{wrong:?}");
        }
    }
}
