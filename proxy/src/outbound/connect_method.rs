//! CONNECT on the explicit proxy port: a tunnel, which is then a connection like any captured one.

use std::rc::Rc;

use http::{HeaderValue, Request, Response, header};
use hyper::body::Incoming;
use tokio::task::spawn_local;

use super::{
    destination::{self, Name},
    request::Connection,
    serve_destination,
};
use crate::{
    body::Body,
    config::DialName,
    outcome::{Error, ErrorKind},
    serve::upgrade,
};

/// Answers a CONNECT. A destination that is not known is refused here, where the reason can be told.
pub(super) async fn serve(connection: &Rc<Connection>, mut request: Request<Incoming>) -> Response<Body> {
    let upgraded = hyper::upgrade::on(&mut request);
    let mut record = connection.arrival.record(&connection.worker.sink);
    let name = match name(&request) {
        Ok(name) => name,
        Err(error) => {
            record.fail(error.clone());
            return refuse(&error);
        }
    };
    if let Err(error) = destination::resolve(&connection.worker, &name).await {
        record.target(name.to_string());
        record.fail(error.clone());
        return refuse(&error);
    }
    let connection = connection.clone();
    spawn_local(async move {
        let Ok(stream) = upgraded.await.map(upgrade::stream) else { return };
        let Connection { worker, arrival, .. } = &*connection;
        let serving = Box::pin(serve_destination(worker, stream, Name::new(name), arrival, &mut record));
        if let Err(error) = serving.await {
            record.fail(error);
        }
    });
    Response::new(Body::empty())
}

fn name(request: &Request<Incoming>) -> Result<DialName, Error> {
    let bad = |why: String| Error::new(ErrorKind::BadRequest, why);
    let authority = request.uri().authority().ok_or_else(|| bad("CONNECT without host:port".to_owned()))?;
    if authority.port().is_none() {
        return Err(bad("CONNECT wants host:port".to_owned()));
    }
    authority.as_str().parse().map_err(|error| bad(format!("CONNECT: {error}")))
}

fn refuse(error: &Error) -> Response<Body> {
    let mut response = error.reply(false).map(Body::from);
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
}
