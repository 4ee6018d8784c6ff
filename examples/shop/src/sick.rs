//! A service that is ill on purpose, so that one can watch what its callers do about it.

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
};

use crate::service::Refusal;

/// What a sick instance does with every request, its health check excepted: it believes itself well.
#[derive(clap::ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sick {
    /// Answers 500 at once.
    Errors,
    /// Never answers.
    Hang,
}

impl Sick {
    /// Makes a router sick.
    pub(crate) fn infect(self, router: Router) -> Router {
        tracing::warn!(sick = ?self, "this instance is sick");
        router.layer(middleware::from_fn_with_state(self, suffer))
    }
}

async fn suffer(State(sick): State<Sick>, request: Request, next: Next) -> Response {
    if request.uri().path() == "/healthz" {
        return next.run(request).await;
    }
    match sick {
        Sick::Errors => Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "this instance is sick").into_response(),
        Sick::Hang => std::future::pending().await,
    }
}
