use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use heddle_api::proto::{
    identity::{IssueSvidRequest, Renewal, identity_client::IdentityClient, issue_svid_request::Attestation},
    registration::DeregisterRequest,
    type_url,
};
use heddle_certs::{Authority, Clock, ManualClock, SignOptions, csr};
use heddle_control_plane::{
    api::{RootKeeper, RootRefusal, RootStep},
    config::written::Written,
};
use tonic::{Code, Status};

use crate::world::{Ads, ORDERS, World, trust_domain};

#[tokio::test]
async fn a_join_token_gives_an_svid_and_the_svid_renews_itself() {
    let world = World::start().await;
    let token = world.token("shop", "orders", 1).await;
    let svid = world.issue(None, Attestation::JoinToken(token.clone())).await.unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://td/ns/shop/sa/orders");
    let lifetime = svid.not_after().duration_since(SystemTime::now()).unwrap();
    assert!(lifetime > Duration::from_secs(86_000) && lifetime <= Duration::from_secs(86_400));
    let renewed = world.renew(&svid).await.unwrap();
    assert_eq!(renewed.id(), svid.id());
    assert_ne!(renewed.chain()[0], svid.chain()[0]);
    world.renew(&renewed).await.unwrap();
    let used_up = world.issue(None, Attestation::JoinToken(token)).await.unwrap_err();
    assert_eq!(used_up.code(), Code::ResourceExhausted, "{used_up}");
}

#[tokio::test]
async fn nothing_of_the_request_but_its_key_is_used() {
    let world = World::start().await;
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(vec!["control-plane.example".to_owned()]).unwrap();
    let uri = "spiffe://td/heddle/control-plane".try_into().unwrap();
    params.subject_alt_names.push(rcgen::SanType::URI(uri));
    let csr = params.serialize_request(&key).unwrap().der().to_vec();
    let token = world.token("shop", "orders", 1).await;
    let chain = world.issue_for(None, Attestation::JoinToken(token), csr).await.unwrap();
    let id = heddle_certs::verify::peer_id(&chain).unwrap();
    assert_eq!(id.as_str(), "spiffe://td/ns/shop/sa/orders");
}

#[tokio::test]
async fn a_join_whose_answer_was_lost_is_repeated_with_the_same_key() {
    let world = World::start().await;
    let token = world.token("shop", "orders", 1).await;
    let (_, csr) = csr::generate().unwrap();
    for _ in 0..3 {
        world.issue_for(None, Attestation::JoinToken(token.clone()), csr.clone()).await.unwrap();
    }
}

#[tokio::test]
async fn who_is_not_attested_gets_nothing() {
    let world = World::start().await;
    let (_, good) = csr::generate().unwrap();
    let token = world.token("shop", "orders", 1).await;
    let join = |token: &str| Some(Attestation::JoinToken(token.to_owned()));
    let mut broken = good.clone();
    let last = broken.len() - 1;
    broken[last] ^= 1;
    for (what, csr, attestation, code) in [
        ("no token", good.clone(), join(""), Code::Unauthenticated),
        ("garbage", good.clone(), join("hjt_x_y"), Code::Unauthenticated),
        ("long", good.clone(), join(&"x".repeat(10_000)), Code::Unauthenticated),
        ("another secret", good.clone(), join(&format!("{}x", &token[..token.len() - 1])), Code::Unauthenticated),
        ("no certificate", good.clone(), Some(Attestation::Renewal(Renewal {})), Code::Unauthenticated),
        ("Kubernetes", good.clone(), Some(Attestation::KubernetesToken("t".to_owned())), Code::Unimplemented),
        ("nothing", good, None, Code::InvalidArgument),
        ("no request", Vec::new(), join(&token), Code::InvalidArgument),
        ("garbage as request", vec![0x30; 500], join(&token), Code::InvalidArgument),
        ("long request", vec![0x30; 60_000], join(&token), Code::InvalidArgument),
        ("unproven key", broken, join(&token), Code::InvalidArgument),
        ("far too long", vec![0; 100_000], join(&token), Code::OutOfRange),
    ] {
        let mut client = IdentityClient::new(world.connect(None).await.unwrap());
        let status = client.issue_svid(IssueSvidRequest { csr, attestation }).await.expect_err(what);
        assert_eq!(status.code(), code, "{what}: {status}");
    }
    world.issue(None, Attestation::JoinToken(token)).await.expect("no refusal used the token up");
}

