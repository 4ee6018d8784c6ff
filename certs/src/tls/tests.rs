use std::{
    io::{Read, Write},
    time::Duration,
};

use rcgen::{BasicConstraints, CertificateParams, IsCa};
use rustls::{
    CipherSuite, ClientConnection, Connection, Error, HandshakeKind, NamedGroup, ProtocolVersion, ServerConnection,
    pki_types::PrivatePkcs8KeyDer, sign::CertifiedKey,
};

use super::*;
use crate::{
    ManualClock, SystemClock,
    testing::{Ca, DAY, ID, leaf, now, td, uri},
    verify::{self, refusal},
};

const SERVER: &str = "spiffe://td.test/ns/shop/sa/server";
const ALPN: &[&[u8]] = &[b"heddle-h1", b"heddle-h2"];

fn id(text: &str) -> SpiffeId {
    text.parse().unwrap()
}

fn named(text: &'static str) -> impl FnOnce(&mut CertificateParams) {
    move |params| params.subject_alt_names = vec![uri(text)]
}

/// Both sides of one mesh, and a clock that both go by.
struct Mesh {
    ca: Ca,
    clock: ManualClock,
}

impl Mesh {
    fn new() -> Self {
        Self { ca: Ca::new(), clock: ManualClock::new(now()) }
    }

    fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.clock.clone())
    }

    fn server(&self, auth: ClientAuth) -> ServerConfig {
        server_config(&self.ca.svid(named(SERVER)), &self.ca.bundle(), ALPN, auth, self.clock()).unwrap()
    }

    fn client(&self, svid: Option<&Svid>, expected: &str) -> ClientConfig {
        client_config(svid, &self.ca.bundle(), id(expected).into(), ALPN, self.clock()).unwrap()
    }

    fn usual_client(&self) -> ClientConfig {
        self.client(Some(&self.ca.svid(|_| {})), SERVER)
    }
}

/// What client and server each said of a handshake that failed.
type Errors = Box<(Option<Error>, Option<Error>)>;

/// A finished handshake.
#[derive(Debug)]
struct Pair {
    client: ClientConnection,
    server: ServerConnection,
}

fn connect(client: ClientConfig, server: ServerConfig) -> Result<Pair, Errors> {
    connect_shared(&Arc::new(client), &Arc::new(server))
}

