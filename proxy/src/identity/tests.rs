use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};

use heddle_certs::{Authority, Clock, SignOptions, SpiffeId, Svid, TrustBundle, TrustDomain};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep},
};

use super::{issue::Issued, *};
use crate::{
    config::{Proof, Secret},
    state::StateDir,
};

const HOUR: Duration = Duration::from_secs(3600);

/// The time of day as tokio's clock has it, so that both stand still and are advanced together.
#[derive(Debug)]
struct TokioClock {
    base: SystemTime,
    start: Instant,
}

impl Clock for TokioClock {
    fn now(&self) -> SystemTime {
        self.base + self.start.elapsed()
    }
}

fn clock() -> Arc<dyn Clock> {
    Arc::new(TokioClock { base: SystemTime::now(), start: Instant::now() })
}

fn td() -> TrustDomain {
    "heddle.local".parse().unwrap()
}

fn id() -> SpiffeId {
    SpiffeId::workload(&td(), "shop", "orders").unwrap()
}

/// A control plane that issues certificates of 24 h unless told otherwise, and remembers how it was
/// asked.
#[derive(Clone)]
struct FakeIssuer {
    authority: Arc<Authority>,
    clock: Arc<dyn Clock>,
    asked: Arc<Mutex<Vec<(&'static str, Duration)>>>,
    /// What to answer instead, in turn.
    answers: Arc<Mutex<VecDeque<Result<(), IssueError>>>>,
    away: Arc<Mutex<bool>>,
    start: Instant,
}

impl FakeIssuer {
    fn new(clock: &Arc<dyn Clock>) -> Self {
        Self {
            authority: Arc::new(Authority::create(td(), clock.now()).unwrap()),
            clock: Arc::clone(clock),
            asked: Arc::default(),
            answers: Arc::default(),
            away: Arc::default(),
            start: Instant::now(),
        }
    }

    fn svid(&self, ttl: Duration) -> Svid {
        self.authority.issue(&id(), &SignOptions::new(ttl, self.clock.now())).unwrap()
    }

    fn asked(&self) -> Vec<&'static str> {
        self.asked.lock().unwrap().iter().map(|(how, _)| *how).collect()
    }

    fn set_away(&self, away: bool) {
        *self.away.lock().unwrap() = away;
    }
}

impl Issue for FakeIssuer {
    async fn issue(&mut self, attestation: Attestation) -> Result<Issued, IssueError> {
        let how = match attestation {
            Attestation::Token(_) => "token",
            Attestation::Held(_) => "held",
        };
        self.asked.lock().unwrap().push((how, self.start.elapsed()));
        if *self.away.lock().unwrap() {
            return Err(IssueError::Failed("nobody there".to_owned()));
        }
        if let Some(answer) = self.answers.lock().unwrap().pop_front() {
            answer?;
        }
        Ok(Issued { svid: self.svid(24 * HOUR), bundle: self.authority.bundle().clone() })
    }
}