#[tokio::test]
async fn a_certificate_of_another_authority_does_not_get_past_the_handshake() {
    let world = World::start().await;
    let other = Authority::create(trust_domain(), SystemTime::now()).unwrap();
    let id = "spiffe://td/ns/shop/sa/orders".parse().unwrap();
    let forged = other.issue(&id, &SignOptions::new(Duration::from_secs(600), SystemTime::now())).unwrap();
    // In TLS 1.3 a client learns that it was refused with its first read.
    if let Ok(channel) = world.connect(Some(&forged)).await {
        let request =
            IssueSvidRequest { csr: csr::generate().unwrap().1, attestation: Some(Attestation::Renewal(Renewal {})) };
        let status = IdentityClient::new(channel).issue_svid(request).await.unwrap_err();
        assert!(matches!(status.code(), Code::Unavailable | Code::Unknown), "{status:?}");
    }
}

#[tokio::test]
async fn the_control_planes_own_identity_is_not_renewed_for_others() {
    // Whoever had a copy of its key must not turn it into a lasting one.
    let clock = ManualClock::new(SystemTime::now());
    let world = World::start_with(Written::default(), Arc::new(clock.clone())).await;
    let text = std::fs::read_to_string(world.folder.path().join("data/authority.json")).unwrap();
    let rest: serde_json::Value = serde_json::from_str(&text).unwrap();
    let field = |name: &str| rest[name].as_str().unwrap().to_owned();
    let pem = heddle_certs::AuthorityPem {
        epoch: 1,
        roots_pem: field("rootsPem"),
        issuer_chain_pem: field("issuerChainPem"),
        issuer_key_pem: field("issuerKeyPem"),
        ..heddle_certs::AuthorityPem::default()
    };
    let authority = Authority::from_pem(trust_domain(), &pem).unwrap();
    let id = heddle_certs::SpiffeId::control_plane(&trust_domain());
    let stolen = authority.issue(&id, &SignOptions::new(Duration::from_secs(600), clock.now())).unwrap();
    assert_eq!(world.renew(&stolen).await.unwrap_err().code(), Code::PermissionDenied);
}

#[tokio::test]
async fn a_connection_is_worth_nothing_once_its_certificate_has_expired() {
    let clock = ManualClock::new(SystemTime::now());
    let written = Written { svid_ttl: Some("10s".to_owned()), ..Written::default() };
    let world = World::start_with(written, Arc::new(clock.clone())).await;
    world.apply(ORDERS).await;
    let svid = world.join("orders").await;
    let mut client = IdentityClient::new(world.connect(Some(&svid)).await.unwrap());
    let mut renew = async || {
        let attestation = Some(Attestation::Renewal(Renewal {}));
        client.issue_svid(IssueSvidRequest { csr: csr::generate().unwrap().1, attestation }).await
    };
    renew().await.unwrap();
    clock.advance(Duration::from_secs(30));
    let status = renew().await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains("expired"), "{status}");
}

#[tokio::test]
async fn a_join_token_expires() {
    let clock = ManualClock::new(SystemTime::now());
    let world = World::start_with(Written::default(), Arc::new(clock.clone())).await;
    let token = world.token("shop", "orders", 1).await;
    clock.advance(Duration::from_secs(601));
    let status = world.issue(None, Attestation::JoinToken(token)).await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert!(status.message().contains("expired"), "{status}");
}

