//! Whether the process is alive, started and ready, and if not, what is missing.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;

/// What a condition decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probe {
    /// `/live`: false means that only a restart helps. Such a condition starts out true.
    Live,
    /// `/ready`: false means that no traffic should come. Such a condition starts out false.
    Ready,
}

/// Named conditions, and the answers to probes made from them. Cheap to clone; clones share all.
///
/// `/startup` is true once the process has been ready, and stays so.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<Conditions>>);

#[derive(Debug)]
struct Conditions {
    all: Vec<(&'static str, Probe, bool)>,
    started: bool,
}

impl Health {
    /// These conditions, and no others.
    pub fn new(conditions: &[(&'static str, Probe)]) -> Self {
        let all = conditions.iter().map(|&(name, probe)| (name, probe, probe == Probe::Live)).collect();
        let mut conditions = Conditions { all, started: false };
        conditions.started = conditions.missing(Probe::Ready).is_empty();
        Self(Arc::new(Mutex::new(conditions)))
    }

    /// Says whether a condition holds. A name that [`Health::new`] was not given is a programming
    /// error; outside debug builds it counts as a new condition for readiness.
    pub fn set(&self, name: &'static str, holds: bool) {
        let mut conditions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match conditions.all.iter_mut().find(|(known, ..)| *known == name) {
            Some((_, _, value)) => *value = holds,
            None => {
                debug_assert!(false, "unknown health condition {name:?}");
                conditions.all.push((name, Probe::Ready, holds));
            }
        }
        if conditions.missing(Probe::Ready).is_empty() {
            conditions.started = true;
        }
    }

    /// Names the conditions of a probe that do not hold.
    pub fn missing(&self, probe: Probe) -> Vec<&'static str> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).missing(probe)
    }

    /// Whether every condition for readiness holds.
    pub fn is_ready(&self) -> bool {
        self.missing(Probe::Ready).is_empty()
    }

    /// The answer to `/live`.
    pub fn live(&self) -> Response<Full<Bytes>> {
        answer("live", &self.missing(Probe::Live))
    }

    /// The answer to `/ready`.
    pub fn ready(&self) -> Response<Full<Bytes>> {
        answer("ready", &self.missing(Probe::Ready))
    }

    /// The answer to `/startup`.
    pub fn startup(&self) -> Response<Full<Bytes>> {
        let conditions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let missing = if conditions.started { Vec::new() } else { conditions.missing(Probe::Ready) };
        answer("started", &missing)
    }
}

impl Conditions {
    fn missing(&self, probe: Probe) -> Vec<&'static str> {
        self.all.iter().filter(|(_, of, holds)| *of == probe && !holds).map(|(name, ..)| *name).collect()
    }
}

fn answer(what: &str, missing: &[&str]) -> Response<Full<Bytes>> {
    let (status, text) = if missing.is_empty() {
        (StatusCode::OK, format!("{what}\n"))
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("not {what}; waiting for: {}\n", missing.join(", ")))
    };
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    async fn read(response: Response<Full<Bytes>>) -> (u16, String) {
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn answers_name_what_is_missing() {
        let health = Health::new(&[("certificate", Probe::Ready), ("policy", Probe::Ready), ("workers", Probe::Live)]);
        let waiting = "not ready; waiting for: certificate, policy\n";
        assert_eq!(read(health.ready()).await, (503, waiting.to_owned()));
        health.set("certificate", true);
        assert_eq!(read(health.ready()).await, (503, "not ready; waiting for: policy\n".to_owned()));
        assert_eq!(read(health.startup()).await, (503, "not started; waiting for: policy\n".to_owned()));
        health.set("policy", true);
        assert_eq!(read(health.ready()).await, (200, "ready\n".to_owned()));
        assert_eq!(read(health.live()).await, (200, "live\n".to_owned()));
        health.set("workers", false);
        assert_eq!(read(health.live()).await, (503, "not live; waiting for: workers\n".to_owned()));
    }

    #[tokio::test]
    async fn started_stays_started() {
        let health = Health::new(&[("policy", Probe::Ready)]);
        health.set("policy", true);
        health.set("policy", false);
        assert!(!health.is_ready());
        assert_eq!(read(health.startup()).await.0, 200);
    }

    #[tokio::test]
    async fn without_conditions_all_is_well() {
        let health = Health::new(&[]);
        assert_eq!(read(health.startup()).await.0, 200);
        assert!(health.is_ready());
    }
}
