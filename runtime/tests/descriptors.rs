//! In a process of its own, because the limit is the process's.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn the_soft_limit_becomes_the_hard_one() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(64), maximum }).unwrap();
    heddle_runtime::descriptors::raise(0, "of a test");
    assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: maximum, maximum });
    // A second time, and where more is needed than there is, it stays.
    heddle_runtime::descriptors::raise(u64::MAX, "of a test");
    assert_eq!(getrlimit(Resource::Nofile), Rlimit { current: maximum, maximum });
}
