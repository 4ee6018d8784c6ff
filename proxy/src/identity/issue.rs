//! One request for a certificate: key and CSR made here, signed there.

use std::{path::Path, time::Duration};

use heddle_api::proto::identity::{
    IssueSvidRequest, Renewal, identity_client::IdentityClient, issue_svid_request::Attestation as Sent,
};
use heddle_certs::{CertificateDer, PrivateKeyDer, Svid, TrustBundle, TrustDomain, csr};

use super::Identity;
use crate::{
    config::{Join, Proof, Secret},
    control_plane::{ControlPlane, causes},
};

/// Longest wait for the control plane's signature.
const ISSUE_TIMEOUT: Duration = Duration::from_secs(15);

/// How the identity is proved.
#[derive(Clone, Debug)]
pub(crate) enum Attestation {
    /// By a token: that of the join file, or that of the pod's service account.
    Token(Proof),
    /// By the SVID that is to be renewed.
    Held(Svid),
}

/// A certificate, with the roots that the control plane named beside it.
#[derive(Debug)]
pub(crate) struct Issued {
    /// The new SVID.
    pub svid: Svid,
    /// The roots.
    pub bundle: TrustBundle,
}

/// Why none was issued.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IssueError {
    /// The control plane does not believe the proof: trying the same again is of no use.
    #[error("the control plane refuses: {0}")]
    Refused(String),
    /// It may work later.
    #[error("{0}")]
    Failed(String),
}

/// Issues certificates; a seam for tests of the renewal.
pub(crate) trait Issue: Send {
    /// A new key and its certificate.
    fn issue(&mut self, attestation: Attestation) -> impl Future<Output = Result<Issued, IssueError>> + Send;
}

/// Asks the control plane.
pub(crate) struct Issuer {
    /// Where.
    pub control_plane: ControlPlane,
    /// Who asks.
    pub identity: Identity,
    /// First roots, and who the certificate must be for.
    pub join: Join,
    /// What a try without an answer asked with: the control plane counts a token's uses by key, and
    /// may have counted that one.
    pub asked: Option<(PrivateKeyDer<'static>, Vec<u8>)>,
}

impl Issue for Issuer {
    async fn issue(&mut self, attestation: Attestation) -> Result<Issued, IssueError> {
        tokio::time::timeout(ISSUE_TIMEOUT, self.issue_unbounded(attestation))
            .await
            .unwrap_or_else(|_| Err(IssueError::Failed(format!("no answer within {} s", ISSUE_TIMEOUT.as_secs()))))
    }
}

impl Issuer {
    async fn issue_unbounded(&mut self, attestation: Attestation) -> Result<Issued, IssueError> {
        let failed = |error: &dyn std::error::Error| IssueError::Failed(causes(error));
        let roots = self.identity.control_plane_roots(&self.join.trust_anchors);
        let expected = self.join.identity.clone();
        let held = match &attestation {
            Attestation::Token(_) => None,
            Attestation::Held(svid) => Some(svid),
        };
        let channel = self.control_plane.connect(held, &roots).await.map_err(|error| failed(&error))?;
        let (key, csr) = match self.asked.take() {
            Some(asked) => asked,
            None => csr::generate().map_err(|error| failed(&error))?,
        };
        let proof = match attestation {
            Attestation::Token(Proof::JoinToken(Secret(token))) => Sent::JoinToken(token),
            Attestation::Token(Proof::ServiceAccountToken(file)) => Sent::KubernetesToken(read(&file).await?),
            Attestation::Held(_) => Sent::Renewal(Renewal {}),
        };
        self.asked = Some((key.clone_key(), csr.clone()));
        let request = IssueSvidRequest { csr, attestation: Some(proof) };
        let answer = match IdentityClient::new(channel).issue_svid(request).await {
            Ok(answer) => answer.into_inner(),
            Err(status) => return Err(refusal(&status)),
        };
        self.asked = None;
        let chain = answer.certificate_chain.into_iter().map(CertificateDer::from).collect();
        let svid = Svid::from_der(chain, key).map_err(|error| failed(&error))?;
        if *svid.id() != expected {
            return Err(IssueError::Refused(format!("it issued {} instead of {expected}", svid.id())));
        }
        let sent = answer.trust_bundle.ok_or_else(|| IssueError::Failed("it named no roots".to_owned()))?;
        let trust_domain = TrustDomain::new(&sent.trust_domain).map_err(|error| failed(&error))?;
        if trust_domain != *expected.trust_domain() {
            return Err(IssueError::Failed(format!("it named roots of {trust_domain}")));
        }
        let roots = sent.roots.into_iter().map(CertificateDer::from).collect();
        let bundle = TrustBundle::new(trust_domain, sent.epoch, roots).map_err(|error| failed(&error))?;
        Ok(Issued { svid, bundle })
    }
}

/// The token that is in the file now.
async fn read(file: &Path) -> Result<String, IssueError> {
    let token = tokio::fs::read_to_string(file).await;
    token.map(|token| token.trim().to_owned()).map_err(|error| {
        IssueError::Failed(format!("the token of the service account cannot be read: {}: {error}", file.display()))
    })
}

fn refusal(status: &tonic::Status) -> IssueError {
    use tonic::Code::{FailedPrecondition, InvalidArgument, PermissionDenied, ResourceExhausted, Unauthenticated};
    let said = format!("{:?}: {}", status.code(), status.message());
    match status.code() {
        Unauthenticated | PermissionDenied | InvalidArgument | FailedPrecondition | ResourceExhausted => {
            IssueError::Refused(said)
        }
        _ => IssueError::Failed(said),
    }
}
