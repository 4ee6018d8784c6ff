use std::net::IpAddr;

use heddle_certs::{Authority, SignOptions, SpiffeId, Svid, SystemClock, TrustDomain, csr, tls};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::TlsConnector;

use super::{
    admission::{Admission, Full},
    *,
};

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_source_does_not_take_the_room_of_others() {
    let admission = Arc::new(Admission::new(Room { connections: 10, unverified: 8, staying: 6, per_source: 2 }));
    let one = admission.enter(ip("10.0.0.1")).unwrap();
    let mut two = admission.enter(ip("::ffff:10.0.0.1")).unwrap();
    assert_eq!(admission.enter(ip("10.0.0.1")).unwrap_err(), Full::Source, "mapped or not, it is the same");
    let other = admission.enter(ip("10.0.0.2")).unwrap();
    // With a certificate it counts for its source no more.
    two.shook_hands(true).unwrap();
    let three = admission.enter(ip("10.0.0.1")).unwrap();
    assert_eq!(admission.enter(ip("10.0.0.1")).unwrap_err(), Full::Source);
    drop((one, two, three, other));
    let v6 = [admission.enter(ip("fd00::1")).unwrap(), admission.enter(ip("fd00::ffff:1")).unwrap()];
    assert_eq!(admission.enter(ip("fd00::2")).unwrap_err(), Full::Source, "a /64 is one source");
    let beyond = admission.enter(ip("fd00:0:0:1::2")).unwrap();
    drop((v6, beyond));
}

#[test]
fn who_shows_a_certificate_finds_room_where_others_do_not() {
    let admission = Arc::new(Admission::new(Room { connections: 10, unverified: 8, staying: 6, per_source: 100 }));
    let enter = || admission.enter(ip("10.0.0.1"));
    let mut strangers: Vec<_> = (0..6).map(|_| enter().unwrap()).collect();
    strangers.iter_mut().for_each(|place| place.shook_hands(false).unwrap());
    let mut seventh = enter().unwrap();
    assert_eq!(seventh.shook_hands(false).unwrap_err(), Full::Limit, "the rest is for handshakes");
    drop(seventh);
    // One after the other they come in.
    let known: Vec<_> = (0..4)
        .map(|_| {
            let mut place = enter().unwrap();
            place.shook_hands(true).unwrap();
            place
        })
        .collect();
    assert_eq!(enter().unwrap_err(), Full::Limit, "ten in all");
    strangers.pop();
    enter().unwrap().shook_hands(true).unwrap();
    drop((strangers, known));
    let all: Vec<_> = (0..8).map(|_| enter().unwrap()).collect();
    assert_eq!(enter().unwrap_err(), Full::Limit, "handshakes leave room for those who are through");
    drop(all);
    enter().unwrap();
}

/// A listener, a certificate of its mesh, and the bundle.
struct Mesh {
    address: SocketAddr,
    authority: Authority,
    _stop: drain::Signal,
}

impl Mesh {
    async fn start(deadlines: Deadlines) -> Self {
        let trust_domain = TrustDomain::new("td").unwrap();
        let authority = Authority::create(trust_domain.clone(), std::time::SystemTime::now()).unwrap();
        let own = svid(&authority, &SpiffeId::control_plane(&trust_domain));
        let server =
            tls::server_config(&own, authority.bundle(), &[b"h2"], tls::ClientAuth::Optional, SystemClock::shared())
                .unwrap();
        let server = Arc::new(server);
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let listener = Listener {
            name: "mesh",
            socket,
            tls: move || Arc::clone(&server),
            http: Http::Two,
            room: Room { connections: 10, unverified: 8, staying: 6, per_source: 8 },
            deadlines: Some(deadlines),
            metrics: Metrics::new().unwrap(),
        };
        let (stop, watch) = drain::channel();
        watch.spawn(listener.serve(Router::new(), watch.clone()));
        Self { address, authority, _stop: stop }
    }

    async fn connect(&self, svid: Option<&Svid>) -> tokio_rustls::client::TlsStream<TcpStream> {
        let expected = SpiffeId::control_plane(self.authority.bundle().trust_domain());
        let config =
            tls::client_config(svid, self.authority.bundle(), expected.into(), &[b"h2"], SystemClock::shared());
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::try_from("control-plane").unwrap();
        let mut stream = TlsConnector::from(Arc::new(config.unwrap())).connect(name, stream).await.unwrap();
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
        stream
    }
}

fn svid(authority: &Authority, id: &SpiffeId) -> Svid {
    let (key, request) = csr::generate().unwrap();
    let options = SignOptions::new(Duration::from_secs(600), std::time::SystemTime::now());
    Svid::from_der(authority.sign(&request, id, &options).unwrap(), key).unwrap()
}

/// Reads until the end of the connection, if that comes within a while.
async fn ends(stream: &mut tokio_rustls::client::TlsStream<TcpStream>, within: Duration) -> bool {
    let mut rest = [0; 1024];
    let end = async { while !matches!(stream.read(&mut rest).await, Ok(0) | Err(_)) {} };
    timeout(within, end).await.is_ok()
}

#[tokio::test]
async fn who_shows_no_certificate_and_asks_for_nothing_is_sent_away() {
    let deadlines = Deadlines { first_request: Duration::from_millis(300), idle: Duration::from_millis(300) };
    let mesh = Mesh::start(deadlines).await;
    let known =
        svid(&mesh.authority, &SpiffeId::workload(mesh.authority.bundle().trust_domain(), "shop", "web").unwrap());
    let mut known = mesh.connect(Some(&known)).await;
    let mut stranger = mesh.connect(None).await;
    assert!(ends(&mut stranger, Duration::from_secs(10)).await);
    assert!(!ends(&mut known, Duration::from_secs(1)).await, "a verified one may be silent");
}

#[tokio::test(start_paused = true)]
async fn who_takes_nothing_of_an_answer_is_given_up() {
    let (ours, mut theirs) = tokio::io::duplex(16);
    let mut stream = Stalled::new(ours, Duration::from_secs(30));
    stream.write_all(&[0; 16]).await.unwrap();
    let started = tokio::time::Instant::now();
    let (written, ()) = tokio::join!(stream.write_all(&[0; 16]), async {
        tokio::time::sleep(Duration::from_secs(29)).await;
        theirs.read_exact(&mut [0; 16]).await.unwrap();
    });
    written.unwrap();
    // It has taken something: the time begins anew.
    let error = stream.write_all(&[0; 16]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(started.elapsed().as_secs(), 59);
}
