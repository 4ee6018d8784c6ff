//! The identity service: attests who asks, and signs an SVID for that identity and no other.

mod token_review;

use std::{net::IpAddr, sync::Arc, time::Duration};

use heddle_api::proto::identity::{
    IssueSvidRequest, IssueSvidResponse, TrustBundle,
    identity_server::{Identity, IdentityServer},
    issue_svid_request::Attestation,
};
use heddle_certs::{AuthorityError, Clock, SignOptions, SpiffeId, csr};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use crate::{
    authority::Signer,
    metrics::Metrics,
    pace::{Limiter, Rate},
    peer::Peer,
    tokens::{JoinTokens, NoteError, RedeemError, Revocations},
};

pub(crate) use self::token_review::TokenReviewer;
use self::token_review::{ReviewError, Reviewed};

/// Largest request; a CSR with the largest key that is accepted has below 2 KiB.
const MAX_MESSAGE: usize = 64 * 1024;
/// Join requests of one address: a node whose proxies all start anew.
const JOINS: Rate = Rate { burst: 500.0, per_second: 50.0 };
/// Renewals of one identity from one address.
const RENEWALS: Rate = Rate { burst: 200.0, per_second: 20.0 };
/// Addresses, and identities with addresses, that are kept in mind.
const MAX_PEERS: usize = 65_536;

/// How an identity was attested: by the certificate shown.
const RENEWAL: &str = "renewal";

/// The identity service.
#[derive(Debug)]
pub struct IdentityService {
    signer: Arc<Signer>,
    tokens: JoinTokens,
    /// In Kubernetes.
    reviewer: Option<TokenReviewer>,
    revocations: Revocations,
    ttl: Duration,
    clock: Arc<dyn Clock>,
    metrics: Metrics,
    joins: Limiter<IpAddr>,
    renewals: Limiter<(SpiffeId, IpAddr)>,
}

impl IdentityService {
    /// The service; SVIDs are valid for `ttl`. Without a reviewer the tokens of service accounts attest nobody.
    pub(crate) fn service(
        signer: Arc<Signer>,
        tokens: JoinTokens,
        reviewer: Option<TokenReviewer>,
        revocations: Revocations,
        ttl: Duration,
        clock: Arc<dyn Clock>,
        metrics: Metrics,
    ) -> IdentityServer<Self> {
        let service = Self {
            signer,
            tokens,
            reviewer,
            revocations,
            ttl,
            clock,
            metrics,
            joins: Limiter::new(JOINS, MAX_PEERS),
            renewals: Limiter::new(RENEWALS, MAX_PEERS),
        };
        IdentityServer::new(service).max_decoding_message_size(MAX_MESSAGE)
    }

    async fn issue(&self, peer: &Peer, request: IssueSvidRequest) -> Result<IssueSvidResponse, Refusal> {
        let (id, how) = match request.attestation {
            Some(Attestation::JoinToken(token)) => (self.join(peer, &request.csr, &token).await?, "join-token"),
            Some(Attestation::Renewal(_)) => (self.renew(peer)?, RENEWAL),
            Some(Attestation::KubernetesToken(token)) => {
                (self.review(peer, &request.csr, &token).await?, "kubernetes-token")
            }
            None => {
                let said = "an attestation is required: a join token, a service account's token, or the renewal of the certificate shown";
                return Err(Refusal("request", Status::invalid_argument(said)));
            }
        };
        let options = SignOptions::new(self.ttl, self.clock.now());
        let chain = self.signer.sign(&request.csr, &id, &options).map_err(|error| unsigned(&error))?;
        // After it is signed: if a root is taken out of the trust bundle from here on, this was before.
        if how == RENEWAL {
            self.signer.verify_again(peer).map_err(|status| Refusal("certificate", status))?;
        }
        if let Some(leaf) = chain.first() {
            let renews = (how == RENEWAL).then_some(peer);
            let end = options.now + self.ttl;
            let noted = self.revocations.issued(&id, leaf, end, renews, self.clock.now()).await;
            noted.map_err(|error| match error {
                NoteError::Revoked => Refusal("revoked", revoked(peer)),
                NoteError::TooMany => Refusal("rate", Status::unavailable(format!("{error}; try again later"))),
                NoteError::Store(_) => {
                    tracing::warn!(%error, "an issued certificate cannot be noted");
                    Refusal("store", Status::unavailable("the store cannot be written now; try again"))
                }
            })?;
        }
        let bundle = self.signer.bundle();
        self.metrics.certificates.with_label_values(&[how]).inc();
        tracing::debug!(%id, attestation = how, peer = %peer.address, "issued an SVID");
        Ok(IssueSvidResponse {
            certificate_chain: chain.iter().map(|certificate| certificate.to_vec()).collect(),
            trust_bundle: Some(TrustBundle {
                trust_domain: bundle.trust_domain().to_string(),
                epoch: bundle.epoch(),
                roots: bundle.roots().iter().map(|root| root.to_vec()).collect(),
            }),
        })
    }