fn connect_shared(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<Pair, Errors> {
    let name = "p80.orders.shop.heddle".try_into().unwrap();
    let mut client = ClientConnection::new(Arc::clone(client), name).unwrap();
    let mut server = ServerConnection::new(Arc::clone(server)).unwrap();
    let (mut client_error, mut server_error) = (None, None);
    for _ in 0..10 {
        transfer(&mut client, &mut server, &mut server_error);
        transfer(&mut server, &mut client, &mut client_error);
    }
    if client_error.is_some() || server_error.is_some() {
        return Err(Box::new((client_error, server_error)));
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    // A client in TLS 1.3 is done before its certificate is judged, so a byte must go both ways.
    server.writer().write_all(b"!").unwrap();
    client.writer().write_all(b"?").unwrap();
    transfer(&mut client, &mut server, &mut server_error);
    transfer(&mut server, &mut client, &mut client_error);
    let mut byte = [0];
    client.reader().read_exact(&mut byte).unwrap();
    server.reader().read_exact(&mut byte).unwrap();
    Ok(Pair { client, server })
}

fn transfer<A, B, S, T>(from: &mut A, to: &mut B, error: &mut Option<Error>)
where
    A: std::ops::DerefMut<Target = rustls::ConnectionCommon<S>>,
    B: std::ops::DerefMut<Target = rustls::ConnectionCommon<T>>,
    S: rustls::SideData,
    T: rustls::SideData,
{
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut bytes = &bytes[..];
    while !bytes.is_empty() && error.is_none() {
        to.read_tls(&mut bytes).unwrap();
        *error = to.process_new_packets().err();
    }
}

/// The rule by which the client refused the server.
fn refused_by_client(result: Result<Pair, Errors>) -> VerifyError {
    let (client, _) = *result.expect_err("accepted");
    refusal(&client.expect("the client had nothing against it")).expect("a rule of ours").clone()
}

/// The rule by which the server refused the client.
fn refused_by_server(result: Result<Pair, Errors>) -> VerifyError {
    let (_, server) = *result.expect_err("accepted");
    refusal(&server.expect("the server had nothing against it")).expect("a rule of ours").clone()
}

#[test]
fn a_connection_is_mutual_post_quantum_and_in_our_order() {
    let mesh = Mesh::new();
    let pair = connect(mesh.usual_client(), mesh.server(ClientAuth::Required)).unwrap();
    for connection in [Connection::from(pair.client), Connection::from(pair.server)] {
        assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        let suite = connection.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, CipherSuite::TLS13_AES_128_GCM_SHA256);
        let group = connection.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(group, NamedGroup::X25519MLKEM768);
        assert_eq!(connection.alpn_protocol(), Some(&b"heddle-h1"[..]));
        let peer = verify::peer_id(connection.peer_certificates().unwrap()).unwrap();
        let expected = if matches!(connection, Connection::Client(_)) { SERVER } else { ID };
        assert_eq!(peer, id(expected));
    }
}

#[test]
fn no_ticket_is_sent_and_no_session_resumed() {
    let mesh = Mesh::new();
    let client = Arc::new(mesh.usual_client());
    let server = Arc::new(mesh.server(ClientAuth::Required));
    assert!(!client.enable_early_data);
    assert_eq!((server.max_early_data_size, server.send_tls13_tickets), (0, 0));
    assert!(!server.session_storage.can_cache() && !server.ticketer.enabled());
    for _ in 0..3 {
        let pair = connect_shared(&client, &server).unwrap();
        assert_eq!(pair.client.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(pair.client.tls13_tickets_received(), 0);
    }
}

/// A client that would like to resume, at a server that does not let it.
#[test]
fn a_client_that_wants_to_resume_gets_a_full_handshake() {
    let mesh = Mesh::new();
    let mut client = mesh.usual_client();
    client.resumption = Resumption::in_memory_sessions(8);
    let (client, server) = (Arc::new(client), Arc::new(mesh.server(ClientAuth::Required)));
    for _ in 0..2 {
        let pair = connect_shared(&client, &server).unwrap();
        assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Full));
    }
}

