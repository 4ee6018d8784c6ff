//! What the four services have in common: where they listen, how they log, answer errors and stop.

use std::{fmt::Display, io::IsTerminal as _, net::SocketAddr, time::Duration};

use anyhow::Context as _;
use axum::{
    Json, Router,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde::Serialize;
use tokio::{net::TcpListener, signal::unix::SignalKind};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::sick::Sick;

/// Settings of every service.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct ServeArgs {
    /// Where to listen.
    #[arg(long, env = "SHOP_LISTEN", default_value = "127.0.0.1:8080")]
    pub(crate) listen: SocketAddr,
    /// Be ill: `errors` answers everything with 500, `hang` answers nothing.
    #[arg(long, env = "SHOP_SICK")]
    pub(crate) sick: Option<Sick>,
}

/// Logs to stderr, as `RUST_LOG` says.
pub(crate) fn init_logging() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A second call (in tests) is no error worth dying for.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
}

/// A token that is cancelled at SIGTERM or Ctrl-C.
pub(crate) fn shutdown_token() -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = tokio::signal::unix::signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let raised = token.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        raised.cancel();
    });
    Ok(token)
}

/// Serves until `stop` is cancelled, then lets the requests in flight finish, for ten seconds at most.
pub(crate) async fn serve(args: &ServeArgs, router: Router, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = TcpListener::bind(args.listen).await.with_context(|| format!("cannot listen on {}", args.listen))?;
    tracing::info!(address = %listener.local_addr()?, "serving");
    let router = match args.sick {
        Some(sick) => sick.infect(router),
        None => router,
    };
    serve_on(listener, router, stop).await
}

/// As [`serve`], on a socket that is already bound.
pub(crate) async fn serve_on(listener: TcpListener, router: Router, stop: CancellationToken) -> anyhow::Result<()> {
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    tokio::select! {
        served = server => served.context("the server failed"),
        () = async { stop.cancelled().await; tokio::time::sleep(Duration::from_secs(10)).await } => {
            tracing::warn!("some requests did not finish in time");
            Ok(())
        }
    }
}

/// An answer other than success: a status, and why in words.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    error: String,
}

impl Refusal {
    pub(crate) fn new(status: StatusCode, error: impl Display) -> Self {
        Self { status, error: error.to_string() }
    }

    pub(crate) fn invalid(error: impl Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    /// The cause goes to the log: callers have no use for it.
    pub(crate) fn internal(error: &anyhow::Error) -> Self {
        tracing::error!(error = format!("{error:#}"), "request failed");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal error")
    }
}

impl From<anyhow::Error> for Refusal {
    fn from(error: anyhow::Error) -> Self {
        Self::internal(&error)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: String,
        }
        (self.status, Json(Body { error: self.error })).into_response()
    }
}

/// `Json`, with a refusal that names the field at fault.
#[derive(Debug)]
pub(crate) struct Input<T>(pub(crate) T);

impl<T: serde::de::DeserializeOwned, S: Send + Sync> axum::extract::FromRequest<S> for Input<T> {
    type Rejection = Refusal;

    async fn from_request(request: axum::extract::Request, state: &S) -> Result<Self, Refusal> {
        match Json::<T>::from_request(request, state).await {
            Ok(Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(Refusal::new(rejection.status(), rejection.body_text())),
        }
    }
}
