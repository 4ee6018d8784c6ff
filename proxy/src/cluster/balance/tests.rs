//! Simulations in virtual time.

use std::collections::{BTreeMap, BinaryHeap};

use super::*;
use crate::snapshot::ServiceName;

const OUTLIER: OutlierDetection = OutlierDetection {
    consecutive_failures: 5,
    base_ejection: Duration::from_secs(10),
    max_ejection: Duration::from_secs(300),
    max_ejected_percent: 50,
};

fn endpoint(n: u8) -> Endpoint {
    Endpoint {
        address: ([10, 0, 0, n], 15006).into(),
        identities: Vec::new(),
        meshed: true,
        ports: BTreeMap::from([(80, 0)]),
        zone: String::new(),
        weight: 1,
        ready: true,
        workload: format!("shop/orders-{n}"),
        hostname: None,
    }
}

fn endpoints(list: Vec<Endpoint>) -> Endpoints {
    Endpoints {
        service: ServiceName { namespace: "shop".into(), name: "orders".into() },
        endpoints: list.into_iter().map(Arc::new).collect(),
        version: String::new(),
    }
}

fn balancer(balancing: Balancing, list: Vec<Endpoint>, now: Instant) -> Balancer {
    let mut balancer = Balancer::new(balancing, OUTLIER, 42);
    balancer.update(&endpoints(list), 80, now);
    balancer
}

fn number(picked: &Picked) -> usize {
    match picked.endpoint().address {
        SocketAddr::V4(address) => usize::from(address.ip().octets()[3]),
        SocketAddr::V6(_) => unreachable!(),
    }
}

fn millis(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Open-loop requests every `gap`; `serve` says how long endpoint n takes at a time since the start and
/// whether it succeeds. Returns how many each got (index 0: errors of `pick`).
fn simulate(
    balancer: &mut Balancer,
    start: Instant,
    gap: Duration,
    length: Duration,
    serve: impl Fn(usize, Duration) -> (Duration, Verdict),
) -> [usize; 10] {
    struct Flight(Instant, Picked, Verdict);
    impl PartialEq for Flight {
        fn eq(&self, other: &Self) -> bool {
            self.0 == other.0
        }
    }
    impl Eq for Flight {}
    impl PartialOrd for Flight {
        fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
            Some(self.cmp(other))
        }
    }
    impl Ord for Flight {
        fn cmp(&self, other: &Self) -> std::cmp::Ordering {
            other.0.cmp(&self.0)
        }
    }
    let mut counts = [0; 10];
    let mut flights = BinaryHeap::<Flight>::new();
    let mut now = start;
    while now < start + length {
        while flights.peek().is_some_and(|flight| flight.0 <= now) {
            let Flight(at, picked, verdict) = flights.pop().unwrap();
            picked.report(verdict, at);
        }
        match balancer.pick(now, &[]) {
            Ok(picked) => {
                let n = number(&picked);
                counts[n] += 1;
                let (latency, verdict) = serve(n, now - start);
                flights.push(Flight(now + latency, picked, verdict));
            }
            Err(_) => counts[0] += 1,
        }
        now += gap;
    }
    counts
}

