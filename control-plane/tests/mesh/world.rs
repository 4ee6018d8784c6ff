//! A control plane, and what a proxy says to it.

use std::{path::Path, sync::Arc, time::Duration};

use heddle_api::{
    proto::{
        ads::{
            DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status as RpcStatus,
            aggregated_discovery_service_client::AggregatedDiscoveryServiceClient,
        },
        identity::{IssueSvidRequest, Renewal, identity_client::IdentityClient, issue_svid_request::Attestation},
        registration::registration_client::RegistrationClient,
    },
    resource::{AnyObject, Name, ObjectKind},
};
use heddle_certs::{CertificateDer, Clock, SpiffeId, Svid, SystemClock, TrustBundle, TrustDomain, csr, tls};
use heddle_control_plane::{
    api::RootKeeper,
    app::App,
    config::{Config, written::Written},
    registry::{Author, Operation},
    tokens::{JoinTokens, NewJoinToken},
};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::{net::TcpStream, sync::mpsc, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    transport::{Channel, Endpoint, Uri},
};

/// Longest wait for anything.
pub const SOON: Duration = Duration::from_secs(20);

pub const ORDERS: &str = "{kind: Service, metadata: {name: orders}, spec: {ports: [{port: 80}]}}";
pub const PAYMENTS: &str = "{kind: Service, metadata: {name: payments}, spec: {ports: [{port: 80}]}}";

pub struct World {
    pub folder: tempfile::TempDir,
    pub app: App,
    pub clock: Arc<dyn Clock>,
}

impl World {
    pub async fn start() -> Self {
        Self::start_with(Written::default(), SystemClock::shared()).await
    }

    pub async fn start_with(written: Written, clock: Arc<dyn Clock>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let app = App::start_at(config(folder.path(), written), Arc::clone(&clock)).await.unwrap();
        Self { folder, app, clock }
    }

    /// Stops it, and starts it with the same data at the same addresses.
    pub async fn restart(self) -> Self {
        let Self { folder, app, clock } = self;
        let addresses = app.addresses().clone();
        app.shutdown().await;
        let written = Written {
            api: Some(addresses.api.to_string()),
            mesh: Some(addresses.mesh.to_string()),
            ..Written::default()
        };
        let app = App::start_at(config(folder.path(), written), Arc::clone(&clock)).await.unwrap();
        Self { folder, app, clock }
    }

    /// Applies objects of a YAML stream; `apiVersion` and the namespace `shop` are filled in.
    pub async fn apply(&self, yaml: &str) {
        let operations = objects(yaml).map(|object| Operation::Apply { object, expected: None }).collect();
        self.app.registry().apply(operations, &author(), false).await.unwrap();
    }

    pub async fn delete(&self, kind: ObjectKind, name: &str) {
        let operation = Operation::Delete { kind, name: Name::new("shop", name), expected: None };
        self.app.registry().apply(vec![operation], &author(), false).await.unwrap();
    }

    pub async fn token(&self, namespace: &str, account: &str, uses: u32) -> String {
        let tokens = JoinTokens::new(Arc::clone(self.app.registry().store()));
        let new = NewJoinToken {
            namespace: namespace.to_owned(),
            service_account: account.to_owned(),
            ttl: Duration::from_secs(600),
            uses,
        };
        tokens.create(new, self.clock.now()).await.unwrap().1
    }

    /// The roots, as the join file of a proxy has them.
    pub fn roots(&self) -> TrustBundle {
        let pem = self.app.roots().status().trust_anchors;
        TrustBundle::from_pem(trust_domain(), 1, pem.as_bytes()).unwrap()
    }

    pub async fn connect(&self, svid: Option<&Svid>) -> Result<Channel, tonic::transport::Error> {
        let expected = SpiffeId::control_plane(&trust_domain());
        let config =
            tls::client_config(svid, &self.roots(), expected.into(), &[b"h2"], Arc::clone(&self.clock)).unwrap();
        let connector = TlsConnector::from(Arc::new(config));
        let address = self.app.addresses().mesh;
        let connect = tower::service_fn(move |_: Uri| {
            let connector = connector.clone();
            async move {
                let stream = TcpStream::connect(address).await?;
                let name = ServerName::try_from("control-plane").unwrap();
                connector.connect(name, stream).await.map(TokioIo::new)
            }
        });
        Endpoint::from_static("http://control-plane").connect_with_connector(connect).await
    }

    /// An SVID for `shop/<account>`.
    pub async fn join(&self, account: &str) -> Svid {
        let token = self.token("shop", account, 1).await;
        self.issue(None, Attestation::JoinToken(token)).await.unwrap()
    }

    pub async fn issue(&self, held: Option<&Svid>, attestation: Attestation) -> Result<Svid, Status> {
        let (key, csr) = csr::generate().unwrap();
        let chain = self.issue_for(held, attestation, csr).await?;
        Ok(Svid::from_der(chain, key).unwrap())
    }

