//! From the app to others.
//!
//! ```text
//! connection: destination (port of choice, CONNECT, original destination) -> what it speaks
//! request:    front -> loop? -> destination -> route -> cluster (its stack) -> response
//! opaque:     destination -> route -> endpoint -> preamble -> bytes
//! ```

mod connect_method;
mod destination;
mod opaque;
mod request;
mod tunnel;

use std::rc::Rc;

use http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use tokio::{net::TcpStream, time::Instant};

pub(crate) use self::{
    destination::Names,
    tunnel::{Tunnels, recheck},
};
use self::{
    destination::{Destination, Name, Spoken},
    opaque::Tentative,
    request::{Arrived, Connection, Forward, Routed},
};
use crate::{
    body::Body,
    cluster::stack,
    connect::Carried,
    exchange::{ConnectionRecord, Exchange},
    listener::{Arrival, Role},
    outcome::{Error, ErrorKind},
    serve::{self, Ending, reply},
    stream::Stream,
    worker::Worker,
};

/// One connection, from accept to end.
pub(crate) async fn serve_connection(worker: Rc<Worker>, socket: TcpStream, arrival: Rc<Arrival>) {
    let mut record = arrival.record(&worker.sink);
    let stream = Stream::from(socket);
    let result = match &arrival.role {
        // Absolute-form requests and CONNECT mean proxying here, and nowhere else.
        Role::HttpProxy => serve_http(&worker, stream, Carried::Http1, None, &arrival).await,
        Role::Upstream(name) => {
            let name = worker.names.upstream(name);
            serve_destination(&worker, stream, name, &arrival, &mut record).await
        }
        Role::Captured => {
            let name = worker.names.captured(arrival.local);
            serve_destination(&worker, stream, name, &arrival, &mut record).await
        }
        Role::Inbound => Err(Error::new(ErrorKind::Internal, "an inbound connection on its way out")),
    };
    if let Err(error) = result {
        record.fail(error);
    }
}

/// A connection whose destination is known before its first byte.
async fn serve_destination(
    worker: &Rc<Worker>,
    mut stream: Stream,
    name: Rc<Name>,
    arrival: &Rc<Arrival>,
    record: &mut ConnectionRecord,
) -> Result<(), Error> {
    record.target(name.text.clone());
    let destination = match arrival.refuse_loop() {
        Ok(()) => name.resolve(worker, Instant::now()).await,
        Err(error) => Err(error),
    };
    // Also while the app says nothing for long: it must be known when it connects again.
    let _in_use = name.keep(&worker.common.discovery);
    let destination = destination.as_deref();
    let learn = |found| worker.learned.outbound(&name.name, destination::leads_to(destination), found);
    let (spoken, found) = destination::spoken(worker, &mut stream, &name.name, destination.ok()).await;
    found.into_iter().for_each(learn);
    let carried = match (spoken, destination) {
        (Spoken::Nothing, _) => return Ok(()),
        (Spoken::Http(carried), _) => carried,
        (Spoken::Opaque, Ok(destination)) => {
            return Box::pin(opaque::serve(worker, stream, &name.name, destination, record)).await;
        }
        (Spoken::Silent, Ok(destination)) => {
            let serving = opaque::serve_silent(worker, stream, &name.name, destination, learn, record);
            match Box::pin(serving).await? {
                Tentative::Http(carried, spoke) => {
                    stream = spoke;
                    carried
                }
                Tentative::Done => return Ok(()),
            }
        }
        // Whoever speaks HTTP is told what is wrong; nobody else could be.
        (Spoken::Opaque | Spoken::Silent, Err(error)) => {
            stream.reset();
            return Err(error.clone());
        }
    };
    serve_http(worker, stream, carried, Some(name), arrival).await
}

/// HTTP; without a name each request says where it goes.
async fn serve_http(
    worker: &Rc<Worker>,
    stream: Stream,
    carried: Carried,
    name: Option<Rc<Name>>,
    arrival: &Rc<Arrival>,
) -> Result<(), Error> {
    let (limits, ending) = (&worker.common.limits, Ending::outbound(&worker.common.life));
    let connection = Rc::new(Connection::new(worker, arrival, name, carried));
    let handle = move |request| serve_request(connection.clone(), request);
    let ended = match carried {
        Carried::Http2 => Box::pin(serve::http2(stream, limits, ending, handle)).await,
        Carried::Http1 | Carried::Tcp => serve::http1(stream, limits, ending, handle).await,
    };
    ended.map_or(Ok(()), Err)
}

/// One request, from its headers to the response's.
async fn serve_request(connection: Rc<Connection>, mut request: Request<Incoming>) -> Response<Body> {
    if connection_is_asked(&connection, &request) {
        return Box::pin(connect_method::serve(&connection, request)).await;
    }
    let upgraded = hyper::upgrade::on(&mut request);
    let (parts, body) = request.into_parts();
    let (version, grpc, tunnel) = (parts.version, serve::is_grpc(&parts), parts.method == Method::CONNECT);
    let (exchange, trace) = connection.begin(&parts, grpc);
    let arrived = Arrived { parts, body, upgraded, trace };
    let mut response = match forward(&connection, &exchange, arrived).await {
        Ok(response) => response,
        Err(error) => reply::error(error, grpc, &exchange),
    };
    // What follows a CONNECT, which is refused here, was meant for a tunnel: it is no request.
    if version < Version::HTTP_2 && (tunnel || Ending::outbound(&connection.worker.common.life).has_begun()) {
        reply::last(&mut response);
    }
    response
}

fn connection_is_asked(connection: &Connection, request: &Request<Incoming>) -> bool {
    request.method() == Method::CONNECT && connection.name.is_none()
}

async fn forward(
    connection: &Connection,
    exchange: &Rc<Exchange>,
    Arrived { mut parts, body, upgraded, trace }: Arrived,
) -> Result<Response<Body>, Error> {
    let worker = &connection.worker;
    let name = connection.destination(&parts)?;
    let front = serve::receive(&mut parts, &worker.common.limits)?;
    exchange.note(|outcome| outcome.uri = parts.uri.clone());
    connection.refuse_loop(&parts)?;
    if front.ends_here {
        return Ok(reply::of(serve::answer_here(&parts.method), exchange));
    }
    connection.clean(&mut parts, exchange);
    let destination = connection.resolve(&name, exchange).await?;
    match connection.route(&destination, &front, &parts, exchange).await? {
        Routed::Redirect(response) => Ok(reply::of(*response, exchange)),
        Routed::To(cluster, chosen) => {
            let instance = destination.instance();
            let forward = Forward { front, parts, body, upgraded, trace, chosen, instance };
            let (call, rest) = forward.prepare(&cluster, &worker.common.limits, exchange)?;
            let response = stack::call(&cluster, call).await?;
            rest.finish(response, connection, exchange, (&name, &destination, &cluster))
        }
    }
}
