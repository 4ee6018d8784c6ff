//! The Kubernetes cluster that the mesh lives in, if it lives in one.
//!
//! [`connect`] makes the one client of its API server that the control plane has.

use std::{fmt, path::PathBuf};

use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};

/// How the API server is reached, and as whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access {
    /// From a pod of the cluster, by its service account.
    InCluster,
    /// By the current context of a kubeconfig file.
    Kubeconfig(PathBuf),
}

/// Why there is no client. Whether the API server answers is not asked.
#[derive(Debug, thiserror::Error)]
pub enum AccessError {
    /// Not in a pod, or in one without a service account's token.
    #[error(
        "setting kubernetes: this is no pod of a cluster with a service account's token; outside of one, set kubeconfig"
    )]
    InCluster(#[source] kube::config::InClusterError),
    /// The file cannot be used.
    #[error("setting kubeconfig: {} cannot be used", file.display())]
    Kubeconfig {
        /// Which.
        file: PathBuf,
        /// Why.
        source: kube::config::KubeconfigError,
    },
    /// What they say cannot be used.
    #[error("no client of the Kubernetes API server can be made")]
    Client(#[source] kube::Error),
}

/// The cluster's API server. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
}

impl Cluster {
    /// A client of the API server.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").finish_non_exhaustive()
    }
}

/// Makes the client of the cluster's API server. A service account's token is read again as it is renewed.
pub async fn connect(access: &Access) -> Result<Cluster, AccessError> {
    let config = match access {
        Access::InCluster => Config::incluster().map_err(AccessError::InCluster)?,
        Access::Kubeconfig(file) => {
            let unusable = |source| AccessError::Kubeconfig { file: file.clone(), source };
            let kubeconfig = Kubeconfig::read_from(file).map_err(unusable)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.map_err(unusable)?
        }
    };
    let client = Client::try_from(config).map_err(AccessError::Client)?;
    Ok(Cluster { client })
}

#[cfg(test)]
mod tests;
