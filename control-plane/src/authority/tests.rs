use std::{os::unix::fs::PermissionsExt, time::SystemTime};

use heddle_certs::{ManualClock, authority::ISSUER_LIFETIME};

use super::*;

struct World {
    folder: tempfile::TempDir,
    clock: ManualClock,
}

impl World {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), clock: ManualClock::new(SystemTime::now()) }
    }

    fn data(&self) -> Arc<PrivateDir> {
        Arc::new(PrivateDir::open(&self.folder.path().join("data")).unwrap())
    }

    fn open(&self, external: Option<&Path>) -> Result<Signer, AuthorityFileError> {
        let trust_domain = TrustDomain::new("td").unwrap();
        Signer::open(&trust_domain, &self.data(), external, Arc::new(self.clock.clone()), Metrics::new().unwrap())
    }

    fn sign(&self, signer: &Signer) -> Result<Svid, AuthorityError> {
        let id = "spiffe://td/ns/shop/sa/orders".parse().unwrap();
        signer.issue(&id, &SignOptions::new(Duration::from_secs(60), self.clock.now()))
    }
}

fn issuer_expiry(signer: &Signer) -> i64 {
    signer.metrics.certificate_expiry.with_label_values(&["issuer"]).get()
}

#[test]
fn it_is_made_once() {
    let world = World::new();
    let first = world.open(None).unwrap().bundle();
    let again = world.open(None).unwrap();
    assert_eq!((again.bundle().roots(), again.bundle().epoch()), (first.roots(), first.epoch()));
    world.sign(&again).unwrap();
}

#[test]
fn its_issuer_is_replaced_in_time_and_the_new_one_kept() {
    let world = World::new();
    let signer = world.open(None).unwrap();
    let expiry = issuer_expiry(&signer);
    world.clock.advance(ISSUER_LIFETIME / 2);
    signer.maintain();
    assert_eq!(issuer_expiry(&signer), expiry, "too early");
    world.clock.advance(ISSUER_LIFETIME / 4);
    signer.maintain();
    let renewed = issuer_expiry(&signer);
    assert!(renewed > expiry);
    world.clock.advance(ISSUER_LIFETIME / 2);
    world.sign(&signer).expect("the first issuer has expired");
    let bundle = signer.bundle();
    drop(signer);
    let again = world.open(None).unwrap();
    assert_eq!(issuer_expiry(&again), renewed);
    assert_eq!(again.bundle(), bundle);
}

#[test]
fn an_expired_issuer_signs_nothing_until_it_is_replaced() {
    let world = World::new();
    let signer = world.open(None).unwrap();
    world.clock.advance(ISSUER_LIFETIME + Duration::from_secs(1));
    assert_eq!(world.sign(&signer).unwrap_err(), AuthorityError::IssuerExpired);
    signer.maintain();
    world.sign(&signer).unwrap();
}

#[test]
fn one_of_another_trust_domain_is_refused() {
    let world = World::new();
    world.open(None).unwrap();
    let other = TrustDomain::new("other").unwrap();
    let opened = Signer::open(&other, &world.data(), None, Arc::new(world.clock.clone()), Metrics::new().unwrap());
    let error = opened.unwrap_err().to_string();
    assert!(error.contains("trustDomain") && error.contains("td") && error.contains("other"), "{error}");
}

#[test]
fn the_epoch_of_foreign_roots_grows_when_they_change() {
    let world = World::new();
    let theirs = world.folder.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    let put = || {
        let pem = Authority::create(TrustDomain::new("td").unwrap(), world.clock.now()).unwrap().to_pem();
        for (name, text) in
            [("roots.pem", pem.roots_pem), ("issuer.pem", pem.issuer_chain_pem), ("issuer.key", pem.issuer_key_pem)]
        {
            std::fs::write(theirs.join(name), text).unwrap();
            std::fs::set_permissions(theirs.join(name), PermissionsExt::from_mode(0o600)).unwrap();
        }
    };
    put();
    let epoch = || world.open(Some(&theirs)).unwrap().bundle().epoch();
    assert_eq!([epoch(), epoch()], [1, 1]);
    put();
    assert_eq!([epoch(), epoch()], [2, 2]);
    let signer = world.open(Some(&theirs)).unwrap();
    world.clock.advance(ISSUER_LIFETIME);
    signer.maintain();
    assert!(!world.folder.path().join("data").join(AUTHORITY).exists(), "theirs to replace");
}

