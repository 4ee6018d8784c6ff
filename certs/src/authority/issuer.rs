//! A signing certificate with its key.

use std::time::{Duration, SystemTime};

use rand::RngCore;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, DnsName};
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::{AuthorityError, ISSUER_LIFETIME, LONGEST_BACKDATE, ROOT_LIFETIME, SignOptions};
use crate::{SpiffeId, TrustDomain, verify::rules};

pub(super) struct Issuer {
    /// Its own certificate, then what leads to the root, without the root; for a root, the root.
    pub(super) chain: Vec<CertificateDer<'static>>,
    /// Of the whole chain.
    pub(super) not_before: SystemTime,
    /// Of the whole chain.
    pub(super) not_after: SystemTime,
    signer: rcgen::Issuer<'static, KeyPair>,
}

impl Issuer {
    pub(super) fn create_root(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = signing_params(trust_domain, "root", now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.not_after = (now + ROOT_LIFETIME).into();
        let certificate = params.self_signed(&key)?.der().clone();
        Self::new(vec![certificate], key)
    }

    /// An intermediate under `root`, in front of an empty chain: the root is not sent along.
    pub(super) fn create_intermediate(
        root: &Self,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        root.check_validity(now)?;
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = signing_params(trust_domain, "issuer", now)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.not_before = (now - LONGEST_BACKDATE).max(root.not_before).into();
        params.not_after = (now + ISSUER_LIFETIME).min(root.not_after).into();
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &root.signer)?.der().clone();
        Self::new(vec![certificate], key)
    }

    pub(super) fn load(
        chain: Vec<CertificateDer<'static>>,
        key: &str,
        what: &'static str,
    ) -> Result<Self, AuthorityError> {
        let key = KeyPair::from_pem(key).map_err(|error| AuthorityError::Load { what, reason: error.to_string() })?;
        Self::new(chain, key)
    }

    fn new(chain: Vec<CertificateDer<'static>>, key: KeyPair) -> Result<Self, AuthorityError> {
        let broken = |reason: &str| AuthorityError::Load { what: "issuing certificates", reason: reason.to_owned() };
        let certificate = chain.first().ok_or_else(|| broken("there is none"))?;
        let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| broken("malformed"))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(broken("the first is not for the issuing key"));
        }
        let signing = chain.iter().map(rules::signing).collect::<Result<Vec<_>, _>>()?;
        let not_before = signing.iter().map(|one| one.not_before).max().ok_or_else(|| broken("there is none"))?;
        let not_after = signing.iter().map(|one| one.not_after).min().ok_or_else(|| broken("there is none"))?;
        let signer = rcgen::Issuer::from_ca_cert_der(certificate, key)?;
        Ok(Self { chain, not_before, not_after, signer })
    }

    pub(super) fn certificate(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    pub(super) fn key_pem(&self) -> String {
        self.signer.key().serialize_pem()
    }

    /// A leaf for `key` and `id`, then this issuer's chain.
    pub(super) fn sign_leaf(
        &self,
        key: &impl PublicKeyData,
        id: &SpiffeId,
        options: &SignOptions,
    ) -> Result<Vec<CertificateDer<'static>>, AuthorityError> {
        let SignOptions { ttl, now, .. } = *options;
        self.check_validity(now)?;
        if ttl < Duration::from_secs(1) {
            return Err(AuthorityError::Ttl { ttl });
        }
        let mut params = params(now);
        // With an empty subject the SAN must be critical, and rcgen makes it so.
        params.subject_alt_names = names(id, options)?;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        // In proportion to the lifetime, or a short-lived one would be due for renewal when it is made.
        params.not_before = (now - LONGEST_BACKDATE.min(ttl / 6)).max(self.not_before).into();
        params.not_after = (now + ttl).min(self.not_after).into();
        let leaf = params.signed_by(key, &self.signer)?.der().clone();
        Ok([&[leaf], &self.chain[..]].concat())
    }

    fn check_validity(&self, now: SystemTime) -> Result<(), AuthorityError> {
        if now < self.not_before {
            Err(AuthorityError::IssuerNotYetValid)
        } else if now >= self.not_after {
            Err(AuthorityError::IssuerExpired)
        } else {
            Ok(())
        }
    }
}

fn params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.not_before = (now - LONGEST_BACKDATE).into();
    params.serial_number = Some(serial_number());
    params
}

fn signing_params(trust_domain: &TrustDomain, what: &str, now: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut params = params(now);
    // Path building goes by subject, so each key needs one of its own.
    let distinct: u64 = rand::random();
    params.distinguished_name.push(DnType::OrganizationName, "Heddle");
    params.distinguished_name.push(DnType::CommonName, format!("{what} {distinct:016x}"));
    params.subject_alt_names = vec![SanType::URI(SpiffeId::authority(trust_domain).to_string().try_into()?)];
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn names(id: &SpiffeId, options: &SignOptions) -> Result<Vec<SanType>, AuthorityError> {
    let mut names = vec![SanType::URI(id.to_string().try_into()?)];
    for name in &options.dns_names {
        let checked = DnsName::try_from(name.as_str()).map_err(|_| AuthorityError::DnsName { name: name.clone() })?;
        names.push(SanType::DnsName(checked.as_ref().try_into()?));
    }
    names.extend(options.ip_addresses.iter().copied().map(SanType::IpAddress));
    Ok(names)
}

/// 127 random bits: positive, never zero, at most 20 bytes (RFC 5280 section 4.1.2.2).
fn serial_number() -> SerialNumber {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    bytes[0] = bytes[0] & 0x7f | 0x40;
    SerialNumber::from_slice(&bytes)
}
