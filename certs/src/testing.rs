//! Certificates to judge, good ones and ones with a single fault, made with rcgen alone so that they
//! owe nothing to the code under test.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};

use crate::{Svid, TrustBundle, TrustDomain};

pub(crate) const ID: &str = "spiffe://td.test/ns/shop/sa/orders";
pub(crate) const DAY: Duration = Duration::from_secs(86_400);

pub(crate) const KEY_USAGE: &[u64] = &[2, 5, 29, 15];
pub(crate) const SUBJECT_ALT_NAME: &[u64] = &[2, 5, 29, 17];
pub(crate) const BASIC_CONSTRAINTS: &[u64] = &[2, 5, 29, 19];
pub(crate) const EXTENDED_KEY_USAGE: &[u64] = &[2, 5, 29, 37];

pub(crate) fn now() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

pub(crate) fn td() -> TrustDomain {
    TrustDomain::new("td.test").unwrap()
}

/// A root, an intermediate under it, and what is not to be repeated in each test.
pub(crate) struct Ca {
    pub(crate) root: CertificateDer<'static>,
    pub(crate) root_issuer: Issuer<'static, KeyPair>,
    pub(crate) intermediate: CertificateDer<'static>,
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::with(|_| {}, |_| {})
    }

    pub(crate) fn with(
        root: impl FnOnce(&mut CertificateParams),
        intermediate: impl FnOnce(&mut CertificateParams),
    ) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = signing_params("root");
        root(&mut params);
        let root = params.self_signed(&key).unwrap().der().clone();
        let root_issuer = Issuer::new(params, key);
        let (intermediate, issuer) = signed(&root_issuer, "intermediate", intermediate);
        Self { root, root_issuer, intermediate, issuer }
    }

    pub(crate) fn bundle(&self) -> TrustBundle {
        TrustBundle::new(td(), 1, vec![self.root.clone()]).unwrap()
    }

    /// A leaf under the intermediate.
    pub(crate) fn leaf(&self, change: impl FnOnce(&mut CertificateParams)) -> CertificateDer<'static> {
        leaf(&self.issuer, change).0
    }

    pub(crate) fn svid(&self, change: impl FnOnce(&mut CertificateParams)) -> Svid {
        let (leaf, key) = leaf(&self.issuer, change);
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        Svid::from_der(vec![leaf, self.intermediate.clone()], key).unwrap()
    }
}

pub(crate) fn signing_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.subject_alt_names = vec![uri("spiffe://td.test")];
    params.not_before = (now() - DAY).into();
    params.not_after = (now() + 30 * DAY).into();
    params
}

/// A signing certificate under `issuer`.
pub(crate) fn signed(
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
    let key = KeyPair::generate().unwrap();
    let mut params = signing_params(name);
    change(&mut params);
    let certificate = params.signed_by(&key, issuer).unwrap().der().clone();
    (certificate, Issuer::new(params, key))
}

/// A leaf that keeps every rule, but for what `change` does to it.
pub(crate) fn leaf(
    issuer: &Issuer<'_, KeyPair>,
    change: impl FnOnce(&mut CertificateParams),
) -> (CertificateDer<'static>, KeyPair) {
    let key = KeyPair::generate().unwrap();
    let mut params = leaf_params();
    change(&mut params);
    (params.signed_by(&key, issuer).unwrap().der().clone(), key)
}

pub(crate) fn leaf_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.subject_alt_names = vec![uri(ID)];
    params.not_before = (now() - DAY).into();
    params.not_after = (now() + DAY).into();
    params
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// An extension by hand, for what rcgen would not write.
pub(crate) fn extension(oid: &[u64], critical: bool, content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(oid, content.to_vec());
    extension.set_criticality(critical);
    extension
}

/// GeneralNames with these URIs, as bytes of a SAN extension.
pub(crate) fn san_of_uris(uris: &[&[u8]]) -> Vec<u8> {
    let names: Vec<u8> = uris.iter().flat_map(|uri| [&[0x86, uri.len() as u8], *uri].concat()).collect();
    [&[0x30, names.len() as u8], &names[..]].concat()
}
