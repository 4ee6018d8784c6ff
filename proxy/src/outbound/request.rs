//! The stages of a request on its way out.

use std::{borrow::Cow, net::SocketAddr, rc::Rc, time::SystemTime};

use http::{
    HeaderValue, Request, Response, Version,
    header::{LOCATION, UPGRADE, USER_AGENT},
    request::Parts,
};
use hyper::{body::Incoming, upgrade::OnUpgrade};
use tokio::time::Duration;

use super::{
    Destination,
    destination::{self, Name},
    tunnel::Tunnel,
};
use crate::{
    body::Body,
    cluster::{
        Cluster,
        stack::{self, Call, Context, Rules},
    },
    config::{DialName, Limits},
    connect::Carried,
    exchange::Exchange,
    headers::{self, Hop},
    listener::Arrival,
    outcome::{Direction, Error, ErrorKind, RequestOutcome},
    route::{self, Choice, Chosen},
    serve::{self, Front, reply, upgrade},
    snapshot::ServicePort,
    trace_context::TraceContext,
    worker::Worker,
};

/// One connection of the app that carries HTTP.
pub(super) struct Connection {
    pub(super) worker: Rc<Worker>,
    pub(super) arrival: Rc<Arrival>,
    /// Where it leads; `None` on an explicit proxy port, where each request says.
    pub(super) name: Option<Rc<Name>>,
    /// What this proxy says of itself.
    via: Option<HeaderValue>,
}

/// A request as it came.
pub(super) struct Arrived {
    pub(super) parts: Parts,
    pub(super) body: Incoming,
    pub(super) upgraded: OnUpgrade,
    /// The caller's place in its trace.
    pub(super) trace: TraceContext,
}

/// Where a request goes.
pub(super) enum Routed {
    Redirect(Box<Response<Body>>),
    To(Rc<Cluster>, Option<Chosen>),
}

/// A request for a cluster.
pub(super) struct Forward {
    pub(super) front: Front,
    pub(super) parts: Parts,
    pub(super) body: Incoming,
    pub(super) upgraded: OnUpgrade,
    pub(super) trace: TraceContext,
    pub(super) chosen: Option<Chosen>,
    /// The only endpoint that may get it.
    pub(super) instance: Option<SocketAddr>,
}

/// What is left to do with its response.
pub(super) struct Rest {
    upgrade: Option<HeaderValue>,
    upgraded: OnUpgrade,
    chosen: Option<Chosen>,
    idle: Duration,
}

impl Connection {
    /// Without a name each request says where it goes.
    pub(super) fn new(worker: &Rc<Worker>, arrival: &Rc<Arrival>, name: Option<Rc<Name>>, carried: Carried) -> Self {
        let version = if carried == Carried::Http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        let via = headers::via(version, &worker.common.instance);
        Self { worker: worker.clone(), arrival: arrival.clone(), name, via }
    }

    /// A request begins.
    pub(super) fn begin(&self, parts: &Parts, grpc: bool) -> (Rc<Exchange>, TraceContext) {
        let rng = &mut *self.worker.rng.borrow_mut();
        let trace = TraceContext::extract(&parts.headers, &self.worker.common.sampler, rng);
        let line = (parts.version, parts.method.clone(), parts.uri.clone());
        let mut outcome =
            RequestOutcome::new(Direction::Outbound, line, self.arrival.peer, SystemTime::now(), trace.clone());
        outcome.grpc = grpc;
        outcome.authority = serve::authority(parts);
        outcome.user_agent = parts.headers.get(USER_AGENT).cloned();
        (Exchange::begin(outcome, &self.worker.sink), trace)
    }

