//! What X.509-SVID asks of a single certificate, whoever signed it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use webpki::EndEntityCert;
use x509_parser::{
    certificate::X509Certificate,
    der_parser::Oid,
    extensions::{GeneralName, KeyUsage, ParsedExtension},
    oid_registry::{
        OID_X509_EXT_BASIC_CONSTRAINTS, OID_X509_EXT_EXTENDED_KEY_USAGE, OID_X509_EXT_KEY_USAGE,
        OID_X509_EXT_SUBJECT_ALT_NAME,
    },
    prelude::FromDer,
};

use super::{Role, VerifyError};
use crate::SpiffeId;

/// A certificate that keeps the rules for leaves.
#[derive(Clone, Debug)]
pub struct Leaf {
    /// Whom it names.
    pub id: SpiffeId,
    /// Not valid before this.
    pub not_before: SystemTime,
    /// Not valid after this.
    pub not_after: SystemTime,
}

/// A certificate that keeps the rules for signing certificates.
#[derive(Clone, Debug)]
pub struct Signing {
    /// Not valid before this.
    pub not_before: SystemTime,
    /// Not valid after this.
    pub not_after: SystemTime,
    /// How many intermediates may follow it.
    pub path_len: Option<u32>,
}

/// Reads a leaf. Its validity is for the caller to judge, who knows the time.
pub fn leaf(der: &CertificateDer<'_>) -> Result<Leaf, VerifyError> {
    const ROLE: Role = Role::Leaf;
    let certificate = parse(der, ROLE)?;

    let san = extension(&certificate, &OID_X509_EXT_SUBJECT_ALT_NAME, ROLE)?;
    let (uris, san_critical) = match san {
        Some((ParsedExtension::SubjectAlternativeName(san), critical)) => (uris(&san.general_names, ROLE)?, critical),
        Some(_) => return Err(VerifyError::Malformed { role: ROLE }),
        None => (Vec::new(), false),
    };
    let [uri] = uris[..] else {
        return Err(VerifyError::UriSans { count: uris.len() });
    };
    let webpki = EndEntityCert::try_from(der).map_err(|_| VerifyError::Malformed { role: ROLE })?;
    if !webpki.valid_uri_names().eq([uri]) {
        return Err(VerifyError::Malformed { role: ROLE });
    }
    let id: SpiffeId = uri.parse().map_err(|source| VerifyError::SpiffeId { role: ROLE, source })?;
    if id.path().is_empty() {
        return Err(VerifyError::LeafWithoutPath { id });
    }
    if !san_critical && certificate.subject().iter().next().is_none() {
        return Err(VerifyError::SanNotCritical);
    }

    if is_ca(&certificate, ROLE)?.is_some() {
        return Err(VerifyError::LeafIsCa);
    }
    let usage = key_usage(&certificate, ROLE)?;
    if usage.key_cert_sign() {
        return Err(VerifyError::LeafWithKeyCertSign);
    }
    if usage.crl_sign() {
        return Err(VerifyError::LeafWithCrlSign);
    }
    if !usage.digital_signature() {
        return Err(VerifyError::LeafWithoutDigitalSignature);
    }
    match extension(&certificate, &OID_X509_EXT_EXTENDED_KEY_USAGE, ROLE)? {
        None => {}
        Some((ParsedExtension::ExtendedKeyUsage(purposes), _)) => {
            // anyExtendedKeyUsage does not stand in for either: both MUST be set.
            if !purposes.server_auth {
                return Err(VerifyError::ExtendedKeyUsage { missing: "serverAuth" });
            }
            if !purposes.client_auth {
                return Err(VerifyError::ExtendedKeyUsage { missing: "clientAuth" });
            }
        }
        Some(_) => return Err(VerifyError::Malformed { role: ROLE }),
    }

    let (not_before, not_after) = validity(&certificate);
    Ok(Leaf { id, not_before, not_after })
}