    async fn join(&self, peer: &Peer, request: &[u8], token: &str) -> Result<SpiffeId, Refusal> {
        self.pace(peer)?;
        // A request that cannot be signed must not use up a token.
        let key = csr::public_key(request).map_err(|error| unsigned(&AuthorityError::Csr(error)))?;
        let redeemed = self.tokens.redeem(token, &key, self.clock.now()).await.map_err(|error| {
            let said = error.to_string();
            match error {
                RedeemError::Unknown => Refusal("token", Status::unauthenticated(said)),
                RedeemError::Expired => Refusal("token", Status::unauthenticated(said)),
                RedeemError::UsedUp => Refusal("token", Status::resource_exhausted(said)),
                RedeemError::Unavailable(source) => {
                    let source: &dyn std::error::Error = &source;
                    tracing::warn!(source, "a join token cannot be checked");
                    Refusal("store", Status::unavailable(said))
                }
            }
        })?;
        let trust_domain = self.signer.bundle().trust_domain().clone();
        SpiffeId::workload(&trust_domain, &redeemed.namespace, &redeemed.service_account).map_err(|error| {
            Refusal("token", Status::unauthenticated(format!("the join token is for no identity: {error}")))
        })
    }

    /// The identity is the service account that the API server names.
    async fn review(&self, peer: &Peer, request: &[u8], token: &str) -> Result<SpiffeId, Refusal> {
        let Some(reviewer) = &self.reviewer else {
            let said =
                "this control plane is in no Kubernetes cluster, or was started without --kubernetes; use a join token";
            return Err(Refusal("unimplemented", Status::unimplemented(said)));
        };
        self.pace(peer)?;
        csr::public_key(request).map_err(|error| unsigned(&AuthorityError::Csr(error)))?;
        let reviewed = reviewer.review(token).await.map_err(|error| match &error {
            ReviewError::Refused(_) => Refusal("token", Status::unauthenticated(error.to_string())),
            ReviewError::Unavailable(_) => Refusal("review", Status::unavailable(error.to_string())),
        })?;
        let Reviewed { namespace, service_account, pod, uid } = &reviewed;
        let trust_domain = self.signer.bundle().trust_domain().clone();
        let id = SpiffeId::workload(&trust_domain, namespace, service_account).map_err(|error| {
            Refusal(
                "token",
                Status::unauthenticated(format!("the service account's token is for no identity: {error}")),
            )
        })?;
        tracing::info!(%id, pod, uid, peer = %peer.address, "a pod proved its service account");
        Ok(id)
    }

    /// Whether one more without a certificate may ask from there.
    fn pace(&self, peer: &Peer) -> Result<(), Refusal> {
        if self.joins.allows(peer.address.ip(), Instant::now()) {
            Ok(())
        } else {
            Err(Refusal("rate", Status::unavailable("too many requests from this address; try again")))
        }
    }

    /// The identity is the one that the handshake verified; the request has no say.
    fn renew(&self, peer: &Peer) -> Result<SpiffeId, Refusal> {
        let (id, ..) = peer.workload(self.clock.now()).map_err(|status| Refusal("certificate", status))?;
        if self.revocations.is_revoked(peer, self.clock.now()) {
            return Err(Refusal("revoked", revoked(peer)));
        }
        if !self.renewals.allows((id.clone(), peer.address.ip()), Instant::now()) {
            return Err(Refusal("rate", Status::unavailable("too many renewals of this identity; try again")));
        }
        Ok(id.clone())
    }
}

/// What a peer is told whose certificate was revoked.
pub(crate) fn revoked(peer: &Peer) -> Status {
    let id = peer.certificate.as_ref().map(|certificate| certificate.id.to_string()).unwrap_or_default();
    Status::permission_denied(format!("the certificates that {id} had were revoked; join anew, with a join token"))
}

/// Why there is no SVID: a label for the metric, and what the peer is told.
#[derive(Debug)]
struct Refusal(&'static str, Status);

fn unsigned(error: &AuthorityError) -> Refusal {
    match error {
        AuthorityError::Csr(csr) => {
            Refusal("request", Status::invalid_argument(format!("the signing request is refused: {csr}")))
        }
        other => {
            tracing::error!(error = other as &dyn std::error::Error, "cannot sign");
            Refusal("authority", Status::unavailable(format!("cannot sign now: {other}")))
        }
    }
}

#[tonic::async_trait]
impl Identity for IdentityService {
    async fn issue_svid(&self, request: Request<IssueSvidRequest>) -> Result<Response<IssueSvidResponse>, Status> {
        let peer = Peer::of(&request)?;
        match self.issue(&peer, request.into_inner()).await {
            Ok(response) => Ok(Response::new(response)),
            Err(Refusal(reason, status)) => {
                self.metrics.certificates_refused.with_label_values(&[reason]).inc();
                tracing::info!(peer = %peer.address, reason, said = status.message(), "refused an SVID");
                Err(status)
            }
        }
    }
}
