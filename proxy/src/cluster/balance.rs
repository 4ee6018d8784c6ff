//! Which endpoint of a cluster gets the next request.
//!
//! Endpoints that are not ready or are ejected are skipped, and those tried before for the same
//! request, while another is left. Among the rest the policy decides: the cheaper of two picked at random
//! (latency, as a peak-sensitive moving average, times requests in flight), or in turn, or at random.

mod ewma;
#[cfg(test)]
mod tests;

use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use tokio::time::Instant;

use self::ewma::PeakEwma;
use super::outlier::Outlier;
use crate::{
    outcome::{Error, ErrorKind},
    snapshot::{Balancing, Endpoint, Endpoints, OutlierDetection},
};

/// How often to draw again when chance falls on an endpoint that cannot be used, before looking at all.
const DRAWS: usize = 8;
/// Below this, a difference in cost is noise (estimates fall a little while an endpoint is not used),
/// and the first draw decides: it honours weights.
const CLEARLY_CHEAPER: f64 = 0.9;

/// The endpoints of one cluster with what is known of them: latency, load, ejection. Single-threaded;
/// knowledge is keyed by address and workload, and survives updates.
#[derive(Debug)]
pub struct Balancer {
    /// `namespace/name:port`, for explanations.
    name: String,
    balancing: Balancing,
    /// All that serve the port, ready or not.
    all: Vec<Slot>,
    /// Those that are ready, as indices of `all`.
    ready: Vec<usize>,
    /// Running sums of the weights of `ready`.
    cumulative: Vec<u64>,
    equal_weights: bool,
    shared: Rc<Shared>,
    rng: SmallRng,
}

/// What reports need of the cluster.
#[derive(Debug)]
struct Shared {
    outlier: Cell<OutlierDetection>,
    /// Endpoints that are ready, out or not.
    ready: Cell<usize>,
    /// Of these, those that are out.
    out: Cell<usize>,
}

#[derive(Debug)]
struct Slot {
    endpoint: Arc<Endpoint>,
    state: Rc<State>,
    /// For turns: how much it is behind.
    credit: i64,
}

#[derive(Debug)]
struct State {
    load: Cell<u32>,
    latency: Cell<PeakEwma>,
    outlier: RefCell<Outlier>,
    /// Whether it counts in [`Shared`].
    ready: Cell<bool>,
}

/// An endpoint picked for one try. Its load counts until dropped; dropped without a report (the caller
/// went away) it says nothing about the endpoint.
#[derive(Debug)]
pub struct Picked {
    endpoint: Arc<Endpoint>,
    state: Rc<State>,
    shared: Rc<Shared>,
    started: Instant,
    probe: bool,
    reported: Cell<bool>,
}

/// What a try says of its endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It answered, and not with a 5xx.
    Success,
    /// 5xx, failed connection, reset, timeout.
    Failure,
}

/// What a report changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// Nothing that others need to know.
    None,
    /// The endpoint is ejected, for this long.
    Ejected(Duration),
    /// It is back.
    Returned,
}

/// How many there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Endpoints that serve the port.
    pub known: usize,
    /// Of these, those that are ready.
    pub ready: usize,
    /// Of the ready ones, those that are ejected.
    pub ejected: usize,
}

