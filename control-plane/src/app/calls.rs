//! What holds for calls to the mesh listener before their service sees them.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use heddle_api::proto::{
    identity::identity_server::IdentityServer, registration::registration_server::RegistrationServer,
};
use heddle_certs::Clock;
use tokio::time::timeout;
use tonic::{Status, server::NamedService};

use crate::{
    authority::Signer,
    identity::{IdentityService, revoked},
    peer::Peer,
    registration::{LONGEST_WAIT, Registrations},
    tokens::Revocations,
};

/// Time to sign a certificate, the time to send the request included.
const IDENTITY: Duration = Duration::from_secs(10);
/// Time to register or, besides its own wait, to deregister.
const REGISTRATION: Duration = Duration::from_secs(5);

/// A call without certificate can be for a certificate only, and none but discovery takes longer than it must.
pub(super) async fn limit(
    State((signer, revocations, clock)): State<(Arc<Signer>, Revocations, Arc<dyn Clock>)>,
    request: Request,
    next: Next,
) -> Response {
    let service = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
    let is_identity = service == IdentityServer::<IdentityService>::NAME;
    let within = if is_identity {
        Some(IDENTITY)
    } else if service == RegistrationServer::<Registrations>::NAME {
        Some(LONGEST_WAIT + REGISTRATION)
    } else {
        None
    };
    let verified = request.extensions().get::<Peer>().filter(|peer| peer.certificate.is_some());
    // Before anything of its body is taken in. Whoever asks for a certificate may have a join token.
    match verified {
        _ if is_identity => {}
        None => return status(&Status::unauthenticated("a client certificate of this mesh is required")),
        Some(peer) if revocations.is_revoked(peer, clock.now()) => return status(&revoked(peer)),
        Some(peer) => {
            if let Err(distrusted) = signer.verify_again(peer) {
                return status(&distrusted);
            }
        }
    }
    match within {
        None => next.run(request).await,
        Some(within) => match timeout(within, next.run(request)).await {
            Ok(response) => response,
            Err(_) => status(&Status::deadline_exceeded("the request took too long")),
        },
    }
}

fn status(status: &Status) -> Response {
    status.clone().into_http::<axum::body::Body>().into_response()
}
