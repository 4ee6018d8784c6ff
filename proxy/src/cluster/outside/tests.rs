use std::{
    io,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use futures_util::future::{join, join_all};
use tokio::{task::yield_now, time::advance};

use super::{
    lookup::{LOOKUP, MAX_LOOKUPS},
    *,
};
use crate::testing::{TestMesh, calling, run_within};

/// On a clock that is stepped.
const A_DAY: Duration = Duration::from_secs(24 * 3600);

/// A resolver that is told what to say, and counts how often it is asked.
#[derive(Default)]
struct Dns {
    asked: AtomicUsize,
    /// Asked and not answered yet.
    open: AtomicUsize,
    most_open: AtomicUsize,
    /// What it says; without anything it lets one wait.
    says: Mutex<Option<Result<Vec<SocketAddr>, String>>>,
}

impl Dns {
    fn say(&self, addresses: &[&str]) {
        let addresses = addresses.iter().map(|address| address.parse().unwrap()).collect();
        *self.says.lock().unwrap() = Some(Ok(addresses));
    }

    fn fail(&self) {
        *self.says.lock().unwrap() = Some(Err("no such host".to_owned()));
    }

    fn hang(&self) {
        *self.says.lock().unwrap() = None;
    }

    fn asked(&self) -> usize {
        self.asked.load(SeqCst)
    }

    fn answer(&self) -> io::Result<Vec<SocketAddr>> {
        self.asked.fetch_add(1, SeqCst);
        self.most_open.fetch_max(self.open.fetch_add(1, SeqCst) + 1, SeqCst);
        loop {
            if let Some(says) = self.says.lock().unwrap().clone() {
                self.open.fetch_sub(1, SeqCst);
                return says.map_err(io::Error::other);
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn outside(dns: &Arc<Dns>) -> (Outside, Discovery) {
    let discovery = Discovery::fixed(calling(Vec::new()), "shop");
    let identity = TestMesh::new().identity("web");
    let own = Arc::new(["127.0.0.1:15001".parse().unwrap()]);
    let mut outside = Outside::new(&discovery, &identity, config::Limits::default(), &Totals::default(), own);
    let dns = dns.clone();
    let asker = Rc::get_mut(&mut outside.asker).unwrap();
    asker.lookups.resolve = Arc::new(move |_, _| dns.answer());
    (outside, discovery)
}

fn name(text: &str) -> DialName {
    text.parse().unwrap()
}

fn addresses(cluster: &Cluster) -> Vec<String> {
    cluster.endpoints().endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
}

/// Lets what is under way go on, on this thread and on others, until something holds; the clock stands still.
async fn spin(what: &str, mut holds: impl FnMut() -> bool) {
    let mut turns = 0;
    while !holds() {
        turns += 1;
        assert!(turns < 10_000, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
        yield_now().await;
    }
}

/// What is known without waiting for anything.
fn at_once(outside: &Outside, name: &DialName) -> Result<Vec<String>, ErrorKind> {
    let found = outside.find(name).now_or_never().expect("it waits for DNS");
    found.map(|cluster| addresses(&cluster)).map_err(|error| error.kind)
}

#[test]
fn a_name_is_looked_up_once_however_many_wait_for_it() {
    run_within(A_DAY, async {
        tokio::time::pause();
        let dns = Arc::new(Dns::default());
        let (outside, _) = outside(&dns);
        let name = name("example.com:80");
        let all = join_all((0..20).map(|_| outside.find(&name)));
        let (found, ()) = join(all, async {
            spin("it is asked for", || dns.asked() == 1).await;
            dns.say(&["192.0.2.2:80", "192.0.2.1:80", "192.0.2.1:80"]);
        })
        .await;
        for found in found {
            assert_eq!(addresses(&found.unwrap()), ["192.0.2.1:80", "192.0.2.2:80"]);
        }
        assert_eq!(dns.asked(), 1);
    });
}

#[test]
fn what_is_known_is_used_while_it_is_looked_up_again() {
    run_within(A_DAY, async {
        tokio::time::pause();
        let dns = Arc::new(Dns::default());
        let (outside, _) = outside(&dns);
        let name = name("example.com:80");
        dns.say(&["192.0.2.1:80"]);
        let cluster = outside.find(&name).await.unwrap();
        advance(BELIEVED - Duration::from_secs(1)).await;
        assert_eq!(at_once(&outside, &name).unwrap(), ["192.0.2.1:80"]);
        assert_eq!(dns.asked(), 1);
        advance(Duration::from_secs(2)).await;
        dns.hang();
        for _ in 0..3 {
            assert_eq!(at_once(&outside, &name).unwrap(), ["192.0.2.1:80"]);
            spin("it is asked for", || dns.asked() == 2).await;
        }
        dns.say(&["192.0.2.3:80"]);
        spin("the answer is taken", || addresses(&cluster) == ["192.0.2.3:80"]).await;
        assert_eq!(at_once(&outside, &name).unwrap(), ["192.0.2.3:80"]);
        assert_eq!(dns.asked(), 2);
    });
}

#[test]
fn while_dns_fails_it_is_asked_now_and_then_and_what_it_said_before_is_used() {
    run_within(A_DAY, async {
        tokio::time::pause();
        let dns = Arc::new(Dns::default());
        let (outside, _) = outside(&dns);
        let (known, new) = (name("example.com:80"), name("example.net:80"));
        dns.say(&["192.0.2.1:80"]);
        outside.find(&known).await.unwrap();
        dns.fail();
        assert_eq!(outside.find(&new).await.err().unwrap().kind, ErrorKind::ConnectFailed);
        assert_eq!(at_once(&outside, &new), Err(ErrorKind::ConnectFailed));
        assert_eq!(dns.asked(), 2);
        let idle = |name: &DialName| outside.names.borrow()[name].state.borrow().asking.is_none();
        for (pause, asked) in
            [(16, 3), (0, 3), (1, 4), (1, 4), (1, 5), (3, 5), (1, 6), (3500, 7), (15, 7), (1, 8), (29, 8), (1, 9)]
        {
            advance(Duration::from_secs(pause)).await;
            assert_eq!(at_once(&outside, &known).unwrap(), ["192.0.2.1:80"]);
            spin("the failure is known", || dns.asked() == asked && idle(&known)).await;
        }
        dns.say(&["192.0.2.4:80"]);
        assert_eq!(addresses(&outside.find(&new).await.unwrap()), ["192.0.2.4:80"]);

        // Not for good: the address may be somebody else's by now. And then soon again.
        dns.fail();
        advance(Duration::from_secs(31)).await;
        assert_eq!(outside.find(&known).await.err().map(|error| error.kind), Some(ErrorKind::ConnectFailed));
        dns.say(&["192.0.2.5:80"]);
        advance(LONGEST_PAUSE_WITHOUT).await;
        assert_eq!(addresses(&outside.find(&known).await.unwrap()), ["192.0.2.5:80"]);
    });
}

#[test]
fn a_name_of_which_nothing_is_known_is_asked_for_again_soon() {
    run_within(A_DAY, async {
        tokio::time::pause();
        let dns = Arc::new(Dns::default());
        let (outside, _) = outside(&dns);
        let name = name("example.com:80");
        dns.fail();
        for asked in 1..20 {
            assert_eq!(outside.find(&name).await.err().unwrap().kind, ErrorKind::ConnectFailed);
            assert_eq!(dns.asked(), asked);
            assert_eq!(at_once(&outside, &name), Err(ErrorKind::ConnectFailed));
            advance(LONGEST_PAUSE_WITHOUT).await;
        }
        dns.say(&["192.0.2.1:80"]);
        outside.find(&name).await.unwrap();
    });
}

#[test]
fn lookups_are_bounded_and_end_in_time() {
    run_within(A_DAY, async {
        tokio::time::pause();
        let dns = Arc::new(Dns::default());
        let (outside, _) = outside(&dns);
        let names: Vec<_> = (0..40).map(|n| name(&format!("n{n}.example.com:80"))).collect();
        let all = join_all(names.iter().map(|name| outside.find(name)));
        let (found, ()) = join(all, async {
            spin("as many are asked as may be", || dns.open.load(SeqCst) == MAX_LOOKUPS).await;
            advance(LOOKUP + Duration::from_secs(1)).await;
        })
        .await;
        for found in found {
            assert_eq!(found.err().unwrap().kind, ErrorKind::ConnectFailed);
        }
        // Those that nobody waits for hold their places until they are done.
        assert_eq!(dns.asked(), MAX_LOOKUPS);
        let failures = |name: &DialName| outside.names.borrow()[name].state.borrow().failures;
        let failed = names.iter().filter(|name| failures(name) > 0).count();
        assert_eq!(failed, MAX_LOOKUPS, "what was never asked for has not failed");
        dns.say(&["192.0.2.1:80"]);
        advance(Duration::from_secs(1)).await;
        for found in join_all(names.iter().map(|name| outside.find(name))).await {
            found.unwrap();
        }
        assert_eq!(dns.most_open.load(SeqCst), MAX_LOOKUPS);
    });
}

#[test]
fn names_are_bounded_and_forgotten_when_nobody_calls_them() {
    run_within(A_DAY, async {
        tokio::time::pause();
        let dns = Arc::new(Dns::default());
        let (outside, _) = outside(&dns);
        for n in 0..2 * MAX_NAMES {
            let name = name(&format!("192.0.2.1:{}", n + 1));
            assert_eq!(addresses(&outside.find(&name).await.unwrap()), [name.to_string()]);
            advance(Duration::from_millis(1)).await;
        }
        assert_eq!(outside.names.borrow().len(), MAX_NAMES);
        assert!(outside.names.borrow().contains_key(&name(&format!("192.0.2.1:{}", 2 * MAX_NAMES))));
        assert!(!outside.names.borrow().contains_key(&name(&format!("192.0.2.1:{MAX_NAMES}"))));
        assert_eq!(dns.asked(), 0, "there is nothing to ask");
        outside.sweep(Instant::now());
        assert_eq!(outside.names.borrow().len(), MAX_NAMES);
        let kept = name("192.0.2.1:2000");
        let cluster = outside.find(&kept).await.unwrap();
        let request = cluster.limit.request().unwrap();
        advance(FORGET + Duration::from_secs(2)).await;
        outside.sweep(Instant::now());
        assert_eq!(outside.names.borrow().keys().collect::<Vec<_>>(), [&kept], "it is in use");
        drop(request);
        outside.sweep(Instant::now());
        assert!(outside.names.borrow().is_empty());
    });
}

#[test]
fn what_leads_into_the_mesh_or_back_is_refused_whenever_that_is_known() {
    run_within(A_DAY, async {
        tokio::time::pause();
        let dns = Arc::new(Dns::default());
        let (outside, discovery) = outside(&dns);
        let name = name("example.com:80");
        dns.say(&["198.51.100.7:80"]);
        outside.find(&name).await.unwrap();
        let before = (*discovery.snapshot()).clone();
        let mut mesh = before.clone();
        Arc::make_mut(mesh.mesh.as_mut().unwrap()).cidrs.push("198.51.100.0/24".parse().unwrap());
        discovery.replace(mesh);
        assert_eq!(at_once(&outside, &name), Err(ErrorKind::UnknownDestination));
        assert_eq!(dns.asked(), 1);
        discovery.replace(before);
        outside.find(&name).await.unwrap();
        // An answer that may not be used ends what was before.
        for (address, refused) in
            [("10.42.1.1:80", ErrorKind::UnknownDestination), ("127.0.0.1:15001", ErrorKind::Loop)]
        {
            advance(Duration::from_secs(60)).await;
            dns.say(&["192.0.2.1:80", address]);
            let _ = outside.find(&name).await;
            spin("the answer is known", || at_once(&outside, &name) == Err(refused)).await;
        }
    });
}