impl Balancer {
    /// Without endpoints yet.
    pub fn new(balancing: Balancing, outlier: OutlierDetection, seed: u64) -> Self {
        Self {
            name: String::new(),
            balancing,
            all: Vec::new(),
            ready: Vec::new(),
            cumulative: Vec::new(),
            equal_weights: true,
            shared: Rc::new(Shared { outlier: Cell::new(outlier), ready: Cell::new(0), out: Cell::new(0) }),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// Takes a changed policy; what is known of endpoints stays. Where ejection is switched off, all are
    /// back.
    pub fn set_policy(&mut self, balancing: Balancing, outlier: OutlierDetection) {
        self.balancing = balancing;
        self.shared.outlier.set(outlier);
        if outlier.consecutive_failures == 0 {
            self.all.iter().for_each(|slot| *slot.state.outlier.borrow_mut() = Outlier::default());
            self.shared.out.set(0);
        }
    }

    /// Takes the endpoints that serve `port`; what is known of those that stay, stays.
    ///
    /// Ejections stay too, even if by now more than their share is out: then the circuit is open, but
    /// for early probes.
    pub fn update(&mut self, endpoints: &Endpoints, port: u16, now: Instant) {
        self.name = format!("{}:{port}", endpoints.service);
        let mut known: HashMap<(SocketAddr, String), Slot> = std::mem::take(&mut self.all)
            .into_iter()
            .map(|slot| ((slot.endpoint.address, slot.endpoint.workload.clone()), slot))
            .collect();
        self.all = endpoints
            .endpoints
            .iter()
            .filter(|endpoint| endpoint.ports.contains_key(&port))
            .map(|endpoint| match known.remove(&(endpoint.address, endpoint.workload.clone())) {
                Some(slot) => Slot { endpoint: endpoint.clone(), ..slot },
                None => Slot { endpoint: endpoint.clone(), state: Rc::new(State::new(now)), credit: 0 },
            })
            .collect();
        // Reports that are still to come about those that are gone no longer count.
        known.into_values().for_each(|slot| slot.state.ready.set(false));
        self.all.iter().for_each(|slot| slot.state.ready.set(slot.endpoint.ready));
        self.ready = (0..self.all.len()).filter(|&index| self.all[index].endpoint.ready).collect();
        let mut sum = 0;
        self.cumulative.clear();
        for &index in &self.ready {
            sum += u64::from(self.all[index].endpoint.weight.max(1));
            self.cumulative.push(sum);
        }
        let weights: Vec<u32> = self.ready.iter().map(|&index| self.all[index].endpoint.weight.max(1)).collect();
        self.equal_weights = weights.windows(2).all(|pair| pair[0] == pair[1]);
        let out = self.ready.iter().filter(|&&index| self.all[index].state.outlier.borrow().is_out()).count();
        self.shared.ready.set(self.ready.len());
        self.shared.out.set(out);
    }

    /// How many there are.
    pub fn counts(&self) -> Counts {
        Counts { known: self.all.len(), ready: self.ready.len(), ejected: self.shared.out.get() }
    }

    /// Picks an endpoint, if possible none of `tried`. Errors: `NoEndpoints`, `CircuitOpen`.
    pub fn pick(&mut self, now: Instant, tried: &[SocketAddr]) -> Result<Picked, Error> {
        if self.ready.is_empty() {
            let detail = match self.all.len() {
                0 => format!("no instance of {} is known", self.name),
                known => format!("none of the {known} known instances of {} is ready", self.name),
            };
            return Err(Error::new(ErrorKind::NoEndpoints, detail));
        }
        // The first try of a request may be a probe: its retries go elsewhere.
        if tried.is_empty()
            && let Some(index) = self.due_probe(now, false)
        {
            return Ok(self.picked(index, now, true));
        }
        let choice = self.choose(now, tried).or_else(|| if tried.is_empty() { None } else { self.choose(now, &[]) });
        if let Some(index) = choice {
            return Ok(self.picked(index, now, false));
        }
        if let Some(index) = self.due_probe(now, true) {
            return Ok(self.picked(index, now, true));
        }
        Err(Error::new(
            ErrorKind::CircuitOpen,
            format!("all {} ready instances of {} are ejected after failures", self.ready.len(), self.name),
        ))
    }

    /// The endpoint at this address, whatever is thought of it: the caller has chosen. Errors: `NoEndpoints`.
    pub fn pick_only(&self, address: SocketAddr, now: Instant) -> Result<Picked, Error> {
        let index = self.all.iter().position(|slot| slot.endpoint.address == address);
        let gone = || Error::new(ErrorKind::NoEndpoints, format!("no instance of {} is at {address}", self.name));
        Ok(self.picked(index.ok_or_else(gone)?, now, false))
    }

    fn picked(&self, index: usize, now: Instant, probe: bool) -> Picked {
        let slot = &self.all[index];
        slot.state.load.update(|load| load + 1);
        if probe {
            slot.state.outlier.borrow_mut().begin_probe();
        }
        Picked {
            endpoint: slot.endpoint.clone(),
            state: slot.state.clone(),
            shared: self.shared.clone(),
            started: now,
            probe,
            reported: Cell::new(false),
        }
    }

    /// The endpoint that has waited longest for a probe.
    fn due_probe(&self, now: Instant, last_resort: bool) -> Option<usize> {
        if self.shared.out.get() == 0 {
            return None;
        }
        let due = self.ready.iter().filter_map(|&index| {
            let at = self.all[index].state.outlier.borrow().probe_at(last_resort)?;
            (at <= now).then_some((at, index))
        });
        due.min().map(|(_, index)| index)
    }

    fn choose(&mut self, now: Instant, tried: &[SocketAddr]) -> Option<usize> {
        if let [only] = self.ready[..] {
            return self.usable(only, tried, None).then_some(only);
        }
        match self.balancing {
            Balancing::PeakEwma => {
                let first = self.draw(tried, None)?;
                // With unequal weights chance may fall on the same one twice: else two endpoints would
                // share alike, whatever their weights.
                let second = self.draw(tried, self.equal_weights.then_some(first)).unwrap_or(first);
                let cost = |index: usize| self.all[index].state.cost(now);
                Some(if cost(second) < cost(first) * CLEARLY_CHEAPER { second } else { first })
            }
            Balancing::Random => self.draw(tried, None),
            Balancing::RoundRobin => self.next_in_turn(tried),
        }
    }

    fn usable(&self, index: usize, tried: &[SocketAddr], but: Option<usize>) -> bool {
        let slot = &self.all[index];
        Some(index) != but && !tried.contains(&slot.endpoint.address) && !slot.state.outlier.borrow().is_out()
    }

    /// One at random, by weight.
    fn draw(&mut self, tried: &[SocketAddr], but: Option<usize>) -> Option<usize> {
        let total = *self.cumulative.last()?;
        for _ in 0..DRAWS {
            let ticket = self.rng.random_range(0..total);
            let index = self.ready[self.cumulative.partition_point(|&sum| sum <= ticket)];
            if self.usable(index, tried, but) {
                return Some(index);
            }
        }
        let usable: Vec<usize> = self.ready.iter().copied().filter(|&index| self.usable(index, tried, but)).collect();
        let total: u64 = usable.iter().map(|&index| self.all[index].weight()).sum();
        if total == 0 {
            return None;
        }
        let mut ticket = self.rng.random_range(0..total);
        usable.into_iter().find(|&index| {
            let weight = self.all[index].weight();
            let hit = ticket < weight;
            ticket = ticket.saturating_sub(weight);
            hit
        })
    }

    /// Smooth weighted round robin: each gains its weight, the richest pays for all.
    fn next_in_turn(&mut self, tried: &[SocketAddr]) -> Option<usize> {
        let mut total = 0;
        let mut best: Option<usize> = None;
        for position in 0..self.ready.len() {
            let index = self.ready[position];
            if !self.usable(index, tried, None) {
                continue;
            }
            let weight = i64::try_from(self.all[index].weight()).expect("a u32");
            total += weight;
            self.all[index].credit += weight;
            if best.is_none_or(|best| self.all[index].credit > self.all[best].credit) {
                best = Some(index);
            }
        }
        self.all[best?].credit -= total;
        best
    }
}

impl Slot {
    fn weight(&self) -> u64 {
        u64::from(self.endpoint.weight.max(1))
    }
}

impl State {
    fn new(now: Instant) -> Self {
        Self {
            load: Cell::new(0),
            latency: Cell::new(PeakEwma::new(now)),
            outlier: RefCell::default(),
            ready: Cell::new(false),
        }
    }

    /// Expected time until one more request would be answered. Failures in a row count like load: who
    /// refuses fast is never loaded, and must not draw all requests for it.
    fn cost(&self, now: Instant) -> f64 {
        let failures = self.outlier.borrow().failures();
        self.latency.get().estimate(now) * f64::from(self.load.get().saturating_add(failures).saturating_add(1))
    }
}

impl Picked {
    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// The try is decided: at response headers, or when it failed. Only the first report counts.
    pub fn report(&self, verdict: Verdict, now: Instant) -> Change {
        if self.reported.replace(true) {
            return Change::None;
        }
        let Self { state, shared, .. } = self;
        let mut latency = state.latency.get();
        let mut outlier = state.outlier.borrow_mut();
        let was_out = outlier.is_out();
        let elapsed = now - self.started;
        let change = match verdict {
            Verdict::Success => {
                latency.observe(elapsed, now);
                if outlier.succeed(self.probe) { Change::Returned } else { Change::None }
            }
            Verdict::Failure => {
                latency.observe_failure(elapsed, now);
                let policy = shared.outlier.get();
                let ejected = outlier.fail(self.probe, shared.may_eject(), &policy, now);
                ejected.map_or(Change::None, Change::Ejected)
            }
        };
        state.latency.set(latency);
        if state.ready.get() {
            match (was_out, outlier.is_out()) {
                (false, true) => shared.out.update(|out| out + 1),
                (true, false) => shared.out.update(|out| out.saturating_sub(1)),
                _ => {}
            }
        }
        change
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.state.load.update(|load| load - 1);
        if self.probe && !self.reported.get() {
            self.state.outlier.borrow_mut().cancel_probe();
        }
    }
}

impl Shared {
    /// Whether one more may be out: never more than the share that the policy names, never more than
    /// half; so never the only one.
    fn may_eject(&self) -> bool {
        let percent = usize::try_from(self.outlier.get().max_ejected_percent.min(50)).expect("at most 50");
        (self.out.get() + 1) * 100 <= self.ready.get() * percent
    }
}