#[tokio::test]
async fn a_revoked_certificate_is_not_renewed_and_opens_nothing() {
    let world = World::start().await;
    world.apply(ORDERS).await;
    let (stolen, other) = (world.join("orders").await, world.join("payments").await);
    let mut ads = world.discover(&stolen, "orders-1").await;
    ads.subscribe(type_url::SERVICE, &["shop/orders"]).await;
    ads.acknowledged().await;
    world.app.revocations().revoke("shop", "orders", "test", world.clock.now()).await.unwrap();
    let is_refused = |status: Status| {
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().contains("were revoked"), "{status}");
    };
    is_refused(ads.end().await);
    is_refused(world.renew(&stolen).await.unwrap_err());
    let mut ads = Ads::open(world.connect(Some(&stolen)).await.unwrap(), "orders-1").await;
    is_refused(match &mut ads {
        Ok(ads) => ads.end().await,
        Err(status) => status.clone(),
    });
    let deregister = DeregisterRequest { workload: "orders-1".to_owned(), wait_milliseconds: 0 };
    is_refused(world.registration(&stolen).await.deregister(deregister).await.unwrap_err());
    world.renew(&other).await.unwrap();

    // Who joins anew goes on, and its renewals with it, after a restart too.
    let joined = world.join("orders").await;
    let renewed = world.renew(&joined).await.unwrap();
    let world = world.restart().await;
    is_refused(world.renew(&stolen).await.unwrap_err());
    world.renew(&renewed).await.unwrap();
    let mut ads = world.discover(&renewed, "orders-1").await;
    ads.subscribe(type_url::SERVICE, &["shop/orders"]).await;
    ads.acknowledged().await;
}

#[tokio::test]
async fn a_root_that_is_retired_takes_its_certificates_along_on_open_connections_too() {
    let clock = ManualClock::new(SystemTime::now());
    let world = World::start_with(Written::default(), Arc::new(clock.clone())).await;
    world.apply(ORDERS).await;
    let roots = Arc::clone(world.app.roots());
    let step = |step, force| {
        let roots = Arc::clone(&roots);
        async move { tokio::task::spawn_blocking(move || roots.step(step, force)).await.unwrap() }
    };
    // Of the old root; with it connections are made before that is retired.
    let old = world.join("orders").await;
    let mut old_stream = world.discover(&old, "shop/orders-1").await;
    let mut old_client = IdentityClient::new(world.connect(Some(&old)).await.unwrap());
    let mut old_renews = async || {
        let attestation = Some(Attestation::Renewal(Renewal {}));
        old_client.issue_svid(IssueSvidRequest { csr: csr::generate().unwrap().1, attestation }).await
    };
    old_renews().await.unwrap();
    step(RootStep::Prepare, false).await.unwrap();
    // Nobody that has not applied it is known, but whoever is away may have a certificate for a day.
    let refused = step(RootStep::Activate, false).await.unwrap_err();
    assert!(matches!(&refused, RootRefusal::Conflict(why) if why.contains("since `prepare`")), "{refused:?}");
    step(RootStep::Activate, true).await.unwrap();
    step(RootStep::Activate, false).await.expect("it signs already");
    let refused = step(RootStep::Retire, false).await.unwrap_err();
    assert!(matches!(&refused, RootRefusal::Conflict(why) if why.contains("the old root")), "{refused:?}");
    old_renews().await.unwrap();
    let new = world.renew(&old).await.unwrap();
    let mut new_stream = world.discover(&new, "shop/orders-2").await;
    step(RootStep::Retire, true).await.unwrap();
    let status = old_renews().await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(status.message().contains("no longer of a root"), "{status}");
    assert_eq!(old_stream.end().await.code(), Code::Unauthenticated);
    world.renew(&new).await.unwrap();
    assert!(new_stream.is_quiet().await);
    let retired = step(RootStep::Retire, false).await.expect("it is retired already");
    assert_eq!(retired.epoch, 3);
}
