//! Whether a document is a good object: every fault with its path, in plain words.
//!
//! First the structure, against the schemas that the OpenAPI document shows; then what a schema
//! cannot say: names, addresses, regular expressions, combinations. Whether objects fit together is
//! for who knows them all, the control plane.

mod common;
mod faults;
mod http;
mod mesh;
mod policy;
mod route;
mod service;
mod structure;
#[cfg(test)]
mod tests;

use serde_json::Value;

use self::faults::{Faults, Path};
pub use self::{
    common::{Suggest, is_dns_label, is_hostname, label},
    http::check_path,
    structure::{Shape, form_fault},
};
use crate::{
    problem::Fault,
    resource::{AnyObject, ObjectKind},
};

/// Why a document is no good object. Never without faults.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// It has not the form that the schema of its kind says.
    #[error("it has not the form of its kind")]
    Structure(Vec<Fault>),
    /// It has the form, and means nothing that could be done.
    #[error("it has the form of its kind, but cannot be meant")]
    Meaning(Vec<Fault>),
}

impl Invalid {
    /// Everything that is wrong, by path.
    pub fn faults(&self) -> &[Fault] {
        match self {
            Self::Structure(faults) | Self::Meaning(faults) => faults,
        }
    }

    /// The same.
    pub fn into_faults(self) -> Vec<Fault> {
        match self {
            Self::Structure(faults) | Self::Meaning(faults) => faults,
        }
    }
}

/// Reads a document as an object. With a kind, it must be of that kind.
pub fn object(document: &Value, expected: Option<ObjectKind>) -> Result<AnyObject, Invalid> {
    let kind = kind(document, expected).map_err(|fault| Invalid::Structure(vec![fault]))?;
    let findings = structure::check(kind, document);
    if findings.is_empty() {
        return match read(kind, document) {
            Ok(object) => match meaning(&object) {
                faults if faults.is_empty() => Ok(object),
                faults => Err(Invalid::Meaning(faults)),
            },
            Err(fault) => Err(Invalid::Structure(vec![fault])),
        };
    }
    // What is left without the faulty parts may have faults of its own: tell them at once, too. (No
    // list may be longer than the schema allows, as some checks compare all with all.)
    let rest = structure::prune(document, &findings);
    let more = read(kind, &rest).map_or_else(|_| Vec::new(), |object| meaning(&object));
    let is_new = |fault: &Fault| findings.iter().all(|finding| !finding.covers(fault));
    let mut faults: Vec<_> = more.into_iter().filter(is_new).collect();
    faults.extend(findings.into_iter().map(|finding| finding.fault));
    faults.sort();
    Err(Invalid::Structure(faults))
}

/// What is wrong with an object whose structure is right.
pub fn meaning(object: &AnyObject) -> Vec<Fault> {
    let mut faults = Faults::default();
    let root = Path::root();
    let (metadata, spec) = (root.field("metadata"), root.field("spec"));
    common::metadata(object, &metadata, &mut faults);
    match object {
        AnyObject::MeshConfig(object) => mesh::check(&object.spec, &spec, &mut faults),
        AnyObject::Service(object) => service::check_service(&object.spec, &spec, &mut faults),
        AnyObject::Workload(object) => service::check_workload(&object.spec, &spec, &mut faults),
        AnyObject::HttpRoute(object) => route::check_http(&object.spec, &spec, &mut faults),
        AnyObject::GrpcRoute(object) => route::check_grpc(&object.spec, &spec, &mut faults),
        AnyObject::TcpRoute(object) => route::check_tcp(&object.spec, &spec, &mut faults),
        AnyObject::TrafficPolicy(object) => policy::check_traffic(&object.spec, &spec, &mut faults),
        AnyObject::AuthorizationPolicy(object) => policy::check_authorization(&object.spec, &spec, &mut faults),
    }
    faults.finish()
}

fn kind(document: &Value, expected: Option<ObjectKind>) -> Result<ObjectKind, Fault> {
    let Some(fields) = document.as_object() else {
        return Err(Fault::new(
            "",
            format!(
                "is {}; an object with apiVersion, kind, metadata and spec is wanted",
                structure::describe(document)
            ),
        ));
    };
    let known = || ObjectKind::ALL.iter().map(|kind| kind.as_str());
    let kind = match fields.get("kind") {
        None => match expected {
            // The schema tells that it is missing, together with all else.
            Some(expected) => return Ok(expected),
            None => return Err(Fault::new("kind", format!("is missing; one of {}", common::list(known())))),
        },
        Some(Value::String(kind)) => kind,
        Some(other) => {
            return Err(Fault::new(
                "kind",
                format!("is {}; text is wanted, one of {}", structure::describe(other), common::list(known())),
            ));
        }
    };
    match (ObjectKind::from_kind(kind), expected) {
        (Some(kind), None) => Ok(kind),
        (Some(kind), Some(expected)) if kind == expected => Ok(kind),
        (_, Some(expected)) => Err(Fault::new("kind", format!("is {kind:?}; here it must be {:?}", expected.as_str()))),
        (None, None) => {
            let hint = Suggest::for_word(kind, known());
            Err(Fault::new("kind", format!("{kind:?} is no kind{hint} (the kinds are {})", common::list(known()))))
        }
    }
}

/// Into the type; what the schema missed becomes a fault like all others.
fn read(kind: ObjectKind, document: &Value) -> Result<AnyObject, Fault> {
    AnyObject::from_value(kind, document.clone()).map_err(|_| structure::explain_type_error(kind, document))
}