struct Fixture {
    issuer: FakeIssuer,
    identity: Identity,
    report: watch::Receiver<Report>,
    task: JoinHandle<()>,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn start(
    clock: &Arc<dyn Clock>,
    issuer: FakeIssuer,
    token: bool,
    held: Option<Svid>,
    state: Option<Arc<StateDir>>,
) -> Fixture {
    let identity = Identity::new(Arc::clone(clock));
    if held.is_some() {
        identity.restore(Stored { svid: held, bundle: Some(issuer.authority.bundle().clone()) }).unwrap();
    }
    renew(clock, issuer, token, identity, state)
}

fn renew(
    clock: &Arc<dyn Clock>,
    issuer: FakeIssuer,
    token: bool,
    identity: Identity,
    state: Option<Arc<StateDir>>,
) -> Fixture {
    let (report, watched) = watch::channel(Report::default());
    let renewal = Renewal {
        anchors: issuer.authority.bundle().clone(),
        issuer: issuer.clone(),
        identity: identity.clone(),
        proof: token.then(|| Proof::JoinToken(Secret("hjt_1_x".to_owned()))),
        state,
        clock: Arc::clone(clock),
        report,
    };
    Fixture { issuer, identity, report: watched, task: tokio::spawn(renewal.run()) }
}

#[tokio::test(start_paused = true)]
async fn the_token_is_used_once_and_then_the_certificate_held() {
    let clock = clock();
    let fixture = start(&clock, FakeIssuer::new(&clock), true, None, None);
    sleep(HOUR / 60).await;
    let first = fixture.identity.current().unwrap();
    assert_eq!(first.svid.id(), &id());
    // Not before it is due ...
    sleep(11 * HOUR).await;
    assert_eq!(fixture.issuer.asked(), ["token"]);
    // ... and long before it ends.
    sleep(7 * HOUR).await;
    assert_eq!(fixture.issuer.asked(), ["token", "held"]);
    let second = fixture.identity.current().unwrap();
    assert!(second.epoch > first.epoch && second.svid.not_after() > first.svid.not_after());
    // Who holds the first may finish with it.
    assert!(first.is_valid());
    assert!(first.client_config(&[id()], b"heddle-h1").is_ok());
    sleep(72 * HOUR).await;
    assert!(fixture.issuer.asked()[1..].iter().all(|how| *how == "held"));
    assert_eq!(fixture.report.borrow().failing, 0);
}

#[tokio::test(start_paused = true)]
async fn a_control_plane_that_is_away_is_tried_again_without_a_storm() {
    let clock = clock();
    let issuer = FakeIssuer::new(&clock);
    let held = issuer.svid(24 * HOUR);
    let fixture = start(&clock, issuer, true, Some(held), None);
    fixture.issuer.set_away(true);
    sleep(18 * HOUR).await;
    let (tries, report) = (fixture.issuer.asked().len() as u64, fixture.report.borrow().clone());
    assert!(report.failing == tries && (20..1000).contains(&tries), "{tries}");
    assert!(report.reason.unwrap().contains("nobody there"));
    assert!(fixture.identity.current().is_some(), "the old one is used until it ends");
    fixture.issuer.set_away(false);
    sleep(Duration::from_secs(61)).await;
    assert_eq!(fixture.report.borrow().failing, 0);
    assert!(fixture.identity.current().unwrap().svid.not_after() > clock.now() + 20 * HOUR);
    assert!(fixture.issuer.asked().iter().all(|how| *how == "held"), "a failure is no refusal");
}

#[tokio::test(start_paused = true)]
async fn an_expired_certificate_is_not_used_and_the_token_helps_out() {
    let clock = clock();
    let issuer = FakeIssuer::new(&clock);
    let held = issuer.svid(24 * HOUR);
    let fixture = start(&clock, issuer, true, Some(held), None);
    let credentials = fixture.identity.current().unwrap();
    fixture.issuer.set_away(true);
    sleep(25 * HOUR).await;
    assert!(fixture.identity.current().is_none());
    assert_eq!(credentials.client_config(&[id()], b"heddle-h1").unwrap_err().kind, ErrorKind::NoCertificate);
    fixture.issuer.set_away(false);
    sleep(Duration::from_secs(61)).await;
    assert_eq!(fixture.issuer.asked().last(), Some(&"token"));
    assert!(fixture.identity.current().is_some());
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_is_refused_falls_back_to_the_token() {
    let clock = clock();
    let issuer = FakeIssuer::new(&clock);
    let held = issuer.svid(HOUR);
    issuer.answers.lock().unwrap().push_back(Err(IssueError::Refused("who are you".to_owned())));
    let fixture = start(&clock, issuer, true, Some(held), None);
    sleep(HOUR).await;
    assert_eq!(fixture.issuer.asked(), ["held", "token"]);
    assert!(fixture.identity.current().is_some());
}

#[tokio::test(start_paused = true)]
async fn without_a_token_an_expired_certificate_says_what_to_do() {
    let clock = clock();
    let issuer = FakeIssuer::new(&clock);
    let held = issuer.svid(HOUR);
    sleep(2 * HOUR).await;
    let fixture = start(&clock, issuer, false, Some(held), None);
    sleep(HOUR).await;
    assert!(fixture.issuer.asked().is_empty());
    assert!(fixture.identity.current().is_none());
    assert!(fixture.report.borrow().reason.as_ref().unwrap().contains("heddle token create"));
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_is_found_by_the_next_process_unless_it_is_anothers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    let state = Arc::new(StateDir::open(&path).unwrap());
    let clock = clock();
    let issuer = FakeIssuer::new(&clock);
    let svid = issuer.svid(HOUR);
    Stored::save_svid(&state, &svid).unwrap();
    Stored::save_bundle(&state, issuer.authority.bundle()).unwrap();

    let stored = Stored::load(&state, &id());
    assert_eq!(stored.svid.as_ref().map(Svid::chain), Some(svid.chain()));
    assert_eq!(stored.bundle.as_ref(), Some(issuer.authority.bundle()));
    let identity = Identity::new(Arc::clone(&clock));
    identity.restore(stored).unwrap();
    assert!(identity.current().is_some());

    let other = SpiffeId::workload(&td(), "shop", "payments").unwrap();
    assert!(Stored::load(&state, &other).svid.is_none());
    for garbage in [
        "",
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ] {
        state.write("svid.pem", garbage.as_bytes()).unwrap();
        state.write("bundle.json", garbage.as_bytes()).unwrap();
        let stored = Stored::load(&state, &id());
        assert!(stored.svid.is_none() && stored.bundle.is_none(), "{garbage}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_certificate_kept_without_roots_is_renewed_at_once() {
    // As after a process that ended between the writing of the two.
    let clock = clock();
    let issuer = FakeIssuer::new(&clock);
    let identity = Identity::new(Arc::clone(&clock));
    identity.restore(Stored { svid: Some(issuer.svid(24 * HOUR)), bundle: None }).unwrap();
    assert!(identity.current().is_none(), "nobody's certificate could be verified");
    let fixture = renew(&clock, issuer, false, identity, None);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fixture.issuer.asked(), ["held"]);
    assert!(fixture.identity.current().is_some());
    sleep(HOUR).await;
    assert_eq!(fixture.issuer.asked(), ["held"], "once");
}

#[tokio::test(start_paused = true)]
async fn a_new_join_file_goes_before_what_the_state_directory_holds() {
    let clock = clock();
    let (old, new) = (FakeIssuer::new(&clock), FakeIssuer::new(&clock));
    let identity = Identity::new(Arc::clone(&clock));
    // Newer by number, but of a control plane that is no more.
    let kept = |epoch| TrustBundle::new(td(), epoch, old.authority.bundle().roots().to_vec()).unwrap();
    identity.restore(Stored { svid: Some(old.svid(24 * HOUR)), bundle: Some(kept(6)) }).unwrap();
    identity.restore_bundle(kept(7)).unwrap();
    assert_eq!(identity.bundle().unwrap().epoch(), 7);
    identity.restore_bundle(kept(5)).unwrap();
    assert_eq!(identity.bundle().unwrap().epoch(), 7, "the newer of the two");
    assert_eq!(identity.control_plane_roots(new.authority.bundle()).roots().len(), 2, "the new one's, too");
    let fixture = renew(&clock, new, true, identity, None);
    sleep(Duration::from_secs(1)).await;
    assert_eq!(fixture.issuer.asked(), ["token"], "at once");
    assert_eq!(fixture.identity.bundle().as_ref(), Some(fixture.issuer.authority.bundle()));
    assert!(fixture.identity.current().is_some());
    // What it said itself does not give way to what is read from the disk.
    fixture.identity.restore_bundle(kept(9)).unwrap();
    assert_eq!(fixture.identity.bundle().as_ref(), Some(fixture.issuer.authority.bundle()));
}

#[tokio::test(start_paused = true)]
async fn an_old_join_file_costs_no_more_than_a_try() {
    let clock = clock();
    let (old, new) = (FakeIssuer::new(&clock), FakeIssuer::new(&clock));
    let identity = Identity::new(Arc::clone(&clock));
    let bundle = Some(old.authority.bundle().clone());
    identity.restore(Stored { svid: Some(old.svid(24 * HOUR)), bundle }).unwrap();
    // The token was used before; what is held is good.
    new.answers.lock().unwrap().push_back(Err(IssueError::Refused("used".to_owned())));
    let fixture = renew(&clock, new, true, identity, None);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(fixture.issuer.asked(), ["token", "held"]);
    assert_eq!(fixture.report.borrow().failing, 0);
}

#[tokio::test(start_paused = true)]
async fn the_roots_that_are_kept_are_those_of_now() {
    let folder = tempfile::tempdir().unwrap();
    let state = StateDir::open(&folder.path().join("state")).unwrap();
    let clock = clock();
    let issuer = FakeIssuer::new(&clock);
    let identity = Identity::new(Arc::clone(&clock));
    identity.keep_bundle(&state).unwrap();
    assert!(Stored::load(&state, &id()).bundle.is_none());
    for epoch in [3, 4] {
        let roots = issuer.authority.bundle().roots().to_vec();
        identity.set_bundle(TrustBundle::new(td(), epoch, roots).unwrap()).unwrap();
    }
    identity.keep_bundle(&state).unwrap();
    assert_eq!(Stored::load(&state, &id()).bundle.unwrap().epoch(), 4);
}

#[tokio::test(start_paused = true)]
async fn roots_follow_the_control_plane_and_only_before_its_word_the_join_file() {
    let clock = clock();
    let (old, new) = (FakeIssuer::new(&clock), FakeIssuer::new(&clock));
    let anchors = new.authority.bundle().clone();
    let identity = Identity::new(Arc::clone(&clock));
    let roots = |identity: &Identity| identity.control_plane_roots(&anchors).roots().len();
    assert_eq!(roots(&identity), 1);
    let stored = Stored { svid: Some(old.svid(HOUR)), bundle: Some(old.authority.bundle().clone()) };
    identity.restore(stored).unwrap();
    assert_eq!(roots(&identity), 2, "either may be the newer");
    let epoch = identity.current().unwrap().epoch;
    let both = [old.authority.bundle().roots(), new.authority.bundle().roots()].concat();
    identity.set_bundle(TrustBundle::new(td(), 7, both).unwrap()).unwrap();
    assert_eq!(identity.current().unwrap().epoch, epoch + 1);
    identity.set_bundle(TrustBundle::new(td(), 8, old.authority.bundle().roots().to_vec()).unwrap()).unwrap();
    assert_eq!(identity.control_plane_roots(&anchors).roots(), old.authority.bundle().roots());
    // A certificate that comes with older roots than those in use does not bring them back.
    identity.set_svid(old.svid(HOUR), Some(anchors.clone())).unwrap();
    assert_eq!(identity.bundle().unwrap().epoch(), 8);
    // Nothing new is no new epoch: connections are kept.
    let epoch = identity.current().unwrap().epoch;
    identity.set_bundle(identity.bundle().unwrap()).unwrap();
    assert_eq!(identity.current().unwrap().epoch, epoch);
}

#[test]
fn a_clock_that_is_stepped_back_takes_no_certificate_out_of_use() {
    let now = SystemTime::now();
    let clock = heddle_certs::ManualClock::new(now);
    let authority = Authority::create(td(), now).unwrap();
    let identity = Identity::new(Arc::new(clock.clone()));
    // Just got, and of so short a life that it is hardly dated back.
    let svid = authority.issue(&id(), &SignOptions::new(HOUR / 60, now)).unwrap();
    identity.set_svid(svid, Some(authority.bundle().clone())).unwrap();
    let epoch = identity.current().unwrap().epoch;
    clock.set(now - HOUR);
    let credentials = identity.current().expect("peers judge it by clocks of their own");
    assert_eq!(credentials.epoch, epoch, "pooled connections stay usable");
    assert!(credentials.client_config(&[id()], b"heddle-h1").is_ok());
    identity.set_bundle(authority.prepare_root(now).unwrap().bundle().clone()).unwrap();
    assert!(identity.current().is_some(), "with other roots, too");
    clock.set(now + HOUR);
    assert!(identity.current().is_none(), "it has expired");
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_is_stepped_back_asks_for_no_certificate() {
    let now = SystemTime::now();
    let stepped = heddle_certs::ManualClock::new(now);
    let clock: Arc<dyn Clock> = Arc::new(stepped.clone());
    let fixture = start(&clock, FakeIssuer::new(&clock), true, None, None);
    sleep(HOUR / 60).await;
    assert!(fixture.identity.current().is_some());
    stepped.set(now - 48 * HOUR);
    sleep(11 * HOUR).await;
    assert_eq!(fixture.issuer.asked(), ["token"]);
    assert_eq!(fixture.report.borrow().failures, 0);
    // By a clock that is right again it is renewed as ever.
    stepped.set(now + 18 * HOUR);
    sleep(HOUR / 60).await;
    assert_eq!(fixture.issuer.asked(), ["token", "held"]);
}