/// A server that would let clients resume, and a client that does not.
#[test]
fn a_client_does_not_resume_where_it_could() {
    let mesh = Mesh::new();
    let mut server = mesh.server(ClientAuth::Required);
    server.session_storage = rustls::server::ServerSessionMemoryCache::new(8);
    server.send_tls13_tickets = 2;
    let (client, server) = (Arc::new(mesh.usual_client()), Arc::new(server));
    for _ in 0..2 {
        let pair = connect_shared(&client, &server).unwrap();
        assert_eq!(pair.server.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[test]
fn only_tls_1_3_is_spoken() {
    let mesh = Mesh::new();
    let mut server = ServerConnection::new(Arc::new(mesh.server(ClientAuth::Required))).unwrap();
    // A TLS 1.2 ClientHello: no supported_versions, one suite, one group, one signature scheme.
    let extensions = [&[0, 10, 0, 4, 0, 2, 0, 29][..], &[0, 13, 0, 4, 0, 2, 4, 3], &[0, 11, 0, 2, 1, 0]].concat();
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0xc0, 0x2b, 1, 0, 0, extensions.len() as u8], &extensions].concat();
    let hello = [&[1, 0, 0, body.len() as u8][..], &body].concat();
    let record = [&[22, 3, 1, 0, hello.len() as u8][..], &hello].concat();
    server.read_tls(&mut &record[..]).unwrap();
    assert!(matches!(server.process_new_packets(), Err(Error::PeerIncompatible(_))));
}

#[test]
fn a_server_is_accepted_only_as_expected() {
    let mesh = Mesh::new();
    let server = || mesh.server(ClientAuth::Required);
    let other = refused_by_client(connect(mesh.client(Some(&mesh.ca.svid(|_| {})), ID), server()));
    assert_eq!(other, VerifyError::UnexpectedPeer { found: id(SERVER) });

    let with = |ids: Vec<SpiffeId>| {
        let svid = mesh.ca.svid(|_| {});
        let client = client_config(Some(&svid), &mesh.ca.bundle(), ids.into(), ALPN, mesh.clock()).unwrap();
        connect(client, server())
    };
    assert!(with(vec![id(ID), id(SERVER)]).is_ok(), "any of several");
    assert_eq!(refused_by_client(with(vec![])), VerifyError::UnexpectedPeer { found: id(SERVER) }, "none means none");
}

#[test]
fn strangers_are_refused_on_both_sides() {
    let mesh = Mesh::new();
    let stranger = Mesh::new();
    let refused = refused_by_client(connect(mesh.usual_client(), stranger.server(ClientAuth::Required)));
    assert!(matches!(refused, VerifyError::UnknownIssuer { .. } | VerifyError::Path(_)), "{refused:?}");

    // It knows and accepts the server, but proves itself with another mesh's SVID.
    let svid = stranger.ca.svid(|_| {});
    let refused = refused_by_server(connect(mesh.client(Some(&svid), SERVER), mesh.server(ClientAuth::Required)));
    assert!(matches!(refused, VerifyError::UnknownIssuer { .. } | VerifyError::Path(_)), "{refused:?}");
    let result = connect(mesh.client(Some(&svid), SERVER), mesh.server(ClientAuth::Optional));
    refused_by_server(result);
}

#[test]
fn a_client_without_certificate() {
    let mesh = Mesh::new();
    let nobody = || mesh.client(None, SERVER);
    let (_, server) = *connect(nobody(), mesh.server(ClientAuth::Required)).unwrap_err();
    assert_eq!(server, Some(Error::NoCertificatesPresented));
    for auth in [ClientAuth::Optional, ClientAuth::None] {
        let pair = connect(nobody(), mesh.server(auth)).unwrap();
        assert_eq!(pair.server.peer_certificates(), None);
    }
    // One that has a certificate is not asked for it by a server that takes none.
    let pair = connect(mesh.usual_client(), mesh.server(ClientAuth::None)).unwrap();
    assert_eq!(pair.server.peer_certificates(), None);
}

/// Offers a certificate that no `Svid` could hold.
#[derive(Debug)]
struct Unchecked(Arc<CertifiedKey>);

impl rustls::client::ResolvesClientCert for Unchecked {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl rustls::server::ResolvesServerCert for Unchecked {
    fn resolve(&self, _: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }
}

#[test]
fn the_rules_hold_in_the_handshake() {
    type Change = fn(&mut CertificateParams);
    let mesh = Mesh::new();
    let cases: &[(Change, VerifyError)] = &[
        (|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), VerifyError::LeafIsCa),
        (|p| p.subject_alt_names.push(uri("https://example.org")), VerifyError::UriSans { count: 2 }),
        (|p| p.not_after = (now() - DAY / 2).into(), VerifyError::Expired { not_after: 1_800_000_000 - 43_200 }),
        (|p| p.not_before = (now() + DAY / 2).into(), VerifyError::NotYetValid { not_before: 1_800_000_000 + 43_200 }),
    ];
    for (change, rule) in cases {
        let (certificate, key) = leaf(&mesh.ca.issuer, *change);
        let key = provider().key_provider.load_private_key(PrivatePkcs8KeyDer::from(key.serialize_der()).into());
        let chain = vec![certificate, mesh.ca.intermediate.clone()];
        let own = Arc::new(Unchecked(Arc::new(CertifiedKey::new(chain, key.unwrap()))));

        let mut client = mesh.usual_client();
        client.client_auth_cert_resolver = own.clone();
        assert_eq!(refused_by_server(connect(client, mesh.server(ClientAuth::Required))), *rule);

        let mut server = mesh.server(ClientAuth::Required);
        server.cert_resolver = own;
        assert_eq!(refused_by_client(connect(mesh.client(Some(&mesh.ca.svid(|_| {})), ID), server)), *rule);
    }
}

#[test]
fn an_expired_certificate_is_refused_in_configurations_that_were_made_before() {
    let mesh = Mesh::new();
    let long = |id| {
        move |params: &mut CertificateParams| {
            params.subject_alt_names = vec![uri(id)];
            params.not_after = (now() + 20 * DAY).into();
        }
    };
    let short_client = Arc::new(mesh.usual_client());
    let short_server = Arc::new(mesh.server(ClientAuth::Required));
    let optional = Arc::new(mesh.server(ClientAuth::Optional));
    let long_client = Arc::new(mesh.client(Some(&mesh.ca.svid(long(ID))), SERVER));
    let long_svid = mesh.ca.svid(long(SERVER));
    let auth = ClientAuth::Optional;
    let long_server = Arc::new(server_config(&long_svid, &mesh.ca.bundle(), ALPN, auth, mesh.clock()).unwrap());

    mesh.clock.set(now() + DAY);
    assert!(connect_shared(&short_client, &short_server).is_ok(), "the last second counts");
    mesh.clock.advance(Duration::from_secs(1));
    assert!(connect_shared(&long_client, &long_server).is_ok());

    // One's own, as a client: refused by itself, and not taken for a client without certificate.
    let refused = refused_by_client(connect_shared(&short_client, &long_server));
    assert!(matches!(refused, VerifyError::Own(_)), "{refused:?}");
    // One's own, as a server: it has none to show.
    for server in [&short_server, &optional] {
        let (_, error) = *connect_shared(&long_client, server).unwrap_err();
        assert!(matches!(error, Some(Error::General(_))), "{error:?}");
    }
    mesh.clock.set(now());
    assert!(connect_shared(&short_client, &short_server).is_ok(), "by the clock, and nothing else");
}

#[test]
fn no_configuration_is_made_with_a_certificate_that_is_not_valid() {
    let mesh = Mesh::new();
    let svid = mesh.ca.svid(|_| {});
    for wrong in [now() - 2 * DAY, now() + 2 * DAY] {
        mesh.clock.set(wrong);
        let server = server_config(&svid, &mesh.ca.bundle(), ALPN, ClientAuth::Required, mesh.clock());
        assert!(matches!(server, Err(TlsError::Own(VerifyError::Own(_)))));
        let client = client_config(Some(&svid), &mesh.ca.bundle(), id(SERVER).into(), ALPN, mesh.clock());
        assert!(matches!(client, Err(TlsError::Own(VerifyError::Own(_)))));
    }
}

#[test]
fn a_bundle_of_two_roots_bridges_a_rotation() {
    let (old, new) = (Mesh::new(), Mesh::new());
    let both = TrustBundle::new(td(), 2, vec![old.ca.root.clone(), new.ca.root.clone()]).unwrap();
    let svid = |mesh: &Mesh, id: &'static str| mesh.ca.svid(named(id));
    let server = |mesh: &Mesh, bundle: &TrustBundle| {
        server_config(&svid(mesh, SERVER), bundle, ALPN, ClientAuth::Required, mesh.clock()).unwrap()
    };
    let client = |mesh: &Mesh, bundle: &TrustBundle| {
        client_config(Some(&svid(mesh, ID)), bundle, id(SERVER).into(), ALPN, mesh.clock()).unwrap()
    };
    assert!(connect(client(&old, &both), server(&new, &both)).is_ok());
    assert!(connect(client(&new, &both), server(&old, &both)).is_ok());
    let only_new = new.ca.bundle();
    assert!(connect(client(&new, &only_new), server(&new, &both)).is_ok());
    assert!(connect(client(&old, &both), server(&new, &only_new)).is_err());
}

#[test]
fn without_a_common_protocol_there_is_no_connection() {
    let mesh = Mesh::new();
    let svid = mesh.ca.svid(|_| {});
    let client = client_config(Some(&svid), &mesh.ca.bundle(), id(SERVER).into(), &[b"h2"], mesh.clock()).unwrap();
    assert!(connect(client, mesh.server(ClientAuth::Required)).is_err());
}

#[test]
fn the_clock_of_the_system_is_the_usual_one() {
    let clock = SystemClock::shared();
    assert!(clock.now().duration_since(std::time::UNIX_EPOCH).unwrap() > 50 * 365 * DAY);
}