    /// Where a request is meant to go.
    pub(super) fn destination(&self, parts: &Parts) -> Result<Cow<'_, DialName>, Error> {
        if let Some(name) = &self.name {
            return Ok(Cow::Borrowed(&name.name));
        }
        let not_proxied = |why: &str| Error::new(ErrorKind::NotProxyRequest, why.to_owned());
        let authority = parts
            .uri
            .authority()
            .ok_or_else(|| not_proxied("this port is an HTTP proxy: it wants absolute URIs, or CONNECT"))?;
        if parts.uri.scheme_str() != Some("http") {
            return Err(not_proxied("only http:// is forwarded; what is encrypted comes by CONNECT"));
        }
        authority
            .as_str()
            .parse()
            .map(Cow::Owned)
            .map_err(|error| Error::new(ErrorKind::BadRequest, format!("the URI's authority: {error}")))
    }

    /// What that leads to.
    pub(super) async fn resolve(&self, name: &DialName, exchange: &Exchange) -> Result<Rc<Destination>, Error> {
        match &self.name {
            Some(name) => name.resolve(&self.worker, exchange.started()).await,
            None => destination::resolve(&self.worker, name).await.map(Rc::new),
        }
    }

    /// A request that this proxy has sent before has come back.
    pub(super) fn refuse_loop(&self, parts: &Parts) -> Result<(), Error> {
        self.arrival.refuse_loop()?;
        if headers::via_contains(&parts.headers, &self.worker.common.instance) {
            return Err(Error::new(ErrorKind::Loop, "this proxy has forwarded the request before (Via)"));
        }
        Ok(())
    }

    /// Takes off what an app must not say, and adds what others are to know.
    pub(super) fn clean(&self, parts: &mut Parts, exchange: &Exchange) {
        headers::sanitize_outbound(&mut parts.headers);
        let id = headers::request_id(&mut parts.headers, &mut *self.worker.rng.borrow_mut());
        exchange.note(|outcome| outcome.request_id = Some(id));
        if let Some(via) = &self.via {
            headers::append_via(&mut parts.headers, via);
        }
    }

    /// Which rule the request matches, and where that leads.
    pub(super) async fn route(
        &self,
        destination: &Destination,
        front: &Front,
        parts: &Parts,
        exchange: &Exchange,
    ) -> Result<Routed, Error> {
        if let Destination::Service { service, port, .. } = destination {
            exchange.note(|outcome| {
                outcome.service = Some(service.name.clone());
                outcome.port = *port;
            });
        }
        let Some(port) = destination.port()? else {
            let cluster = destination.own_cluster(&self.worker).await?;
            if destination.instance().is_some() {
                exchange.note(|outcome| outcome.cluster = Some(cluster.name().clone()));
            }
            return Ok(Routed::To(cluster, None));
        };
        match self.choose(port, front, parts)? {
            Choice::Service => {
                let cluster = destination.own_cluster(&self.worker).await?;
                exchange.note(|outcome| outcome.cluster = Some(cluster.name().clone()));
                Ok(Routed::To(cluster, None))
            }
            Choice::Forward(chosen) => {
                let name = &chosen.backend().cluster;
                exchange.note(|outcome| {
                    outcome.rule = Some(chosen.rule.clone());
                    outcome.cluster = Some(name.clone());
                });
                Ok(Routed::To(self.worker.clusters.find(name).await?, Some(chosen)))
            }
            Choice::Redirect { rule, status, location } => {
                exchange.note(|outcome| outcome.rule = Some(rule));
                let mut response = Response::new(Body::empty());
                *response.status_mut() = status;
                response.headers_mut().insert(LOCATION, location);
                Ok(Routed::Redirect(Box::new(response)))
            }
        }
    }

    fn choose(&self, port: &ServicePort, front: &Front, parts: &Parts) -> Result<Choice, Error> {
        let request = route::Request {
            authority: front.authority.to_str().unwrap_or_default(),
            path: parts.uri.path(),
            query: parts.uri.query(),
            method: &parts.method,
            headers: &parts.headers,
        };
        let listener_port = self.name.as_ref().map_or(80, |name| name.name.port);
        route::choose(port, &request, "http", listener_port, &mut *self.worker.rng.borrow_mut())
    }
}

impl Forward {
    /// The request as the cluster's stack takes it.
    pub(super) fn prepare(
        self,
        cluster: &Cluster,
        limits: &Limits,
        exchange: &Rc<Exchange>,
    ) -> Result<(Call, Rest), Error> {
        let Self { front, mut parts, body, upgraded, trace, chosen, instance } = self;
        if let Some(chosen) = &chosen {
            chosen.apply_to_request(&mut parts.uri, &mut parts.headers)?;
            exchange.note(|outcome| outcome.uri = parts.uri.clone());
        }
        let policy = cluster.policy();
        let rules = Rules::new(chosen.as_ref().map(|chosen| &*chosen.rule), &policy);
        let deadline = stack::deadline(&rules, headers::deadline(&parts.headers), exchange.started());
        let carried = if parts.version == Version::HTTP_2 { Carried::Http2 } else { Carried::Http1 };
        let reading = parts.extensions.remove();
        let mut body = Body::from(body).counted(exchange, limits).telling(reading);
        if let Some(expect) = &front.expect {
            body = body.expect(expect.clone());
        }
        let mut request = Request::from_parts(parts, body);
        if let Some(protocol) = &front.upgrade {
            upgrade::ask(&mut request, protocol);
        }
        let exchange = exchange.clone();
        let context = Context { exchange, trace, rules, deadline, carried, expect: front.expect, instance };
        let rest = Rest { upgrade: front.upgrade, upgraded, chosen, idle: policy.idle_timeout };
        Ok((Call { request: Box::new(request), context: Rc::new(context) }, rest))
    }
}

impl Rest {
    /// The response as the app gets it.
    pub(super) fn finish(
        self,
        mut response: Response<Body>,
        connection: &Connection,
        exchange: &Rc<Exchange>,
        (name, destination, cluster): (&DialName, &Destination, &Cluster),
    ) -> Result<Response<Body>, Error> {
        let protocol = response.headers().get(UPGRADE).cloned();
        headers::strip_hop_by_hop(response.headers_mut());
        let peer = exchange.read(|outcome| outcome.attempts.last().and_then(|attempt| attempt.peer.clone())).flatten();
        let from = peer.as_ref().map_or(Hop::Unmeshed, |id| Hop::Meshed { id, certificate_hash: None });
        headers::sanitize_response(response.headers_mut(), from);
        headers::date(response.headers_mut(), SystemTime::now);
        if let Some(chosen) = &self.chosen {
            chosen.apply_to_response(response.headers_mut());
        }
        exchange.note(|outcome| outcome.peer = peer);
        let begun = upgrade::is_begun(&response, self.upgrade.is_some())?;
        *response.version_mut() = Version::HTTP_11;
        if !begun {
            return Ok(reply::of(response, exchange));
        }
        let last = exchange.read(|outcome| {
            let attempt = outcome.attempts.last()?;
            Some((attempt.endpoint.clone()?, attempt.peer.clone()))
        });
        let tunnel = last.flatten().map(|(endpoint, peer)| {
            let (worker, exchange) = (&connection.worker, Rc::downgrade(exchange));
            Tunnel::open(worker, name, destination, cluster, &endpoint, peer.as_ref(), exchange)
        });
        let kept = (connection.arrival.clone(), tunnel);
        Ok(upgrade::tunnel(self.upgraded, response, protocol, self.idle, exchange, kept))
    }
}
