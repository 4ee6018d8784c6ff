//! One try over a connection of the endpoint's pool.

use std::{
    rc::Rc,
    task::{Context, Poll},
};

use futures_util::future::LocalBoxFuture;
use http::Response;
use tower::Service;

use super::Try;
use crate::{body::Body, cluster::Cluster, headers, outcome::Error};

/// Sends tries.
#[derive(Clone)]
pub(crate) struct Send {
    cluster: Rc<Cluster>,
}

impl Send {
    pub(super) fn new(cluster: Rc<Cluster>) -> Self {
        Self { cluster }
    }
}

impl Service<Try> for Send {
    type Response = Response<Body>;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Response<Body>, Error>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, this_try: Try) -> Self::Future {
        let dial = self.cluster.dial();
        Box::pin(async move {
            let Try { mut request, context, id, number, trace, picked, pool } = this_try;
            trace.inject(request.headers_mut());
            // For peer proxies only: others do not know what it means.
            if picked.endpoint().meshed {
                headers::set_attempt(request.headers_mut(), number);
                if let Some((at, _)) = context.deadline {
                    headers::set_deadline(request.headers_mut(), at.saturating_duration_since(id.started()));
                }
            }
            if let Some(expect) = &context.expect {
                expect.listen(&mut request);
            }
            let exchange = &context.exchange;
            pool.send(request, context.carried, &dial, |via, _| exchange.connected(id, via.connect, via.peer)).await
        })
    }
}
