//! What session resumption would save: full mutual handshakes against resumed ones, both ends in one
//! thread, without a network.
//!
//! `cargo run --release -p heddle-certs --example handshakes [SECONDS]`

use std::{
    error::Error,
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_certs::{
    Authority, SignOptions, SpiffeId, SystemClock, TrustDomain,
    tls::{self, ClientAuth},
};
use rustix::time::{ClockId, clock_gettime};
use rustls::{
    ClientConfig, ClientConnection, ConnectionCommon, HandshakeKind, ServerConfig, ServerConnection, SideData,
    client::Resumption, crypto::aws_lc_rs::Ticketer, server::ServerSessionMemoryCache,
};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result<()> {
    let seconds = std::env::args().nth(1).map_or(Ok(5), |text| text.parse())?;
    let (client, server) = configurations()?;

    let mut stateful = (client.clone(), server.clone());
    stateful.0.resumption = Resumption::in_memory_sessions(64);
    stateful.1.session_storage = ServerSessionMemoryCache::new(64);
    stateful.1.send_tls13_tickets = 2;
    let mut stateless = (client.clone(), server.clone());
    stateless.0.resumption = Resumption::in_memory_sessions(64);
    stateless.1.ticketer = Ticketer::new()?;
    stateless.1.send_tls13_tickets = 2;

    let limit = Duration::from_secs(seconds);
    println!("{:32} {:>12} {:>16}", "", "handshakes/s", "CPU us, both ends");
    for (name, (client, server), kind) in [
        ("full (as configured)", (client, server), HandshakeKind::Full),
        ("resumed, server remembers", stateful, HandshakeKind::Resumed),
        ("resumed, encrypted tickets", stateless, HandshakeKind::Resumed),
    ] {
        let (client, server) = (Arc::new(client), Arc::new(server));
        let warm_up = Duration::from_millis(200);
        measure(&client, &server, None, warm_up)?;
        let (count, spent) = measure(&client, &server, Some(kind), limit)?;
        let each = spent.as_secs_f64() / f64::from(count);
        println!("{name:32} {:>12.0} {:>16.0}", 1.0 / each, each * 1e6);
    }
    Ok(())
}

fn configurations() -> Result<(ClientConfig, ServerConfig)> {
    let domain = TrustDomain::new("heddle.local")?;
    let now = SystemTime::now();
    let authority = Authority::create(domain.clone(), now)?;
    let day = SignOptions::new(Duration::from_secs(86_400), now);
    let caller = authority.issue(&SpiffeId::workload(&domain, "shop", "storefront")?, &day)?;
    let callee = authority.issue(&SpiffeId::workload(&domain, "shop", "orders")?, &day)?;
    let (bundle, clock) = (authority.bundle(), SystemClock::shared());
    let expected = callee.id().clone().into();
    Ok((
        tls::client_config(Some(&caller), bundle, expected, &[b"heddle-h2"], Arc::clone(&clock))?,
        tls::server_config(&callee, bundle, &[b"heddle-h2"], ClientAuth::Required, clock)?,
    ))
}

/// Handshakes done and processor time spent.
fn measure(
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
    kind: Option<HandshakeKind>,
    limit: Duration,
) -> Result<(u32, Duration)> {
    let start = processor_time();
    let mut count = 0;
    loop {
        let done = handshake(client, server)?;
        if kind.is_some_and(|kind| kind != done) {
            return Err(format!("a handshake was {done:?}").into());
        }
        count += 1;
        let spent = processor_time() - start;
        if spent >= limit {
            return Ok((count, spent));
        }
    }
}

fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<HandshakeKind> {
    let mut client = ClientConnection::new(Arc::clone(client), "p80.orders.shop.heddle".try_into()?)?;
    let mut server = ServerConnection::new(Arc::clone(server))?;
    let mut bytes = Vec::with_capacity(16 * 1024);
    // The last round takes the tickets to the client.
    while client.is_handshaking() || server.is_handshaking() || server.wants_write() {
        transfer(&mut client, &mut server, &mut bytes)?;
        transfer(&mut server, &mut client, &mut bytes)?;
    }
    server.handshake_kind().ok_or_else(|| "unfinished".into())
}

fn transfer<S: SideData, T: SideData>(
    from: &mut ConnectionCommon<S>,
    to: &mut ConnectionCommon<T>,
    bytes: &mut Vec<u8>,
) -> Result<()> {
    bytes.clear();
    while from.wants_write() {
        from.write_tls(bytes)?;
    }
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        to.read_tls(&mut rest)?;
        to.process_new_packets()?;
    }
    Ok(())
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
