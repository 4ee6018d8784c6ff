//! Whose connections are let in: no source of unverified ones may take the room of all others, and some room is
//! for verified ones alone.

use std::{
    collections::{HashMap, hash_map::Entry},
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many connections there may be at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Of all kinds.
    pub connections: usize,
    /// That show no certificate, those included whose handshake is not over.
    pub unverified: usize,
    /// That show no certificate and stay. The rest is for handshakes alone, so that those who stay cannot keep
    /// out whoever has a certificate to show.
    pub staying: usize,
    /// That show no certificate, or have not done so yet, from one IPv4 address or IPv6 /64.
    pub per_source: usize,
}

/// Counts connections.
#[derive(Debug)]
pub(super) struct Admission {
    room: Room,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    open: usize,
    shaking: usize,
    unverified: usize,
    /// Handshaking and unverified.
    sources: HashMap<IpAddr, usize>,
}

/// Why a connection is not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// There is no room.
    Limit,
    /// The source has too many.
    Source,
}

impl Full {
    /// For the metric.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Limit => "limit",
            Self::Source => "source",
        }
    }
}

/// A connection's place. Dropping it makes room.
#[derive(Debug)]
pub(super) struct Place {
    admission: Arc<Admission>,
    source: IpAddr,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Shaking,
    Unverified,
    Verified,
}

impl Admission {
    pub(super) fn new(room: Room) -> Self {
        Self { room, taken: Mutex::new(Taken::default()) }
    }

    /// A place for a connection that was accepted.
    pub(super) fn enter(self: &Arc<Self>, address: IpAddr) -> Result<Place, Full> {
        let source = source(address);
        let mut taken = self.taken();
        if taken.open >= self.room.connections || taken.shaking + taken.unverified >= self.room.unverified {
            return Err(Full::Limit);
        }
        let of_source = taken.sources.entry(source).or_default();
        if *of_source >= self.room.per_source {
            return Err(Full::Source);
        }
        *of_source += 1;
        taken.open += 1;
        taken.shaking += 1;
        Ok(Place { admission: Arc::clone(self), source, stage: Stage::Shaking })
    }

    fn taken(&self) -> MutexGuard<'_, Taken> {
        // Counts are whole at each point.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// The handshake is over.
    pub(super) fn shook_hands(&mut self, verified: bool) -> Result<(), Full> {
        let mut taken = self.admission.taken();
        if !verified && taken.unverified >= self.admission.room.staying {
            return Err(Full::Limit);
        }
        taken.leave(self.stage, self.source);
        taken.open += 1;
        self.stage = if verified { Stage::Verified } else { Stage::Unverified };
        if !verified {
            taken.unverified += 1;
            *taken.sources.entry(self.source).or_default() += 1;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.taken().leave(self.stage, self.source);
    }
}

impl Taken {
    fn leave(&mut self, stage: Stage, source: IpAddr) {
        self.open -= 1;
        match stage {
            Stage::Verified => return,
            Stage::Shaking => self.shaking -= 1,
            Stage::Unverified => self.unverified -= 1,
        }
        if let Entry::Occupied(mut of_source) = self.sources.entry(source) {
            *of_source.get_mut() -= 1;
            if *of_source.get() == 0 {
                of_source.remove();
            }
        }
    }
}

/// Who has one address of an IPv6 /64 has all of them.
fn source(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}