    pub async fn issue_for(
        &self,
        held: Option<&Svid>,
        attestation: Attestation,
        csr: Vec<u8>,
    ) -> Result<Vec<CertificateDer<'static>>, Status> {
        let mut client = IdentityClient::new(self.connect(held).await.unwrap());
        let request = IssueSvidRequest { csr, attestation: Some(attestation) };
        let response = client.issue_svid(request).await?.into_inner();
        let roots: Vec<_> = response.trust_bundle.unwrap().roots;
        assert_eq!(roots, self.roots().roots().iter().map(|root| root.to_vec()).collect::<Vec<_>>());
        Ok(response.certificate_chain.into_iter().map(CertificateDer::from).collect())
    }

    pub async fn renew(&self, held: &Svid) -> Result<Svid, Status> {
        self.issue(Some(held), Attestation::Renewal(Renewal {})).await
    }

    pub async fn registration(&self, svid: &Svid) -> RegistrationClient<Channel> {
        RegistrationClient::new(self.connect(Some(svid)).await.unwrap())
    }

    /// A discovery stream of `shop/<workload>`.
    pub async fn discover(&self, svid: &Svid, workload: &str) -> Ads {
        Ads::open(self.connect(Some(svid)).await.unwrap(), workload).await.unwrap()
    }
}

/// A discovery stream.
pub struct Ads {
    outbound: mpsc::Sender<DeltaDiscoveryRequest>,
    inbound: Streaming<DeltaDiscoveryResponse>,
    node: Option<Node>,
}

impl Ads {
    pub async fn open(channel: Channel, workload: &str) -> Result<Self, Status> {
        let (outbound, requests) = mpsc::channel(100);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let inbound = client.delta_aggregated_resources(ReceiverStream::new(requests)).await?.into_inner();
        let node = Node { id: format!("shop/{workload}"), ..Node::default() };
        Ok(Self { outbound, inbound, node: Some(node) })
    }

    pub async fn send(&mut self, request: DeltaDiscoveryRequest) {
        let node = self.node.take().or(request.node);
        // A stream that has ended says so when it is read.
        let _ = self.outbound.send(DeltaDiscoveryRequest { node, ..request }).await;
    }

    /// Sends a request with the node that it has, if any.
    pub async fn send_with_node(&mut self, request: DeltaDiscoveryRequest) {
        self.node = None;
        let _ = self.outbound.send(request).await;
    }

    pub async fn subscribe(&mut self, type_url: &str, names: &[&str]) {
        let request = DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.iter().map(|&name| name.to_owned()).collect(),
            ..DeltaDiscoveryRequest::default()
        };
        self.send(request).await;
    }

    pub async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = timeout(SOON, self.inbound.message()).await.expect("nothing came")?;
        message.ok_or_else(|| Status::ok("ended"))
    }

    /// The next response, not answered.
    pub async fn response(&mut self) -> DeltaDiscoveryResponse {
        self.next().await.unwrap()
    }

    pub async fn answer(&mut self, response: &DeltaDiscoveryResponse, error: Option<&str>) {
        let request = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: error.map(|message| RpcStatus { code: 3, message: message.to_owned(), details: Vec::new() }),
            ..DeltaDiscoveryRequest::default()
        };
        self.send(request).await;
    }

    /// The next response, acknowledged.
    pub async fn acknowledged(&mut self) -> DeltaDiscoveryResponse {
        let response = self.response().await;
        self.answer(&response, None).await;
        response
    }

    /// How the stream ends.
    pub async fn end(&mut self) -> Status {
        loop {
            if let Err(status) = self.next().await {
                return status;
            }
        }
    }

    /// Nothing more is said for a while.
    pub async fn is_quiet(&mut self) -> bool {
        timeout(Duration::from_millis(200), self.inbound.message()).await.is_err()
    }
}

pub fn config(folder: &Path, written: Written) -> Config {
    let anywhere = || Some("127.0.0.1:0".to_owned());
    let written = Written {
        data_dir: Some(folder.join("data")),
        context_file: Some(folder.join("context.yaml")),
        api: written.api.clone().or_else(anywhere),
        mesh: written.mesh.clone().or_else(anywhere),
        health: written.health.clone().or_else(anywhere),
        trust_domain: Some("td".to_owned()),
        ..written
    };
    Config::new(written, None).unwrap()
}

pub fn trust_domain() -> TrustDomain {
    TrustDomain::new("td").unwrap()
}

/// Waits until something holds.
pub async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn objects(yaml: &str) -> impl Iterator<Item = AnyObject> {
    serde_yaml_ng::Deserializer::from_str(yaml).map(|document| {
        let mut value = serde_json::Value::deserialize(document).unwrap();
        value["apiVersion"] = "heddle.dev/v1".into();
        let kind = ObjectKind::from_kind(value["kind"].as_str().unwrap()).unwrap();
        if kind.is_namespaced() && value["metadata"]["namespace"].is_null() {
            value["metadata"]["namespace"] = "shop".into();
        }
        AnyObject::from_value(kind, value).unwrap()
    })
}

fn author() -> Author {
    Author { name: "tester".to_owned(), reason: None }
}
