//! How the proxy comes to its identity: by a join file, or in Kubernetes by the token of its service account.

use std::{
    path::{Path, PathBuf},
    str::FromStr,
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use heddle_certs::{SpiffeId, TrustBundle, TrustDomain};
use serde::Deserialize;
use serde_json::Value;

use super::{
    Join, Proof, Secret,
    file::read_text,
    meaning::parse_port,
    read::{Faults, Section},
};

/// One of the two, and not both.
pub(super) fn join(top: &mut Section, faults: &Faults) -> Option<Join> {
    if top.has("kubernetes") {
        if top.has("join") {
            top.fault("join", "is one way to an identity and kubernetes another: write one of them");
        }
        top.parse_with("join", |_| Ok(()));
        return kubernetes(top.section("kubernetes"));
    }
    // Known, so that a mistyped key is told of it.
    top.section("kubernetes").finish();
    let file = top.require("join", |file| {
        if file.is_empty() {
            Err("write the path of a join file; `heddle token create` makes one".to_owned())
        } else {
            Ok(file.to_owned())
        }
    });
    file.and_then(|file| of_file(Path::new(&file), faults))
}

fn kubernetes(mut at: Section) -> Option<Join> {
    let control_plane = at.require("controlPlane", host_port);
    let trust_domain = at.parse_with("trustDomain", domain).or_else(|| TrustDomain::new("heddle.local").ok());
    let file: Option<PathBuf> = at.require("serviceAccountToken", |file| {
        if file.is_empty() { Err("write the path of a projected token".to_owned()) } else { Ok(file.into()) }
    });
    let account = file.as_deref().and_then(|file| {
        let account = read_text(file).and_then(|token| account_of(token.trim()));
        account.map_err(|reason| at.fault("serviceAccountToken", reason)).ok()
    });
    let identity = account.zip(trust_domain.as_ref()).and_then(|((namespace, account), trust_domain)| {
        let identity = SpiffeId::workload(trust_domain, &namespace, &account);
        identity.map_err(|error| at.fault("serviceAccountToken", error)).ok()
    });
    let roots = at.require("trustRoots", |pem| {
        if pem.is_empty() { Err("write the mesh's roots, PEM".to_owned()) } else { Ok(pem.to_owned()) }
    });
    let trust_anchors = trust_domain.zip(roots).and_then(|(domain, pem)| anchors(&at, "trustRoots", domain, &pem));
    at.finish();
    let proof = Some(Proof::ServiceAccountToken(file?));
    Some(Join { control_plane: control_plane?, identity: identity?, trust_anchors: trust_anchors?, proof })
}

/// Namespace and name of the account that a token says it is of. Nothing is verified: this is what to expect of the
/// control plane, which believes nobody but the API server.
fn account_of(token: &str) -> Result<(String, String), String> {
    #[derive(Deserialize)]
    struct Claims {
        sub: String,
    }
    let right = || "this is no token of a service account; project one with audience heddle.dev".to_owned();
    let claims = token.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok()).ok_or_else(right)?;
    let claims: Claims = serde_json::from_slice(&claims).map_err(|_| right())?;
    let account = claims.sub.strip_prefix("system:serviceaccount:").and_then(|account| account.split_once(':'));
    account.map(|(namespace, name)| (namespace.to_owned(), name.to_owned())).ok_or_else(right)
}

fn host_port(text: &str) -> Result<String, String> {
    let right = || "write HOST:PORT of the control plane".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(right)?;
    parse_port(port).map_err(|_| right())?;
    if host.is_empty() || text.parse::<http::uri::Authority>().is_err() { Err(right()) } else { Ok(text.to_owned()) }
}

fn domain(text: &str) -> Result<TrustDomain, String> {
    TrustDomain::from_str(text).map_err(|error| error.to_string())
}

/// The roots that are written under `key`.
fn anchors(at: &Section, key: &str, domain: TrustDomain, pem: &str) -> Option<TrustBundle> {
    let bundle = TrustBundle::from_pem(domain, 0, pem.as_bytes());
    bundle.map_err(|error| at.fault(key, format_args!("are not right: {error}"))).ok()
}

/// Reads a join file.
fn of_file(file: &Path, faults: &Faults) -> Option<Join> {
    let tree = read_text(file).and_then(|text| {
        serde_json::from_str::<Value>(&text).map_err(|error| format!("{} is no JSON: {error}", file.display()))
    });
    let tree = match tree {
        Ok(tree) => tree,
        Err(message) => {
            faults.add("join", message);
            return None;
        }
    };
    let mut at = Section::new(format!("join {}", file.display()), tree, faults);
    // The whole answer of `POST /v1/join-tokens` may be kept as the file; these say nothing to a proxy.
    at.ignore(&["id", "namespace", "serviceAccount", "uses", "used", "created", "expires"]);
    let control_plane = at.require("controlPlane", host_port);
    let trust_domain = at.require("trustDomain", domain);
    let identity = at.require("identity", |text| {
        let identity = SpiffeId::from_str(text).map_err(|error| error.to_string())?;
        let right = "write spiffe://<trust domain>/ns/<namespace>/sa/<service account>";
        if identity.as_workload().is_none() { Err(right.to_owned()) } else { Ok(identity) }
    });
    if let (Some(trust_domain), Some(identity)) = (&trust_domain, &identity)
        && identity.trust_domain() != trust_domain
    {
        at.fault("identity", format_args!("{identity} is not of the trust domain {trust_domain}"));
    }
    let pem = at.require("trustAnchors", |pem| Ok(pem.to_owned()));
    let token = at.parse_with("token", |token| {
        if token.is_empty() {
            Err("write the token".to_owned())
        } else {
            Ok(Proof::JoinToken(Secret(token.to_owned())))
        }
    });
    let trust_anchors = trust_domain.zip(pem).and_then(|(domain, pem)| anchors(&at, "trustAnchors", domain, &pem));
    at.finish();
    Some(Join { control_plane: control_plane?, identity: identity?, trust_anchors: trust_anchors?, proof: token })
}
