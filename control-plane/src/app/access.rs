//! How the admin's token reaches the admin.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use heddle_certs::Clock;
use heddle_runtime::private_dir::PrivateDir;

use super::{ADDRESSES, Addresses, STORE, StartError};
use crate::{
    authority::Signer,
    config::Config,
    metrics::Metrics,
    store::{RedbOptions, RedbStore},
    tokens::{self, ApiTokens, BootstrapError, ContextError, WrittenContext},
};

/// At the first start, makes an admin token and writes the context with which the CLI just works.
pub(super) async fn bootstrap(
    tokens: &ApiTokens,
    config: &Config,
    addresses: &Addresses,
    signer: &Signer,
) -> Result<(), BootstrapError> {
    let write = async |token: &str| hand_over(config, addresses.api, signer, token).map(|context| tell(&context));
    tokens.bootstrap::<HandOverError>(write).await.map(|_| ())
}

/// Makes another admin token while the control plane does not run, and writes a context with it, which it returns.
///
/// # Errors
/// There is no control plane's data, it is in use, or the context cannot be written; then there is no new token.
pub async fn admin_token(config: &Config, clock: Arc<dyn Clock>) -> Result<WrittenContext, StartError> {
    let store = config.data_dir.join(STORE);
    if !store.exists() {
        return Err(StartError::NoData(config.data_dir.clone()));
    }
    let data = Arc::new(PrivateDir::open(&config.data_dir)?);
    let authority_dir = config.authority_dir.as_deref();
    let signer = Signer::open(&config.trust_domain, &data, authority_dir, clock, Metrics::new()?)?;
    // Where it listened last; a port that the system chose is not in the settings.
    let last = data.read(ADDRESSES)?.and_then(|bytes| serde_json::from_slice::<Addresses>(&bytes).ok());
    let api = last.map_or(config.api, |addresses| addresses.api);
    let tokens = ApiTokens::new(Arc::new(RedbStore::open(&store, &RedbOptions::default())?));
    let mut context = None;
    let write = async |token: &str| hand_over(config, api, &signer, token).map(|written| context = Some(written));
    tokens.another_admin::<HandOverError>(write).await?;
    Ok(context.unwrap_or_default())
}

fn hand_over(config: &Config, api: SocketAddr, signer: &Signer, token: &str) -> Result<WrittenContext, HandOverError> {
    let path = config.context_file.as_ref().ok_or(HandOverError::NoHome)?;
    let address = format!("https://{}", reachable(api));
    Ok(tokens::write_context(path, &address, &signer.bundle().to_pem(), token)?)
}

fn tell(context: &WrittenContext) {
    let WrittenContext { path, name, current, renamed } = context;
    tracing::info!(file = %path.display(), context = name, "made the admin token; `heddle` finds it there");
    if let Some((old, new)) = renamed {
        tracing::warn!(
            "context {old:?} was of another control plane at this address; it is kept, and is called {new:?} now"
        );
    }
    if let Some(current) = current {
        tracing::warn!(
            "the current context is still {current:?}, of another control plane; `heddle context use {name}` or \
             `heddle --context {name}` to use this one"
        );
    }
}

/// Why an admin token could not be handed over.
#[derive(Debug, thiserror::Error)]
enum HandOverError {
    #[error(transparent)]
    Context(#[from] ContextError),
    #[error("there is no home folder to write the admin's context to; name a file with --context-file")]
    NoHome,
}

/// An address to call where one was bound to all addresses.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    }
}