/// Reads a signing certificate: a root or an intermediate.
pub fn signing(der: &CertificateDer<'_>) -> Result<Signing, VerifyError> {
    const ROLE: Role = Role::Signing;
    let certificate = parse(der, ROLE)?;
    let Some(path_len) = is_ca(&certificate, ROLE)? else {
        return Err(VerifyError::SigningNotCa);
    };
    if !key_usage(&certificate, ROLE)?.key_cert_sign() {
        return Err(VerifyError::SigningWithoutKeyCertSign);
    }

    // It need not be an SVID itself: an enterprise CA may carry no URI, or one of another scheme. That
    // its trust domain is the leaves' is a SHOULD, and what binds roots to a trust domain is the bundle.
    let uris = match extension(&certificate, &OID_X509_EXT_SUBJECT_ALT_NAME, ROLE)? {
        Some((ParsedExtension::SubjectAlternativeName(san), _)) => uris(&san.general_names, ROLE)?,
        Some(_) => return Err(VerifyError::Malformed { role: ROLE }),
        None => Vec::new(),
    };
    let is_spiffe = |uri: &&&str| uri.get(..7).is_some_and(|scheme| scheme.eq_ignore_ascii_case("spiffe:"));
    if let Some(uri) = uris.iter().find(is_spiffe) {
        if uris.len() > 1 {
            return Err(VerifyError::UriSans { count: uris.len() });
        }
        let id: SpiffeId = uri.parse().map_err(|source| VerifyError::SpiffeId { role: ROLE, source })?;
        if !id.path().is_empty() {
            return Err(VerifyError::SigningWithPath { id });
        }
    }

    let (not_before, not_after) = validity(&certificate);
    Ok(Signing { not_before, not_after, path_len })
}

fn parse<'a>(der: &'a CertificateDer<'_>, role: Role) -> Result<X509Certificate<'a>, VerifyError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(VerifyError::Malformed { role }),
    }
}

/// An extension and whether it is critical; refused if it is there twice.
///
/// The convenience methods of `X509Certificate` are not used, since some of them take an extension
/// that cannot be parsed for one that is not there.
fn extension<'c, 'a>(
    certificate: &'c X509Certificate<'a>,
    oid: &Oid<'_>,
    role: Role,
) -> Result<Option<(&'c ParsedExtension<'a>, bool)>, VerifyError> {
    let found = certificate.get_extension_unique(oid).map_err(|_| VerifyError::Malformed { role })?;
    Ok(found.map(|extension| (extension.parsed_extension(), extension.critical)))
}

/// Every URI among the names. A name that cannot be read is refused: it could be one.
fn uris<'a>(names: &[GeneralName<'a>], role: Role) -> Result<Vec<&'a str>, VerifyError> {
    let mut uris = Vec::new();
    for name in names {
        match name {
            GeneralName::URI(uri) => uris.push(*uri),
            GeneralName::Invalid(..) => return Err(VerifyError::Malformed { role }),
            _ => {}
        }
    }
    Ok(uris)
}

/// `None` for `cA` false; else the path length constraint.
fn is_ca(certificate: &X509Certificate<'_>, role: Role) -> Result<Option<Option<u32>>, VerifyError> {
    match extension(certificate, &OID_X509_EXT_BASIC_CONSTRAINTS, role)? {
        None => Ok(None),
        Some((ParsedExtension::BasicConstraints(constraints), _)) => {
            Ok(constraints.ca.then_some(constraints.path_len_constraint))
        }
        Some(_) => Err(VerifyError::Malformed { role }),
    }
}

fn key_usage<'c>(certificate: &'c X509Certificate<'_>, role: Role) -> Result<&'c KeyUsage, VerifyError> {
    match extension(certificate, &OID_X509_EXT_KEY_USAGE, role)? {
        Some((ParsedExtension::KeyUsage(usage), true)) => Ok(usage),
        Some((ParsedExtension::KeyUsage(_), false)) => Err(VerifyError::KeyUsageNotCritical { role }),
        Some(_) => Err(VerifyError::Malformed { role }),
        None => Err(VerifyError::KeyUsageMissing { role }),
    }
}

fn validity(certificate: &X509Certificate<'_>) -> (SystemTime, SystemTime) {
    let time = |timestamp: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(timestamp).unwrap_or(0));
    let validity = certificate.validity();
    (time(validity.not_before.timestamp()), time(validity.not_after.timestamp()))
}
