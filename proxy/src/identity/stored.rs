//! The identity in the state directory.

use heddle_certs::{SpiffeId, Svid, TrustBundle, TrustDomain};

use crate::state::{StateDir, StateError};

/// Chain and key in one file, so that they always fit each other.
const SVID: &str = "svid.pem";
const BUNDLE: &str = "bundle.json";
const KEY_BEGINS: &str = "-----BEGIN PRIVATE KEY-----";

/// What an earlier process left.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    /// Of the expected identity.
    pub svid: Option<Svid>,
    /// Of the same trust domain.
    pub bundle: Option<TrustBundle>,
}

impl Stored {
    /// Reads what is there and can be used; says in the log why something cannot. `expected` is the
    /// identity that the settings name: a state directory that was another's is of no use.
    pub(crate) fn load(state: &StateDir, expected: &SpiffeId) -> Self {
        let svid = usable(SVID, load_svid(state, expected));
        let bundle = usable(BUNDLE, load_bundle(state, expected.trust_domain().clone()));
        Self { svid, bundle }
    }

    /// # Errors
    /// The old ones stay.
    pub(crate) fn save_svid(state: &StateDir, svid: &Svid) -> Result<(), StateError> {
        state.write(SVID, format!("{}{}", svid.to_pem(), svid.key_pem()).as_bytes())
    }

    /// # Errors
    /// The old one stays.
    pub(crate) fn save_bundle(state: &StateDir, bundle: &TrustBundle) -> Result<(), StateError> {
        state.write(BUNDLE, bundle.to_spiffe_json().as_bytes())
    }
}

fn usable<T>(file: &str, loaded: Result<Option<T>, String>) -> Option<T> {
    loaded.unwrap_or_else(|reason| {
        tracing::warn!(file, reason, "what the state directory holds cannot be used");
        None
    })
}

fn text(state: &StateDir, name: &str) -> Result<Option<String>, String> {
    let bytes = state.read(name).map_err(|error| error.to_string())?;
    bytes.map(|bytes| String::from_utf8(bytes).map_err(|_| "it is no text".to_owned())).transpose()
}

fn load_svid(state: &StateDir, expected: &SpiffeId) -> Result<Option<Svid>, String> {
    let Some(text) = text(state, SVID)? else { return Ok(None) };
    let (chain, key) = text.split_at(text.find(KEY_BEGINS).ok_or("it holds no key")?);
    let svid = Svid::from_pem(chain.as_bytes(), key.as_bytes()).map_err(|error| error.to_string())?;
    if svid.id() != expected {
        return Err(format!("it is of {}, not of {expected}", svid.id()));
    }
    Ok(Some(svid))
}

fn load_bundle(state: &StateDir, trust_domain: TrustDomain) -> Result<Option<TrustBundle>, String> {
    let Some(text) = text(state, BUNDLE)? else { return Ok(None) };
    TrustBundle::from_spiffe_json(trust_domain, &text).map(Some).map_err(|error| error.to_string())
}