#[test]
fn somebody_elses_authority_is_taken_up_when_its_files_change() {
    let world = World::new();
    let theirs = world.folder.path().join("theirs");
    std::fs::create_dir(&theirs).unwrap();
    let write = |name: &str, text: &str| {
        // As a mounted secret is replaced: another file in the place of the one before.
        std::fs::write(theirs.join("new"), text).unwrap();
        std::fs::set_permissions(theirs.join("new"), PermissionsExt::from_mode(0o600)).unwrap();
        std::fs::rename(theirs.join("new"), theirs.join(name)).unwrap();
    };
    let first = Authority::create(TrustDomain::new("td").unwrap(), world.clock.now()).unwrap();
    let pem = first.to_pem();
    write("roots.pem", &pem.roots_pem);
    write("issuer.pem", &pem.issuer_chain_pem);
    write("issuer.key", &pem.issuer_key_pem);
    let signer = world.open(Some(&theirs)).unwrap();
    let expiry = issuer_expiry(&signer);
    assert!(!signer.maintain(), "nothing changed");

    world.clock.advance(ISSUER_LIFETIME / 2);
    let renewed = first.renew_issuer(world.clock.now()).unwrap().to_pem();
    // One file after the other: in between they do not fit, and the one before goes on.
    write("issuer.pem", &renewed.issuer_chain_pem);
    assert!(!signer.maintain());
    assert_eq!((issuer_expiry(&signer), signer.metrics.authority_errors.get()), (expiry, 1));
    world.sign(&signer).unwrap();
    write("issuer.key", &renewed.issuer_key_pem);
    assert!(signer.maintain());
    assert!(issuer_expiry(&signer) > expiry);
    assert_eq!(signer.bundle().epoch(), 1, "the same roots");
    world.clock.advance(ISSUER_LIFETIME * 3 / 4);
    world.sign(&signer).expect("the first issuer has expired");

    let second = Authority::create(TrustDomain::new("td").unwrap(), world.clock.now()).unwrap().to_pem();
    write("roots.pem", &second.roots_pem);
    write("issuer.pem", &second.issuer_chain_pem);
    write("issuer.key", &second.issuer_key_pem);
    assert!(signer.maintain());
    assert_eq!(signer.bundle().epoch(), 2);
    assert_ne!(signer.bundle().roots(), first.bundle().roots());
    assert!(!signer.maintain());
    std::fs::remove_file(theirs.join("issuer.key")).unwrap();
    assert!(!signer.maintain());
    world.sign(&signer).expect("what was read is kept");
}

#[test]
fn the_root_is_replaced_in_steps_each_of_which_a_restart_finds() {
    let world = World::new();
    let phase = |signer: &Signer| signer.roots().phase;
    let first = world.open(None).unwrap();
    let old = world.sign(&first).unwrap().chain().to_vec();
    let old_root = first.bundle().roots().to_vec();
    let now = world.clock.now();
    assert!(matches!(first.activate_root(now), Err(RootError::Turn(_))));
    first.retire_roots().expect("there is one root already");
    assert_eq!((phase(&first), first.bundle().epoch()), (Phase::Steady, 1));
    let end = now + Duration::from_secs(3600);
    first.prepare_root(end).unwrap();
    assert!(matches!(first.prepare_root(now), Err(RootError::Turn(_))));
    assert!(matches!(first.retire_roots(), Err(RootError::Turn(_))));

    let bundle = first.bundle();
    drop(first);
    let prepared = world.open(None).unwrap();
    assert_eq!((phase(&prepared), prepared.bundle().epoch()), (Phase::Prepared, 2));
    let known = prepared.roots().earlier_svids_end.unwrap();
    assert!(known >= end && known < end + Duration::from_secs(2), "{known:?}");
    assert_eq!(prepared.bundle(), bundle);
    assert_eq!(world.sign(&prepared).unwrap().chain()[1], old[1], "the old issuer signs");
    // The issuer is renewed as ever, and what is prepared stays.
    world.clock.advance(ISSUER_LIFETIME * 3 / 4);
    assert!(prepared.maintain());
    let end = world.clock.now() + Duration::from_secs(3600);
    prepared.activate_root(end).unwrap();
    prepared.activate_root(end + Duration::from_secs(1000)).expect("it signs already");
    drop(prepared);

    let activated = world.open(None).unwrap();
    assert_eq!((phase(&activated), activated.bundle().epoch()), (Phase::Activated, 2));
    let known = activated.roots().earlier_svids_end.unwrap();
    assert!(known >= end && known < end + Duration::from_secs(2), "{known:?}");
    assert_eq!(activated.roots().roots.iter().map(|root| root.signs).collect::<Vec<_>>(), [false, true]);
    let new = world.sign(&activated).unwrap().chain().to_vec();
    assert_ne!(new[1], old[1]);
    activated.retire_roots().unwrap();
    activated.retire_roots().expect("it is retired already");
    drop(activated);

    let retired = world.open(None).unwrap();
    assert_eq!((phase(&retired), retired.bundle().epoch()), (Phase::Steady, 3));
    assert_eq!(retired.bundle().roots().len(), 1);
    assert!(!retired.bundle().roots().contains(&old_root[0]));
    let verifier = heddle_certs::verify::Verifier::new(retired.bundle());
    let side = heddle_certs::verify::Side::Client;
    verifier.verify(&new[0], &new[1..], side, world.clock.now()).unwrap();
    verifier.verify(&old[0], &old[1..], side, world.clock.now()).unwrap_err();
}
