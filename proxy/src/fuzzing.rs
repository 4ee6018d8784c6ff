//! What the fuzz targets of `fuzz/` drive that nobody else outside may: no part of this crate's interface.
#![doc(hidden)]

#[cfg(fuzzing)]
mod fronts;

use http::{HeaderValue, request::Parts};

#[cfg(fuzzing)]
pub use self::fronts::Fronts;
use crate::{config::Limits, outcome::Error, serve};
pub use crate::{
    detect::{Detected, classify},
    preamble::{Preamble, accept, read_answer, refuse},
};

/// Takes the front off a request, as each one passes, and says whom it is meant for.
///
/// # Errors
/// What it is refused for.
pub fn receive(parts: &mut Parts) -> Result<HeaderValue, Error> {
    serve::receive(parts, &Limits::default()).map(|front| front.authority)
}