#[tokio::test(start_paused = true)]
async fn equal_endpoints_share_alike() {
    for balancing in [Balancing::PeakEwma, Balancing::Random, Balancing::RoundRobin] {
        let now = Instant::now();
        let mut balancer = balancer(balancing, vec![endpoint(1), endpoint(2), endpoint(3)], now);
        let counts = simulate(&mut balancer, now, millis(1), millis(9_000), |_, _| (millis(10), Verdict::Success));
        for n in 1..=3 {
            assert!((2_700..3_300).contains(&counts[n]), "{balancing:?} {counts:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn weights_are_shares() {
    for balancing in [Balancing::PeakEwma, Balancing::Random, Balancing::RoundRobin] {
        let now = Instant::now();
        let heavy = Endpoint { weight: 9, ..endpoint(1) };
        let mut balancer = balancer(balancing, vec![heavy, endpoint(2)], now);
        let counts = simulate(&mut balancer, now, millis(20), millis(200_000), |_, _| (millis(10), Verdict::Success));
        assert!((8_800..9_200).contains(&counts[1]), "{balancing:?} {counts:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn round_robin_takes_turns() {
    let now = Instant::now();
    let mut balancer = balancer(Balancing::RoundRobin, vec![endpoint(1), endpoint(2), endpoint(3)], now);
    let turns: Vec<usize> = (0..9).map(|_| number(&balancer.pick(now, &[]).unwrap())).collect();
    assert_eq!(turns, [1, 2, 3, 1, 2, 3, 1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_slow_endpoint_gets_less_and_recovers() {
    let now = Instant::now();
    let mut balancer = balancer(Balancing::PeakEwma, vec![endpoint(1), endpoint(2), endpoint(3)], now);
    let slow = |n: usize, _| (if n == 3 { millis(500) } else { millis(10) }, Verdict::Success);
    let counts = simulate(&mut balancer, now, millis(2), millis(60_000), slow);
    assert!(counts[3] < 1_500 && counts[3] > 2, "30 000 requests, an even share would be 10 000: {counts:?}");
    let later = now + millis(60_000);
    let counts = simulate(&mut balancer, later, millis(2), millis(60_000), |_, _| (millis(10), Verdict::Success));
    assert!(counts[3] > 5_000, "{counts:?}");
}

#[tokio::test(start_paused = true)]
async fn load_counts_until_dropped() {
    let now = Instant::now();
    let mut balancer = balancer(Balancing::PeakEwma, vec![endpoint(1), endpoint(2)], now);
    let held: Vec<Picked> = (0..10).map(|_| balancer.pick(now, &[]).unwrap()).collect();
    let first = held.iter().filter(|picked| number(picked) == 1).count();
    assert_eq!(first, 5, "none has answered yet: load alone decides");
    drop(held);
    assert!(balancer.all.iter().all(|slot| slot.state.load.get() == 0));
}

#[tokio::test(start_paused = true)]
async fn tried_endpoints_are_excluded_while_another_is_left() {
    let now = Instant::now();
    for balancing in [Balancing::PeakEwma, Balancing::Random, Balancing::RoundRobin] {
        let mut balancer = balancer(balancing, vec![endpoint(1), endpoint(2), endpoint(3)], now);
        let tried = [endpoint(1).address, endpoint(3).address];
        for _ in 0..50 {
            assert_eq!(number(&balancer.pick(now, &tried).unwrap()), 2);
        }
        let all = [endpoint(1).address, endpoint(2).address, endpoint(3).address];
        assert!(balancer.pick(now, &all).is_ok(), "better the same again than none");
    }
}

#[tokio::test(start_paused = true)]
async fn only_ready_endpoints_of_the_port() {
    let now = Instant::now();
    let mut balancer = Balancer::new(Balancing::PeakEwma, OUTLIER, 1);
    let error = balancer.pick(now, &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoEndpoints);
    let unready = Endpoint { ready: false, ..endpoint(1) };
    let other_port = Endpoint { ports: BTreeMap::from([(81, 0)]), ..endpoint(2) };
    balancer.update(&endpoints(vec![unready.clone(), other_port.clone()]), 80, now);
    let error = balancer.pick(now, &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoEndpoints);
    assert_eq!(&*error.detail, "none of the 1 known instances of shop/orders:80 is ready");
    balancer.update(&endpoints(vec![unready, other_port, endpoint(3)]), 80, now);
    for _ in 0..20 {
        assert_eq!(number(&balancer.pick(now, &[]).unwrap()), 3);
    }
    assert_eq!(balancer.counts(), Counts { known: 2, ready: 1, ejected: 0 });
}

#[tokio::test(start_paused = true)]
async fn a_sick_endpoint_is_ejected_and_probed_ever_more_rarely() {
    let now = Instant::now();
    let mut balancer = balancer(Balancing::PeakEwma, vec![endpoint(1), endpoint(2), endpoint(3)], now);
    // Sick for five minutes, then well.
    let serve = |n: usize, at: Duration| {
        let failing = n == 2 && at < Duration::from_secs(300);
        (millis(5), if failing { Verdict::Failure } else { Verdict::Success })
    };
    let counts = simulate(&mut balancer, now, millis(5), Duration::from_secs(300), serve);
    assert!(counts[2] < 20, "5 until ejected, what was in flight, and probes after 10, 20, 40, 80, 160 s: {counts:?}");
    assert_eq!(counts[0], 0);
    let later = now + Duration::from_secs(300);
    let counts =
        simulate(&mut balancer, later, millis(5), Duration::from_secs(300), |_, _| (millis(5), Verdict::Success));
    assert!(counts[2] > 5_000, "{counts:?}");
    assert_eq!(balancer.counts().ejected, 0);
}

fn fail(balancer: &mut Balancer, n: usize, times: u32, now: Instant) -> Change {
    let others: Vec<SocketAddr> =
        (1..=9).filter(|&other| other != n as u8).map(|other| endpoint(other).address).collect();
    let mut last = Change::None;
    for _ in 0..times {
        let picked = balancer.pick(now, &others).unwrap();
        assert_eq!(number(&picked), n);
        last = picked.report(Verdict::Failure, now);
    }
    last
}

#[tokio::test(start_paused = true)]
async fn never_more_than_half_are_ejected() {
    let now = Instant::now();
    for (total, most) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 2), (9, 4)] {
        let mut balancer = balancer(Balancing::Random, (1..=total).map(endpoint).collect(), now);
        let mut ejected = 0;
        for n in 1..=total {
            ejected += usize::from(matches!(fail(&mut balancer, usize::from(n), 5, now), Change::Ejected(_)));
            if ejected == most {
                break;
            }
        }
        assert_eq!(balancer.counts().ejected, most, "of {total}");
        for _ in 0..1000 {
            balancer.pick(now, &[]).unwrap().report(Verdict::Failure, now);
        }
        assert_eq!(balancer.counts().ejected, most, "of {total}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_probe_at_a_time() {
    let now = Instant::now();
    let mut balancer = balancer(Balancing::PeakEwma, vec![endpoint(1), endpoint(2)], now);
    assert_eq!(fail(&mut balancer, 1, 5, now), Change::Ejected(Duration::from_secs(10)));
    for _ in 0..20 {
        assert_eq!(number(&balancer.pick(now + millis(9_999), &[]).unwrap()), 2);
    }
    let later = now + millis(10_000);
    let retry = balancer.pick(later, &[endpoint(2).address]).unwrap();
    assert_eq!(number(&retry), 2, "a retry is no probe, it would rather go to the same again");
    let probe = balancer.pick(later, &[]).unwrap();
    assert_eq!(number(&probe), 1);
    for _ in 0..20 {
        assert_eq!(number(&balancer.pick(later, &[]).unwrap()), 2);
    }
    // Its caller goes away: another probe.
    drop(probe);
    let probe = balancer.pick(later, &[]).unwrap();
    assert_eq!(number(&probe), 1);
    assert_eq!(probe.report(Verdict::Failure, later), Change::Ejected(Duration::from_secs(20)));
    assert_eq!(probe.report(Verdict::Success, later), Change::None, "the first report counts");
    assert_eq!(number(&balancer.pick(later + millis(19_999), &[]).unwrap()), 2);
    let later = later + millis(20_000);
    let probe = balancer.pick(later, &[]).unwrap();
    assert_eq!(probe.report(Verdict::Success, later), Change::Returned);
    assert_eq!(balancer.counts().ejected, 0);
}

#[tokio::test(start_paused = true)]
async fn the_circuit_is_open_when_none_is_usable() {
    let now = Instant::now();
    let mut balancer = balancer(Balancing::PeakEwma, vec![endpoint(1), endpoint(2)], now);
    fail(&mut balancer, 1, 5, now);
    // The other one leaves.
    balancer.update(&endpoints(vec![endpoint(1), Endpoint { ready: false, ..endpoint(2) }]), 80, now);
    let error = balancer.pick(now, &[]).unwrap_err();
    assert_eq!(error.kind, ErrorKind::CircuitOpen);
    assert_eq!(&*error.detail, "all 1 ready instances of shop/orders:80 are ejected after failures");
    assert!(error.never_sent);
    // One early probe, as nobody else serves; the others are answered at once.
    let early = now + millis(1_000);
    let probe = balancer.pick(early, &[]).unwrap();
    assert_eq!(balancer.pick(early, &[]).unwrap_err().kind, ErrorKind::CircuitOpen);
    assert_eq!(probe.report(Verdict::Success, early), Change::Returned);
    assert!(balancer.pick(early, &[]).is_ok());
}

#[tokio::test(start_paused = true)]
async fn knowledge_survives_updates() {
    let now = Instant::now();
    let mut balancer = balancer(Balancing::PeakEwma, vec![endpoint(1), endpoint(2)], now);
    fail(&mut balancer, 1, 5, now);
    let held = balancer.pick(now, &[]).unwrap();
    held.report(Verdict::Success, now + millis(77));
    balancer.update(&endpoints(vec![Endpoint { zone: "b".into(), ..endpoint(1) }, endpoint(2), endpoint(3)]), 80, now);
    assert_eq!(balancer.counts(), Counts { known: 3, ready: 3, ejected: 1 });
    assert_eq!(balancer.all[0].endpoint.zone, "b");
    assert_eq!(balancer.all[1].state.load.get(), 1);
    assert!(balancer.all[1].state.latency.get().estimate(now + millis(77)) > 0.07);
    // Another workload at the same address is another endpoint.
    balancer.update(&endpoints(vec![Endpoint { workload: "shop/new".into(), ..endpoint(1) }, endpoint(2)]), 80, now);
    assert_eq!(balancer.counts(), Counts { known: 2, ready: 2, ejected: 0 });
    // And what is still reported of one that is gone changes nothing here.
    balancer.update(&endpoints(vec![endpoint(1)]), 80, now);
    for _ in 0..9 {
        held.report(Verdict::Failure, now);
    }
    assert_eq!(balancer.counts().ejected, 0);
}

#[tokio::test(start_paused = true)]
async fn a_changed_policy_is_taken() {
    let now = Instant::now();
    let mut balancer = balancer(Balancing::PeakEwma, vec![endpoint(1), endpoint(2)], now);
    fail(&mut balancer, 1, 5, now);
    balancer.set_policy(Balancing::RoundRobin, OutlierDetection { consecutive_failures: 0, ..OUTLIER });
    assert_eq!(balancer.counts().ejected, 0);
    let turns: Vec<usize> = (0..4).map(|_| number(&balancer.pick(now, &[]).unwrap())).collect();
    assert_eq!(turns, [1, 2, 1, 2]);
    balancer.set_policy(Balancing::RoundRobin, OutlierDetection { max_ejected_percent: 100, ..OUTLIER });
    fail(&mut balancer, 1, 5, now);
    assert_eq!(fail(&mut balancer, 2, 5, now), Change::None, "half, whatever the policy says");
}

#[tokio::test(start_paused = true)]
async fn who_fails_fast_does_not_draw_requests() {
    let now = Instant::now();
    let mut balancer = balancer(Balancing::PeakEwma, vec![endpoint(1), endpoint(2)], now);
    balancer.set_policy(Balancing::PeakEwma, OutlierDetection { consecutive_failures: 0, ..OUTLIER });
    let serve = |n: usize, _| if n == 1 { (millis(0), Verdict::Failure) } else { (millis(20), Verdict::Success) };
    let counts = simulate(&mut balancer, now, millis(2), millis(20_000), serve);
    assert!(counts[1] < 1_000, "{counts:?}");
}
