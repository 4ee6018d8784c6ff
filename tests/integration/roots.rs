//! Another root, while traffic goes on.

use std::{net::SocketAddr, process::Output, sync::Arc, time::Duration};

use heddle_certs::{Authority, AuthorityPem, SignOptions, SpiffeId, Svid, SystemClock, TrustBundle, TrustDomain, tls};
use heddle_tests::{eventually, mesh::Mesh};
use rustls::pki_types::ServerName;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::world::{ECHO, World, calling};

#[tokio::test(flavor = "multi_thread")]
async fn the_root_is_replaced_without_a_lost_request_and_the_old_one_is_refused() {
    let mut world = World::with(&["--svid-ttl", "30s", "--lease", "6s"], ECHO).await;
    let late = world.mesh.proxy("test", calling("stranger")).await;
    let td = TrustDomain::new("heddle.local").expect("a trust domain");
    // Whoever took a copy of the old authority makes certificates as they please.
    let thief = authority(&world.mesh, &td);
    let id = SpiffeId::workload(&td, "test", "client").expect("an identity");
    let options = SignOptions::new(Duration::from_secs(3600), std::time::SystemTime::now());
    let stolen = thief.issue(&id, &options).expect("a certificate");

    let stop = CancellationToken::new();
    let traffic: Vec<_> = (0..4)
        .map(|_| {
            let (client, stop) = (world.client.client(), stop.clone());
            tokio::spawn(async move {
                let (mut answered, mut lost) = (0, Vec::new());
                while !stop.is_cancelled() {
                    match client.get("http://echo.test/").send().await {
                        Ok(response) if response.status().is_success() => answered += 1,
                        other => lost.push(format!("{other:?}")),
                    }
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                (answered, lost)
            })
        })
        .collect();

    // One that does not answer holds up the next step; it is named.
    late.process.signal(rustix::process::Signal::STOP);
    done(&world.mesh, &["root", "prepare"]).await;
    let refused = heddle(&world.mesh, &["root", "activate"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("test/stranger-1"), "{said}");
    assert!(said.contains("away since `prepare`") && said.contains("new join file"), "{said}");
    let twice = heddle(&world.mesh, &["root", "prepare"]).await;
    assert!(!twice.status.success());
    // One that only calls is not known again before it is back.
    again(&mut world.mesh).await;
    let refused = heddle(&world.mesh, &["root", "activate"]).await;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("has just started"), "{said}");
    late.process.signal(rustix::process::Signal::CONT);
    let both = status(&world.mesh).await;
    assert_eq!((both["phase"].as_str(), both["epoch"].as_u64()), (Some("prepared"), Some(2)), "{both:#}");
    let anchors = both["trustAnchors"].as_str().expect("roots");
    let both = TrustBundle::from_pem(td.clone(), 2, anchors.as_bytes()).expect("roots");
    assert_eq!(both.roots().len(), 2);
    eventually(
        "every proxy to have the new root, and the certificates of before to end",
        Duration::from_secs(120),
        || async {
            let tried = heddle(&world.mesh, &["root", "activate"]).await;
            if tried.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&tried.stderr).into_owned()) }
        },
    )
    .await;
    done(&world.mesh, &["root", "activate"]).await;
    again(&mut world.mesh).await;
    assert_eq!(status(&world.mesh).await["phase"], "activated");
    let inbound = world.server.addresses.inbound;
    let answer = ask(&stolen, &both, inbound).await.expect("the old root is trusted still");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    eventually("the certificates of the old root to end", Duration::from_secs(120), || async {
        let tried = heddle(&world.mesh, &["root", "retire"]).await;
        if tried.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&tried.stderr).into_owned()) }
    })
    .await;
    again(&mut world.mesh).await;
    eventually("the old root to be refused", Duration::from_secs(10), || async {
        match ask(&stolen, &both, inbound).await {
            Ok(answer) => Err(answer),
            Err(_) => Ok(()),
        }
    })
    .await;
    let now = status(&world.mesh).await;
    assert_eq!((now["phase"].as_str(), now["epoch"].as_u64()), (Some("steady"), Some(3)), "{now:#}");
    // Long enough for a round of certificates of the root that is alone now.
    tokio::time::sleep(Duration::from_secs(22)).await;
    stop.cancel();
    for one in traffic {
        let (answered, lost) = one.await.expect("no panic");
        assert!(answered > 100 && lost.is_empty(), "{answered} answered, {} lost: {:?}", lost.len(), lost.first());
    }
    let proxies = heddle(&world.mesh, &["status", "--check"]).await;
    assert!(proxies.status.success(), "{}", String::from_utf8_lossy(&proxies.stdout));
}

/// Kills the control plane and starts it again.
async fn again(mesh: &mut Mesh) {
    mesh.kill_control_plane();
    mesh.start_control_plane().await;
}

async fn heddle(mesh: &Mesh, arguments: &[&str]) -> Output {
    let mut command = mesh.cli(arguments);
    tokio::task::spawn_blocking(move || command.output().expect("heddle runs")).await.expect("no panic")
}

async fn done(mesh: &Mesh, arguments: &[&str]) -> String {
    let output = heddle(mesh, arguments).await;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

async fn status(mesh: &Mesh) -> Value {
    serde_json::from_str(&done(mesh, &["root", "status", "-o", "json"]).await).expect("JSON")
}

/// The control plane's authority, from its data folder.
fn authority(mesh: &Mesh, td: &TrustDomain) -> Authority {
    let path = mesh.folder.path().join("control-plane/authority.json");
    let file: Value = serde_json::from_slice(&std::fs::read(path).expect("the authority")).expect("JSON");
    let text = |name: &str| file[name].as_str().unwrap_or_else(|| panic!("no {name}")).to_owned();
    let pem = AuthorityPem {
        epoch: 1,
        roots_pem: text("rootsPem"),
        issuer_chain_pem: text("issuerChainPem"),
        issuer_key_pem: text("issuerKeyPem"),
        root_key_pem: None,
        prepared: None,
    };
    Authority::from_pem(td.clone(), &pem).expect("an authority")
}

/// A request of a peer that shows this certificate.
async fn ask(svid: &Svid, roots: &TrustBundle, inbound: SocketAddr) -> Result<String, std::io::Error> {
    let echo = SpiffeId::workload(roots.trust_domain(), "test", "echo").expect("an identity");
    let config = tls::client_config(Some(svid), roots, echo.into(), &[b"heddle-h1"], SystemClock::shared());
    let connector = TlsConnector::from(Arc::new(config.expect("a configuration")));
    let name = ServerName::try_from("p80.echo.test.heddle").expect("a name");
    let mut stream = connector.connect(name, TcpStream::connect(inbound).await?).await?;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: echo.test\r\nconnection: close\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}
